"""A real S3 server for tests: moto in a process of its own, on loopback; `python -m tests.cluster.s3_server` runs it.

Import the fixtures where they are wanted: `s3_server` (one process for all tests), `bucket_url` (a new bucket and the
AWS_* variables that lead to it, for this process and those it starts).
"""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import boto3
import pytest

from cluster import s3

ROOT = Path(__file__).resolve().parents[2]
PART_BYTES = 1000  # the server takes parts as small as this, so that tests need no large objects
KEYS = ("testing", "testing")  # the key id and its secret
UseEndpoint = Callable[..., None]

_in_use: dict[str, str] = {}  # what the client of this process was made with


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The endpoint of the server."""
    with running_server() as endpoint:
        yield endpoint


@contextmanager
def running_server() -> Iterator[str]:
    """The server, for the time of a `with` block; its endpoint."""
    command = [sys.executable, "-m", "tests.cluster.s3_server"]
    env = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": str(PART_BYTES)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd=ROOT, env=env
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture
def use_endpoint(monkeypatch: pytest.MonkeyPatch) -> UseEndpoint:
    """Lets boto3 find an endpoint, here and in processes that the test starts; nothing of the user's own is read."""

    def use(endpoint: str, keys: tuple[str, str] = KEYS) -> None:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        variables = environment(endpoint, keys)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        if _in_use != variables:  # a new client takes a tenth of a second
            s3.client_of.cache_clear()
            _in_use.clear()
            _in_use.update(variables)

    return use


@pytest.fixture
def bucket_url(s3_server: str, use_endpoint: UseEndpoint) -> str:
    """`s3://` and a new bucket on the server."""
    use_endpoint(s3_server)
    return make_bucket(s3_server)


def environment(endpoint: str, keys: tuple[str, str] = KEYS) -> dict[str, str]:
    """What a user sets to work with this endpoint, and only with it."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": keys[0],
        "AWS_SECRET_ACCESS_KEY": keys[1],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@cache
def raw_client(endpoint: str, keys: tuple[str, str] = KEYS) -> Any:
    """boto3 as it comes: another way to the objects than the one under test."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
    )


def make_bucket(endpoint: str, keys: tuple[str, str] = KEYS) -> str:
    """A new bucket; its URL."""
    name = f"bucket-{uuid.uuid4().hex}"
    raw_client(endpoint, keys).create_bucket(Bucket=name)
    return f"s3://{name}"


def main() -> None:
    """Serve until stdin ends, which it does when the tests do; the first line on stdout is the endpoint."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()  # moto itself lets two conditional writes at once both pass

    def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Any:
        with turn:
            return list(application(environ, start_response))

    server = make_server("127.0.0.1", 0, one_at_a_time, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdout.write(f"http://127.0.0.1:{server.server_port}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    import logging

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    main()
