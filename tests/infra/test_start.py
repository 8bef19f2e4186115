"""A head started for real with the start parameters of the manifests: what the probes ask answers, and to whom."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.infra.overlays import Pod, environment, ray_pods, rendered
from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

TOKEN = "a-token-of-at-least-some-length"  # noqa: S105 - a test's
HOST = "127.0.0.1"
PATIENCE_S = 120


def head() -> Pod:
    return next(ray_pods(rendered("overlays/eks/cluster")))


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """The ports that the manifest names, each with a free one of this machine, and those that are Ray's defaults."""
    named = [option for option in head().start if option.endswith("-port") and "worker" not in option]
    return {option: free_port() for option in [*named, "port", "dashboard-port", "ray-client-server-port"]}


@pytest.fixture(scope="module")
def started(ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[bytes]]:
    """The head, as KubeRay starts it: in the foreground, with the manifest's environment and the token."""
    params = head().start | {option: str(port) for option, port in ports.items()}
    params |= {"dashboard-host": HOST, "node-ip-address": HOST, "min-worker-port": "0", "max-worker-port": "0"}
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the paths of sockets must be short
    params |= {"object-store-memory": "100000000", "temp-dir": str(folder)}
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},  # of other tests' Ray
        **environment(head(), rendered("overlays/eks")),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
    }
    env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"  # nothing runs here that could be waited for
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--no-monitor"]
    command += [f"--{option}={''.join(shlex.split(value))}" for option, value in params.items()]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=out) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
            shutil.rmtree(folder, ignore_errors=True)
            sys.stderr.write(log.read_text(errors="replace"))  # shown when a test failed


def answer(url: str, token: str | None = None) -> int:
    """The status that the server answers, as soon as it answers at all."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            status = requests.get(url, headers=headers, timeout=10).status_code
        except requests.ConnectionError:
            status = 0
        if status not in (0, 503) or time.monotonic() > until:
            return status
        time.sleep(0.5)


def test_the_head_answers_its_probes_and_keeps_the_job_server_closed(
    started: subprocess.Popen[bytes], ports: dict[str, int]
) -> None:
    for probe in ("readinessProbe", "livenessProbe"):
        asked = head().container[probe]["httpGet"]
        assert str(asked["port"]) == head().start["dashboard-agent-listen-port"]
        assert answer(f"http://{HOST}:{ports['dashboard-agent-listen-port']}{asked['path']}") == 200
    jobs = f"http://{HOST}:{ports['dashboard-port']}/api/jobs/"
    assert answer(jobs) == 401
    assert answer(jobs, "another token") in (401, 403)
    assert answer(jobs, TOKEN) == 200
    assert answer(f"http://{HOST}:{ports['metrics-export-port']}/metrics") == 200
    assert started.poll() is None
