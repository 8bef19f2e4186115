"""`search --workers`: through the command line, against the search in process."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.documents import get_latest
from cluster.objects import FolderStore
from dass.search import ranking
from jobs import distil, search
from jobs.config import with_settings
from tests.jobs.command import call
from tests.jobs.prepared import open_smoke, prepare

SMOKE = ("--recipe", "smoke")
ALL = ("--set", "search.max_macs_ratio=1.0")  # of the 256 students of the space
TIMES = {"adapt_s", "score_s"}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the smoke recipe is done; not to be written to."""
    return prepare(tmp_path_factory.mktemp("smoke") / "store")


def found(store: Path) -> dict[str, Any]:
    """The search document, but for its times."""
    task = open_smoke(store).tasks().target
    assert task is not None
    value = get_latest(FolderStore(store), f"search-{task.id}")
    assert value.keys() >= TIMES
    return {name: item for name, item in value.items() if name not in TIMES}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own deprecations
def test_a_search_on_workers_leaves_the_document_of_one_in_process(done: Path, tmp_path: Path) -> None:
    documents = {}
    for workers in (0, 2):
        store = shutil.copytree(done, tmp_path / f"{workers}")
        answer = call("search", *SMOKE, *ALL, "--workers", f"{workers}", "--set", "search.batch=20", "--store", store)
        assert answer.code == 0, answer.err
        documents[workers] = found(store)
        assert any(FolderStore(store).list("searches/")) == (workers > 0)
    assert documents[0] == documents[2]
    assert documents[0]["scored"] == len(documents[0]["candidates"]) == 50
    assert documents[0] != found(done)  # other batches, other bits: both searches are new


@pytest.mark.parametrize(
    ("workers", "rule"), [("-1", "must be >= 0, got -1"), ("9999", r"must be <= \d+ on this machine")]
)
def test_a_number_of_workers_that_cannot_be_is_refused_before_anything_else(
    workers: str, rule: str, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    answer = call("search", *SMOKE, "--workers", workers, "--store", done)
    assert answer.code == 2
    assert re.search(rf"--workers {rule}.*; give ", answer.error)


def test_the_random_control_of_a_large_search_is_drawn_from_all_that_was_scored(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, num in (("KEEP_ALL", 8), ("KEEP_BEST", 4), ("SAMPLE", 16)):
        monkeypatch.setattr(ranking, name, num)
    opened = open_smoke(shutil.copytree(done, tmp_path / "store"))
    job = replace(opened, config=with_settings(opened.config, ALL[1:]))
    search.run(job)
    value = found(tmp_path / "store")
    task = job.tasks().target
    assert task is not None
    assert value["scored"] == 50
    assert 4 <= len(value["candidates"]) < 50
    assert len(value["sample"]) == 16
    kept = distil.latest_search(job, task)
    assert distil.chosen(job, task, kept)["random"] in [candidate.student for candidate in kept["sample"]]
