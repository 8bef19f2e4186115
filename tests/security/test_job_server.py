"""The job server of a cluster lets nobody in who has no token."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ports import free_port

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

START_S = 120.0
PATHS = ("/api/version", "/api/jobs/", "/nodes?view=summary", "/api/cluster_status", "/logical/actors", "/api/v0/tasks")


def answer(port: int, path: str, token: str | None, data: bytes | None = None) -> tuple[int, bytes]:
    """The status and the body; data makes it a POST."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            return reply.status, reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """The port and the token of a head that runs as the README's cluster does."""
    place = tmp_path_factory.mktemp("ray")
    token = secrets.token_hex(32)
    (place / "token").write_text(token)
    (place / "token").chmod(0o600)
    port = free_port()
    dashboard = port + 1
    temporary = tempfile.mkdtemp(prefix="dass-")  # a short path, because Ray makes sockets below it
    ray = Path(sys.executable).with_name("ray")
    command = [
        *(str(ray), "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=1"),
        *("--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1", f"--temp-dir={temporary}"),
        *("--disable-usage-stats", f"--dashboard-agent-listen-port={port + 2}", f"--ray-client-server-port={port + 3}"),
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place / "token")}
    env |= {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1"}
    with (place / "log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            _wait(head, dashboard, token, place / "log")
            yield dashboard, token
        finally:
            family = [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
            head.terminate()
            for process in psutil.wait_procs(family, timeout=10)[1]:
                process.kill()
            head.wait()
            shutil.rmtree(temporary, ignore_errors=True)


def _wait(head: "subprocess.Popen[bytes]", port: int, token: str, log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert head.poll() is None, log.read_text()
        try:
            if answer(port, "/api/version", token)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_told_without_the_token(path: str, server: tuple[int, str]) -> None:
    port, token = server
    for wrong in (None, "0" * 64, token[:-1], token + "0", token.upper(), "Bearer"):
        status, body = answer(port, path, wrong)
        assert status in (401, 403), (wrong, status)
        assert token.encode() not in body


def test_no_job_is_taken_without_the_token(server: tuple[int, str], tmp_path: Path) -> None:
    port, token = server
    job = json.dumps({"entrypoint": f"touch {tmp_path}/touched"}).encode()
    for wrong in (None, "0" * 64):
        assert answer(port, "/api/jobs/", wrong, job)[0] in (401, 403)
    assert json.loads(answer(port, "/api/jobs/", token)[1]) == []
    assert not (tmp_path / "touched").exists()


def test_whoever_has_the_token_is_let_in(server: tuple[int, str]) -> None:
    port, token = server
    status, body = answer(port, "/api/version", token)
    assert (status, json.loads(body)["ray_version"]) == (200, "2.60.0")
    assert answer(port, "/api/jobs/", token)[0] == 200
