"""Verbs submitted to a cluster of this machine with token authentication, by the script that README names."""

import os
import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.main import get_command

from cluster.database import RunDatabase
from cluster.objects import FolderStore
from jobs.__main__ import app
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "infra" / "local" / "cluster.sh"
LONG = ("--recipe", "smoke", "--set", "student.epochs=60", "--set", "lanes.checkpoint_s=1")
TIMEOUT_S = 300

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class LocalCluster:
    """A started cluster."""

    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.environment['DASS_DASHBOARD_PORT']}"

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT_S,
        )

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(SCRIPT), *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def job_of(self, process: subprocess.Popen[str]) -> str:
        """The id of what this process submitted; empty as long as the cluster does not know it."""
        found = re.search(rf"dass-collect-\d+-{process.pid}\b", self.call("ray", "job", "list").stdout)
        return found.group() if found else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    gcs = free_port()
    ours = {
        "DASS_CLUSTER": str(folder),
        "DASS_GCS_PORT": str(gcs),
        "DASS_DASHBOARD_PORT": str(gcs + 3),
        "DASS_RAY_TEMP": f"/tmp/dass-test-{gcs}",  # noqa: S108 - Ray's sockets need a short path
    }
    here = LocalCluster({key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | ours)
    try:
        started = here.call("start")
        assert started.returncode == 0, started.stderr
        yield here
    finally:
        here.call("stop")


def records(store: Path) -> dict[str, bytes]:
    objects = FolderStore(store)
    return {key: objects.get(key) for key in objects.list("records/")}


def wait_until(what: str, process: subprocess.Popen[str], is_there: object) -> None:
    """Until the callable is true, which must be while the process lives."""
    assert callable(is_there)
    deadline = time.monotonic() + TIMEOUT_S
    while not is_there():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[0]}"
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def test_the_job_server_refuses_without_the_token(cluster: LocalCluster) -> None:
    token = Path(cluster.environment["DASS_CLUSTER"], "token")
    assert token.stat().st_mode & 0o077 == 0
    for headers in ({}, {"Authorization": "Bearer " + "0" * 64}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(f"{cluster.url}/api/jobs/", headers=headers))  # noqa: S310
        assert refused.value.code in (401, 403)
        refused.value.close()
    known = urllib.request.Request(  # noqa: S310
        f"{cluster.url}/api/jobs/", headers={"Authorization": f"Bearer {token.read_text()}"}
    )
    with urllib.request.urlopen(known) as answer:  # noqa: S310
        assert answer.status == 200


def test_a_driver_tells_bad_input_by_its_code(cluster: LocalCluster, tmp_path: Path) -> None:
    wrong_recipe = cluster.call("submit", "collect", "--recipe", "smok", "--store", str(tmp_path))
    assert wrong_recipe.returncode == 2
    assert "did you mean smoke?" in wrong_recipe.stdout + wrong_recipe.stderr
    lost_store = cluster.call("submit", "collect", "--recipe", "smoke", "--store", "somewhere")
    assert lost_store.returncode == 2
    assert "absolute path of a folder that all machines share" in lost_store.stdout + lost_store.stderr


@pytest.mark.parametrize("command", ["quickstart", "meta-train --tune 2", "search --workers 1"])
def test_verbs_that_train_work_as_jobs(command: str, cluster: LocalCluster, store: Path) -> None:
    verb, *options = command.split()
    recipe = ("--recipe", "smoke", "--set", "tune.rungs=1")
    answer = cluster.call("submit", verb, *recipe, *options, "--store", str(store))
    assert answer.returncode == 0, answer.stdout


@pytest.mark.slow
def test_every_verb_works_as_a_job(cluster: LocalCluster, tmp_path: Path) -> None:
    store = tmp_path / "store"
    recipe = ("--recipe", "smoke", "--set", "collect.target_students=6", "--store", str(store))
    methods = ("--seeds", "1", "--methods", "macs")
    options: dict[str, tuple[str, ...]] = {
        "keys": recipe[:4],
        "data": recipe,
        "teachers": recipe,
        "collect": recipe,
        "meta-train": recipe,
        "calibrate": recipe,
        "learning-curve": recipe,
        "search": recipe,
        "distil": recipe,
        "report": recipe,
        "quickstart": recipe,
        "evaluate": (*recipe, *methods),
        "contest": (*recipe, "--methods", "macs"),
        "ship": (*recipe, *methods, "--output", str(tmp_path / "shipped")),
        "status": recipe,
        "compact": ("--store", str(store), "--grace", "0"),
        "gc": ("--store", str(store)),
        "export": ("--store", str(store), "--output", str(tmp_path / "runs.csv")),
    }
    assert options.keys() == set(vars(get_command(app))["commands"])
    for verb, some in options.items():
        answer = cluster.call("submit", verb, *some)
        assert answer.returncode == 0, f"{verb}: {answer.stdout}"
    ids = {record.run.id for record in RunDatabase(FolderStore(store)).scan()}
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert len(ids) == 4 + 3 * 3 + 6 + 3  # teachers, students, those of the target, the winner and its controls
    assert len(rows) == 1 + len(ids)


def test_a_driver_tells_failure_and_a_spent_budget_apart(cluster: LocalCluster, tmp_path: Path) -> None:
    collect = ("submit", "collect", "--recipe", "smoke", "--store", str(tmp_path / "store"))
    assert cluster.call(*collect).returncode == 0
    spent = cluster.call(*collect, "--set", "collect.students_per_task=4", "--set", "collect.max_device_hours=1e-9")
    assert spent.returncode == 3, spent.stdout
    store = FolderStore(tmp_path / "damaged")
    store.put("records/packed/task/1.parquet", b"no parquet")
    damaged = cluster.call("submit", "status", "--store", str(store.root))
    assert damaged.returncode == 1, damaged.stdout
    assert "1.parquet must hold" in damaged.stdout + damaged.stderr


def test_a_stopped_collection_keeps_its_checkpoints_and_goes_on_when_submitted_again(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    store = FolderStore(tmp_path)
    first = cluster.begin("submit", "collect", *LONG, "--store", str(tmp_path))
    wait_until("a record and a checkpoint", first, lambda: records(tmp_path) and any(store.list("checkpoints/")))
    onlooker = cluster.begin("submit", "collect", *LONG, "--store", str(tmp_path))
    wait_until("the second job", onlooker, lambda: cluster.job_of(onlooker))
    before = records(tmp_path)
    assert 0 < len(before) < 15
    assert cluster.call("ray", "job", "stop", cluster.job_of(first)).returncode == 0
    told, _ = first.communicate(timeout=TIMEOUT_S)
    assert first.returncode == 130
    assert "interrupted: what is finished is kept; run the same command again to go on" in told

    told, _ = onlooker.communicate(timeout=TIMEOUT_S)  # the second submission goes on by itself
    assert onlooker.returncode == 0, told
    after = records(tmp_path)
    assert before.items() <= after.items()
    assert len({record.run.id for record in RunDatabase(store).scan()}) == len(after) == 15
    assert list(store.list("checkpoints/")) == list(store.list("owners/")) == []
