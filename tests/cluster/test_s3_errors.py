"""What a store in a bucket tries again, for how long, and what the user is told when it gives up."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster import s3
from cluster.objects import ObjectStore
from cluster.s3 import S3Store
from cluster.s3_failures import Patience
from dass.errors import ObjectNotFoundError, StoreError
from tests.cluster.faulty_server import (
    ALWAYS,
    Answer,
    CutRequest,
    Fault,
    FaultyServer,
    LoseAnswer,
    Stall,
)
from tests.cluster.s3_faulty import Bucket, bucket, faulty, proxy, store
from tests.cluster.s3_server import (
    environment,
    s3_server,
    use_endpoint,
)

__all__ = ["bucket", "faulty", "proxy", "s3_server", "store", "use_endpoint"]  # fixtures


# Trying again


VERBS: dict[str, Callable[[ObjectStore], object]] = {
    "put": lambda store: store.put("new", b"data"),
    "put_if_absent": lambda store: store.put_if_absent("new", b"data"),
    "get": lambda store: store.get("a"),
    "get_range": lambda store: store.get_range("a", 1, 2),
    "exists": lambda store: store.exists("a"),
    "size": lambda store: store.size("a"),
    "list": lambda store: list(store.list()),
    "delete": lambda store: store.delete("a"),
    "check_writable": lambda store: store.check_writable(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "fault", [Answer(status=503, code="SlowDown", times=3), LoseAnswer(times=2), CutRequest(times=2)], ids=type
)
def test_every_call_survives_a_bad_moment(verb: str, fault: Fault, store: S3Store, faulty: FaultyServer) -> None:
    store.put("a", b"data")
    expected = {"get": b"data", "get_range": b"at", "exists": True, "size": 4, "list": ["a"], "put_if_absent": True}
    fault = replace(fault)
    faulty.faults.append(fault)
    assert VERBS[verb](store) == expected.get(verb)
    assert fault.times == 0


@pytest.mark.parametrize("verb", VERBS)
def test_a_server_that_keeps_failing_is_given_up(verb: str, store: S3Store, faulty: FaultyServer) -> None:
    store.put("a", b"data")
    faulty.faults.append(Answer(status=503, code="SlowDown", times=ALWAYS))
    with pytest.raises(
        StoreError, match=r"failing with (SlowDown|503).*after \d+ tries in \d+ s; see that it is healthy"
    ):
        VERBS[verb](store)
    limit_s = s3.CHECK_S if verb == "check_writable" else 30
    assert 0 < store.patience.clock() <= limit_s


def test_a_server_that_never_answers_is_given_up(store: S3Store, faulty: FaultyServer) -> None:
    hasty = replace(store, patience=Patience(0.4))
    faulty.faults.append(Stall(times=ALWAYS))
    with pytest.raises(StoreError, match=r"cannot read .*no complete answer came in time.*; see that the endpoint"):
        hasty.get("a")


# What the user is told


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (403, "AccessDenied", r"permission is denied \(said the server\); grant these credentials s3:ListBucket"),
        (403, "InvalidAccessKeyId", "the access key id is not known there .*; correct AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "the secret access key is wrong .*; correct AWS_SECRET_ACCESS_KEY"),
        (400, "ExpiredToken", "the credentials have expired .*; get new ones"),
        (400, "InvalidToken", "the session token is not valid .*; correct AWS_SESSION_TOKEN"),
        (403, "QuotaExceeded", "the store is full or a quota is used up .*; free some space"),
        (400, "EntityTooLarge", "the store is full or a quota is used up .*; free some space"),
        (507, "InsufficientStorage", "the store is full or a quota is used up .*; free some space"),
        (301, "PermanentRedirect", ".* in another region.*; set AWS_DEFAULT_REGION"),
        (400, "AuthorizationHeaderMalformed", ".* in another region.*; set AWS_DEFAULT_REGION"),
        (405, "MethodNotAllowed", "the answer is (MethodNotAllowed|405) .*; see that the endpoint .* is an S3 server"),
    ],
)
def test_what_no_retry_cures_is_told_at_once_with_its_remedy(
    status: int, code: str, told: str, store: S3Store, faulty: FaultyServer
) -> None:
    faulty.faults.append(Answer(status=status, code=code, times=ALWAYS))
    for verb in ("put", "get", "exists", "list", "delete"):
        with pytest.raises(StoreError, match=rf"cannot \w+ s3://{store.bucket}/some/prefix.* at http://127.*: {told}"):
            VERBS[verb](store)
    assert store.patience.clock() == 0


@pytest.mark.parametrize(("ahead_s", "told"), [(3600, "ahead of"), (-3600, "behind")])
def test_a_wrong_clock_is_told_with_its_difference(
    ahead_s: int, told: str, store: S3Store, faulty: FaultyServer
) -> None:
    date = format_datetime(datetime.now(UTC) - timedelta(seconds=ahead_s), usegmt=True)
    faulty.faults.append(Answer(status=403, code="RequestTimeTooSkewed", headers={"Date": date}, times=ALWAYS))
    with pytest.raises(
        StoreError, match=rf"this machine's clock is 3[56]\d\d s {told} the server's.*; set this machine"
    ):
        store.get("a")


def test_a_bucket_that_is_not_there_is_no_absent_object(store: S3Store) -> None:
    nowhere = replace(store, bucket="bucket-that-is-not-there")
    for verb in ("put", "put_if_absent", "get", "get_range", "list", "check_writable"):
        with pytest.raises(StoreError, match=r"the bucket does not exist .*; create it") as caught:
            VERBS[verb](nowhere)
        assert not isinstance(caught.value, ObjectNotFoundError)


def test_a_bucket_that_keeps_versions_is_refused(store: S3Store, bucket: Bucket) -> None:
    bucket.keep_versions()
    with pytest.raises(
        StoreError, match=r"the bucket keeps old versions.*; use a bucket of its own without versioning"
    ):
        store.check_writable()


@pytest.mark.parametrize(
    ("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented"), (405, "MethodNotAllowed")]
)
def test_who_may_not_ask_for_versions_may_still_write(
    status: int, code: str, store: S3Store, faulty: FaultyServer
) -> None:
    faulty.faults.append(Answer("GET", "versioning", status=status, code=code, times=ALWAYS))
    store.check_writable()


@pytest.mark.parametrize(("method", "verb"), [("PUT", "write"), ("DELETE", "delete")])
def test_a_bucket_to_read_only_is_refused(method: str, verb: str, store: S3Store, faulty: FaultyServer) -> None:
    faulty.faults.append(Answer(method, status=403, code="AccessDenied", times=ALWAYS))
    with pytest.raises(StoreError, match=f"cannot {verb} s3://.*permission is denied"):
        store.check_writable()


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "no credentials were found .*; set AWS_ACCESS"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "no credentials were found .*AWS_SECRET_ACCESS_KEY.*; set AWS_ACCESS"),
        ({"AWS_PROFILE": "nobody"}, r"settings .* cannot be used .*nobody.*; correct AWS_ENDPOINT_URL, AWS_PROFILE"),
        ({"AWS_ENDPOINT_URL": "not a url"}, r"settings .* cannot be used .*not a url.*; correct AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "at http://127.0.0.1:9: nothing answers there .*gave up after"),
    ],
)
def test_settings_that_lead_nowhere_are_told(
    variables: dict[str, str | None], told: str, store: S3Store, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_refusal({**environment(s3_server), **variables}, told, store, monkeypatch)


def check_refusal(variables: dict[str, str | None], told: str, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    s3.client_of.cache_clear()
    try:
        for verb in ("check_writable", "get"):
            with pytest.raises(StoreError, match=told):
                VERBS[verb](store)
    finally:
        s3.client_of.cache_clear()


# A web identity


@contextmanager
def refusing_sts(code: str) -> Iterator[str]:
    """A server of tokens that gives none; its URL."""
    body = (
        '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
        f"<Code>{code}</Code><Message>no role for you</Message></Error></ErrorResponse>"
    ).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(403)
            self.send_header("Content-Type", "text/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture
def web_identity(s3_server: str, tmp_path: Path) -> dict[str, str | None]:
    """What a pod's identity is made of, in the place of keys."""
    (tmp_path / "token").write_text("a token")
    return {
        **environment(s3_server),
        "AWS_ACCESS_KEY_ID": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/dass",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "token"),
    }


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidIdentityToken", "ExpiredTokenException"])
def test_a_role_that_is_refused_is_told_with_its_trust_policy(
    code: str, web_identity: dict[str, str | None], store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = rf"the credentials cannot be had \(.*{code}.*no role for you\).*; renew them.* or let the trust policy"
    with refusing_sts(code) as url:
        check_refusal({**web_identity, "AWS_ENDPOINT_URL_STS": url}, told, store, monkeypatch)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/nowhere/token", r"no credentials were found \(.*/nowhere/token'\); set AWS_"),
        ("AWS_ROLE_ARN", "", r"no credentials were found \(.* has no role ARN configured.*\); set AWS_"),
    ],
)
def test_a_web_identity_without_its_token_or_role_is_told(
    name: str,
    value: str,
    told: str,
    web_identity: dict[str, str | None],
    store: S3Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_refusal({**web_identity, name: value}, told, store, monkeypatch)
