"""Two versions of this package at one store: the newer one takes it over, the older one refuses it from then on."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.database import RunDatabase, loose_key
from cluster.lane import Lane, LaneJob
from cluster.objects import FolderStore
from cluster.settings import LaneConfig
from dass.errors import SchemaTooNewError
from tests.cluster.test_schema import GOLDEN, by_hand
from tests.jobs.command import call, tree

OURS = {"schema": 3, "id_version": 1}
SMOKE = ("--recipe", "smoke")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store as version 1 left it: a loose record, a packed one, and its marker."""
    finished, diverged = by_hand(1)
    loose = tmp_path / loose_key(diverged.run.id)
    packed = tmp_path / "records" / "packed" / finished.run.task / "1.parquet"
    for path in (loose, packed):
        path.parent.mkdir(parents=True)
    shutil.copy(GOLDEN / "diverged_v1.json", loose)
    shutil.copy(GOLDEN / "records_v1.parquet", packed)
    (tmp_path / "schema.json").write_text('{"id_version":1,"schema":1}')
    return tmp_path


def marker(store: Path) -> dict[str, int]:
    return dict(json.loads((store / "schema.json").read_text()))


def test_reading_an_old_store_changes_nothing(old: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = tree(old)
    output = tmp_path_factory.mktemp("out") / "runs.parquet"
    assert call("status", "--store", old).code == 0
    assert call("gc", "--store", old).code == 0
    assert call("collect", *SMOKE, "--store", old, "--dry-run").code == 0
    assert call("export", "--store", old, "--output", output).code == 0
    assert tree(old) == before
    rows = {row["run_id"]: row for row in pq.read_table(output).to_pylist()}
    for record in by_hand(1):
        row = rows[record.run.id]
        assert (row["incarnation"], row["attempt"]) == (0, record.provenance.attempt)
        assert (row["macs"], row["best_accuracy_pct"]) == (record.macs, record.result.best_accuracy_pct)


@pytest.mark.parametrize("verb", [("data", *SMOKE), ("compact", "--grace", "0"), ("gc", "--delete")])
def test_working_on_an_old_store_takes_it_over(verb: tuple[str, ...], old: Path) -> None:
    before = sorted(map(repr, RunDatabase(FolderStore(old)).scan()))
    assert call(*verb, "--store", old).code == 0
    assert marker(old) == OURS
    assert sorted(map(repr, RunDatabase(FolderStore(old)).scan())) == before


def test_a_newer_version_shuts_out_our_jobs_and_our_lanes(old: Path, tmp_path: Path) -> None:
    """As version 1 meets a store that we took over, we meet one of the version after ours."""
    job = LaneJob(str(old), "queue", LaneConfig())
    Lane("lane0", job, queue=None)  # a lane claims the store too
    assert marker(old) == OURS
    (old / "schema.json").write_text('{"schema":4,"id_version":1}')
    before = tree(old)
    told = "schema.json must have a version of at most 3 to be read here, got 4; upgrade the package dass"
    for verb in (("compact",), ("gc",), ("gc", "--delete"), ("export", "--output", tmp_path / "new.csv"), ("status",)):
        answer = call(*verb, "--store", old)
        assert (answer.code, answer.error) == (1, f"error: {told}")
    with pytest.raises(SchemaTooNewError, match="upgrade the package"):
        Lane("lane1", job, queue=None)
    assert tree(old) == before
