"""Keys, tokens and passwords reach no message, event, record, document, table or page."""

import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import s3
from cluster.events import EventLog
from cluster.objects import FolderStore, open_store
from cluster.redact import redacted
from cluster.runtime import session
from cluster.s3 import S3Store
from cluster.s3_failures import Patience
from dass.errors import ClusterError, ConfigError, DassError
from jobs import job
from tests.cluster.faulty_server import ALWAYS, Answer, FaultyServer
from tests.cluster.s3_server import UseEndpoint, bucket_url, raw_client, s3_server, use_endpoint
from tests.jobs.command import call, tree

__all__ = ["bucket_url", "s3_server", "use_endpoint"]

SECRET, SESSION, TOKEN, PASSWORD = (f"s3cr3t-{name}-0123456789abcdef" for name in ("key", "session", "ray", "password"))
SECRETS = (SECRET, SESSION, TOKEN, PASSWORD)
DATA = ("--recipe", "smoke")

Leave = Callable[..., str]


def leaked(*texts: str | bytes) -> list[str]:
    """Which secrets stand in the texts."""
    shown = b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts)
    return [secret for secret in SECRETS if secret.encode() in shown]


@pytest.fixture
def with_secrets(use_endpoint: UseEndpoint, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Points boto3 at an endpoint, with all secrets in the environment; impatient."""

    def use(endpoint: str) -> None:
        use_endpoint(endpoint, ("AKIDEXAMPLE", SECRET))
        monkeypatch.setenv("AWS_SESSION_TOKEN", SESSION)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        s3.client_of.cache_clear()

    monkeypatch.setattr(job, "FIRST_ANSWER_S", 0.3)
    monkeypatch.setattr(s3, "CHECK_S", 0.3)
    yield use
    s3.client_of.cache_clear()


def messages(url: str) -> Iterator[str]:
    """What every operation of a store says when it fails, with the traceback that Ray would print."""
    store = open_store(url, 0.3)
    for operation in (
        lambda: store.put("a", b"x"),
        lambda: store.get("a"),
        lambda: list(store.list()),
        lambda: store.size("a"),
        store.check_writable,
    ):
        with pytest.raises(DassError) as caught:
            operation()
        yield "".join(traceback.format_exception(caught.value))
        yield repr(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301 - as Ray sends it


ENDPOINTS = {
    "nothing answers": f"http://user:{PASSWORD}@127.0.0.1:9",
    "no name": f"http://{PASSWORD}@nobody.invalid",
    "no TLS": f"https://user:{PASSWORD}@127.0.0.1:9/path",
    "no endpoint": f"http://user:{PASSWORD}@",
    "no scheme": f"user:{PASSWORD}@127.0.0.1",
    "no port": f"http://user:{PASSWORD}@127.0.0.1:port",
    "a slash": f"http://user:a/{PASSWORD}@127.0.0.1:9",
}


@pytest.mark.parametrize("form", ENDPOINTS)
def test_the_password_of_an_endpoint_is_never_shown(form: str, with_secrets: Callable[[str], None]) -> None:
    with_secrets(ENDPOINTS[form])
    said = list(messages("s3://bucket/prefix"))
    answer = call("status", "--store", "s3://bucket/prefix")
    assert answer.code == 1
    assert leaked(*said, answer.out, answer.err) == []


@pytest.mark.parametrize(
    ("code", "status"),
    [("SignatureDoesNotMatch", 403), ("InvalidToken", 400), ("ExpiredToken", 400), ("AccessDenied", 403), ("Odd", 418)],
)
def test_a_refusal_shows_no_secret(
    code: str, status: int, s3_server: str, bucket_url: str, with_secrets: Callable[[str], None]
) -> None:
    with FaultyServer(s3_server) as server:
        with_secrets(server.url.replace("://", f"://user:{PASSWORD}@"))
        echo = f"<StringToSign>{PASSWORD}</StringToSign><Resource>http://user:{PASSWORD}@host/x</Resource>"
        server.faults.append(Answer(status=status, code=code, inside=echo, times=ALWAYS))
        answer = call("collect", *DATA, "--store", bucket_url)
        assert leaked(*messages(bucket_url), answer.out, answer.err) == []
        assert answer.code == 1


def test_a_missing_bucket_shows_no_secret(s3_server: str, with_secrets: Callable[[str], None]) -> None:
    with_secrets(s3_server.replace("://", f"://user:{PASSWORD}@"))
    answer = call("collect", *DATA, "--store", "s3://no-such-bucket")
    assert answer.code == 1
    assert leaked(answer.out, answer.err) == []


def test_a_password_in_the_url_of_a_store_is_not_shown() -> None:
    for url in (f"s3://user:{PASSWORD}@bucket/prefix", f"https://user:{PASSWORD}@host/bucket"):
        with pytest.raises(ConfigError) as caught:
            open_store(url)
        assert leaked(str(caught.value)) == []
        answer = call("status", "--store", url)
        assert (answer.code, leaked(answer.out, answer.err)) == (2, [])


@pytest.mark.filterwarnings("ignore")  # Ray's
def test_an_address_of_ray_that_fails_shows_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("RAY_ADDRESS", f"unknown://user:{PASSWORD}@127.0.0.1:9")
    with pytest.raises(ClusterError) as caught, session():
        pass
    assert leaked(str(caught.value)) == []


def test_a_failure_is_written_to_the_events_without_its_secrets(
    with_secrets: Callable[[str], None], tmp_path: Path
) -> None:
    with_secrets(ENDPOINTS["nothing answers"])
    with pytest.raises(DassError) as caught:
        S3Store("bucket", patience=Patience(0.1)).get("a")
    store = FolderStore(tmp_path)
    with EventLog(store, "lane-0") as events:
        events.emit("failed", reason=f"{type(caught.value).__name__}: {caught.value}")
    written = [data for data in tree(tmp_path).values() if data is not None]
    assert b"nothing answers there" in b"".join(written)
    assert leaked(*written) == []


def test_a_store_that_is_sent_to_a_worker_holds_no_secret(with_secrets: Callable[[str], None]) -> None:
    with_secrets(ENDPOINTS["nothing answers"])
    store = open_store("s3://bucket/prefix")
    assert leaked(pickle.dumps(store), repr(store), store.url) == []


def test_nothing_that_a_job_writes_or_shows_holds_a_secret(
    s3_server: str, bucket_url: str, with_secrets: Callable[[str], None]
) -> None:
    with_secrets(s3_server.replace("://", f"://user:{PASSWORD}@"))
    for verb in (("data", *DATA), ("report", *DATA), ("status",), ("data", *DATA, "--set", "data.classes_per_task=2")):
        answer = call(*verb, "--store", f"{bucket_url}/runs", "--json")
        assert answer.code == 0, answer.err
        assert leaked(answer.out, answer.err) == []
    raw, bucket = raw_client(s3_server), bucket_url.removeprefix("s3://")
    keys = [entry["Key"] for entry in raw.list_objects_v2(Bucket=bucket)["Contents"]]
    assert {"runs/report.html", "runs/report.json"} < set(keys)
    for key in keys:
        found = raw.get_object(Bucket=bucket, Key=key)
        assert leaked(found["Body"].read(), key, repr(found["Metadata"])) == []


def test_what_is_no_secret_stays() -> None:
    text = "cannot read s3://bucket/a@b at https://host:9/x?versionId=1: mail@host"
    assert redacted(text) == text
    assert redacted("user:p/w@h") == "***@h"
    assert redacted("http://u:p@h/x, https://t@h") == "http://***@h/x, https://***@h"
    assert redacted("h?X-Amz-Signature=abc&x=1&X-Amz-Security-Token=d") == (
        "h?X-Amz-Signature=***&x=1&X-Amz-Security-Token=***"
    )
