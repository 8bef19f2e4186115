"""Where a session of Ray works, and how what runs in it ends."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.exceptions import RayTaskError
from ray.util.state import get_actor

from cluster import runtime
from cluster.fleet import Fleet
from cluster.lane import LaneJob
from cluster.queue import QueueStats
from cluster.runtime import CODE_VERSION_ENV, DRIVER_RESOURCE, cancel_running, code_version, session
from cluster.settings import LaneConfig
from dass.errors import ClusterError
from dass.version import __version__
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations


@pytest.fixture
def somebodys(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster that somebody has started on this machine, where `ray.init()` finds it."""
    folder = tempfile.mkdtemp(prefix="ray")  # short, as paths of sockets have to be
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": free_port()}
    )
    yield cluster
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_without_an_address_a_session_keeps_away_from_somebodys_cluster(somebodys: Cluster) -> None:
    with session(2):
        assert ray.get_runtime_context().gcs_address != somebodys.address
        assert ray.cluster_resources()["CPU"] == 2


def test_nothing_in_a_local_session_asks_somebodys_cluster_who_is_alive(somebodys: Cluster) -> None:
    def find_actor() -> bool:
        return get_actor("0" * 32, timeout=5) is not None

    assert not find_actor()  # somebody's answers that there is no such actor
    with session(1), pytest.raises(RayTaskError, match="ServerUnavailable"):
        ray.get(ray.remote(find_actor).remote())
    assert "RAY_API_SERVER_ADDRESS" not in os.environ


def test_a_lane_takes_no_device_before_its_driver_has_a_place(
    somebodys: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    somebodys.add_node(num_cpus=0, resources={DRIVER_RESOURCE: 1})
    monkeypatch.setenv("RAY_ADDRESS", somebodys.address)
    with session():
        other = ray.remote(num_cpus=0, resources={DRIVER_RESOURCE: 1})(threading.Event).remote()
        ray.get(other.is_set.remote())
        fleet = Fleet(LaneJob("file:///nowhere", "no such queue", LaneConfig(max_failures=0)))
        stats = QueueStats(planned=1, finished=0, running=0, pending=1, waiting_for_teacher=0, failed={}, cohorts=1)
        notes = []
        for _ in range(20):
            fleet.step(stats, time.monotonic())
            notes.append(fleet.note)
            time.sleep(0.1)
        assert set(notes) == {"1 lane waiting for a device"}
        assert ray.available_resources()["CPU"] == 1
        ray.kill(other)
        while fleet.note != "1 lane starting":
            fleet.step(stats, time.monotonic())
            time.sleep(0.1)
        fleet.close()


def test_a_local_session_opens_no_port_for_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_enable_metrics_collection", raising=False)
    with session(1):
        assert [node["MetricsExportPort"] for node in ray.nodes()] == [-1]


def test_a_folder_that_cannot_be_written_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    told = r"at a local address, got .*; see that RAY_TMPDIR, by default /tmp, can be written"
    with pytest.raises(ClusterError, match=told), session(1):
        pass


def test_a_token_that_is_missing_is_one_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs", "teachers", "--recipe", "smoke", "--store", str(tmp_path / "store")]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "absent"), "RAY_ADDRESS": "127.0.0.1:9"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=clean | token, check=False)
    assert done.returncode == 1
    told = done.stderr.splitlines()[-1]
    assert re.match(r"error: Ray must start or be reached at 127\.0\.0\.1:9, got .*token.*; unset RAY_ADDRESS", told), (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_what_still_runs_is_ended_and_what_is_over_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with session(1):
        quick, hanging = ray.remote(num_cpus=0)(lambda: 7), ray.remote(num_cpus=0)(lambda: threading.Event().wait())
        for _ in range(500):  # a cancel in the instant of a result ends this process, sooner or later
            over = quick.remote()
            ray.wait([over])
            cancel_running([over])
            assert ray.get(over) == 7
        running = hanging.remote()
        cancel_running([over, running])
        assert ray.get(over) == 7
        with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
            ray.get(running, timeout=60)


def test_what_ray_says_is_not_mixed_with_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with session(1):
        processes = [ray.remote(num_cpus=0)(threading.Event).remote() for _ in range(20)]  # so many that Ray warns
        ray.get([process.is_set.remote() for process in processes])
    out, err = capsys.readouterr()
    assert "worker processes have been started" in err
    assert out == ""


def test_the_version_of_the_code_names_the_commit_wherever_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version_of = code_version.__wrapped__  # it is asked for once in a process
    monkeypatch.setenv(CODE_VERSION_ENV, "0123abc")
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=ROOT, check=False)
    if head.returncode == 0:
        assert version_of().split("+")[1].removesuffix("-dirty") in head.stdout
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "cluster" / "runtime.py"))
    assert version_of() == f"{__version__}+0123abc"
    monkeypatch.delenv(CODE_VERSION_ENV)
    assert version_of() == __version__
