"""From no node to as many as there is work for and back, by Ray's own autoscaler; only its machines are not real."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.database import RunDatabase
from cluster.objects import FolderStore

ROOT = Path(__file__).resolve().parents[2]
PORT = 6391
HEAD_ID = "f" * 51 + "00000"
MOST_NODES = 2
IDLE_MINUTES = 0.3
TIMEOUT_S = 400
NODE_TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "spot": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST_NODES},
}
EMPTY = [
    *("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter"),
]

# one line for each change, among those that Ray prints: how many GPUs the living nodes have
WATCH = """
import time, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
last = None
while True:
    gpus = sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"])
    if gpus != last:
        print("GPUs:", int(gpus), flush=True)
    last = gpus
    time.sleep(0.2)
"""

pytestmark = pytest.mark.ray


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """That of a driver on a cluster whose head has no CPU to train on, and which has no other node yet."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": f"127.0.0.1:{PORT}",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
    }
    config = {
        "cluster_name": "test",
        "max_workers": MOST_NODES,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": provider,
        "available_node_types": NODE_TYPES,
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        **{key: [] for key in EMPTY},
    }
    path, token = tmp_path / "autoscaling.json", tmp_path / "token"
    path.write_text(json.dumps(config))
    token.write_text("0" * 64)
    ours = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | ours
    fake = {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9",  # it has none, and must not ask that of another test
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={PORT}", "--num-cpus=0"),
        *("--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--autoscaling-config={path}"),
        *(f"--temp-dir=/tmp/dass-test-{PORT}", f"--ray-client-server-port={PORT + 1}"),
        f"--dashboard-agent-listen-port={PORT + 2}",
    ]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(command, env=clean | fake, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield clean | {"RAY_ADDRESS": f"127.0.0.1:{PORT}"}
        finally:
            for stop in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(head.pid, stop)
                    head.wait(timeout=30)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue


def test_pending_runs_bring_nodes_and_the_last_one_takes_them_away(environment: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    watch = subprocess.Popen([sys.executable, "-c", WATCH], env=environment, stdout=subprocess.PIPE, text=True)
    assert watch.stdout is not None
    try:
        counts = (int(line.split()[1]) for line in watch.stdout if line.startswith("GPUs:"))
        assert next(counts) == 0
        settings = ("--set", "lanes.num=3", "--set", "student.epochs=20", "--set", "lanes.idle_s=5")
        command = [sys.executable, "-m", "jobs", "collect", "--recipe", "smoke", "--store", str(store), *settings]
        job = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert job.returncode == 0, job.stderr
        gpus = list(itertools.takewhile(bool, counts))  # ends when the last node is gone
    finally:
        watch.kill()
        watch.communicate()
    assert 0 < max(gpus) <= MOST_NODES
    records = list(RunDatabase(FolderStore(store)).scan())
    assert len(records) == 15
    assert {record.run.teacher is None for record in records} == {True, False}
