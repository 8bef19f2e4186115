"""infra/local/cluster.sh with a command line in Ray's place; tests/jobs/test_submit.py runs it with Ray itself."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.infra.overlays import INFRA
from tests.ports import free_port

RAY = """#!/usr/bin/env bash
echo "$RAY_AUTH_TOKEN_PATH: $*" >>"$CALLS"
case "$*" in
    start*) exec sleep 60 ;;
    *" python -m jobs "*) exit 3 ;;
esac
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the script, and the command line where the script looks for Ray's."""
    for name, text in (
        ("infra/local/cluster.sh", (INFRA / "local" / "cluster.sh").read_text()),
        (".venv/bin/ray", RAY),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def call(place: Path, *arguments: str, port: int, cluster: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CALLS": str(place / "calls"),
        "DASS_CLUSTER": cluster,
        "DASS_DASHBOARD_PORT": str(port),
    }
    return subprocess.run(
        ["infra/local/cluster.sh", *arguments],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class NoJobs(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard does, which knows no job."""

    def do_GET(self) -> None:
        is_version = self.path == "/api/version"
        self.send_response(200 if is_version else 404)
        self.end_headers()
        self.wfile.write(b'{"version": "4", "ray_version": "2.60.0"}' if is_version else b"no such job")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Nothing."""


@pytest.fixture
def dashboard() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), NoJobs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_a_submission_that_makes_no_job_fails_as_it_failed(place: Path, dashboard: int) -> None:
    (place / "here").mkdir()
    (place / "here" / "pid").write_text(str(os.getpid()))  # of a process that lives
    (place / "here" / "token").write_text("0" * 64)
    done = call(place, "submit", "collect", "--store", "/a", port=dashboard, cluster=str(place / "here"))
    assert done.returncode == 3, done.stderr
    assert "error: the cluster must know the job dass-collect-" in done.stderr
    assert "no such job" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_relative_folder_is_that_of_the_caller_for_ray_too(place: Path) -> None:
    done = call(place, "quickstart", port=free_port(), cluster="some/where")
    folder = place / "some" / "where"
    assert done.returncode == 3, done.stderr  # nobody answers; it ends as the submission did
    assert "Traceback" not in done.stderr
    calls = (place / "calls").read_text().splitlines()
    assert [line.partition(": ")[0] for line in calls] == [str(folder / "token")] * 3
    submitted = f"-- python -m jobs quickstart --store {folder}/store"
    assert sum(line.endswith(submitted) for line in calls) == 1  # the server, in the background, may call after it
    assert not (folder / "pid").exists()
