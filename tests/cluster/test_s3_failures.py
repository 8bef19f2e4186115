import pickle
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.s3_failures import (
    LONGEST_PAUSE_S,
    Local,
    Patience,
    S3Failure,
    is_absent,
    is_retryable,
    is_unsupported,
    longest_pause_s,
    store_error,
)
from cluster.s3_upload import is_other

MD5 = bytes.fromhex("5d41402abc4b2a76b9719d911017c592")  # of b"hello"


class Script:
    """Fails as told, then succeeds; each try takes a second, and time passes in sleeps."""

    def __init__(self, *codes: str) -> None:
        self.codes = list(codes)
        self.now = 0.0
        self.pauses: list[float] = []

    def __call__(self) -> str:
        self.now += 1
        if self.codes:
            raise S3Failure(self.codes.pop(0))
        return "done"

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def patience(self, total_s: float) -> Patience:
        return Patience(total_s, lambda: self.now, self.sleep)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, 503) for code in ("SlowDown", "ServiceUnavailable")),
        *((code, None) for code in (Local.UNREACHABLE, Local.TIMEOUT, Local.BROKEN, Local.ALTERED)),
        *((code, 400) for code in ("RequestTimeout", "BadDigest", "IncompleteBody")),
        *((code, 409) for code in ("ConditionalRequestConflict", "OperationAborted")),
        *((str(status), status) for status in (408, 429, 500, 502, 503, 504, 599)),
        ("InternalError", 200),
    ],
)
def test_what_may_pass_is_tried_again(code: str, status: int | None) -> None:
    assert is_retryable(S3Failure(code, "", status))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((code, 403) for code in ("AccessDenied", "SignatureDoesNotMatch", "QuotaExceeded", "RequestTimeTooSkewed")),
        *((str(status), status) for status in (301, 400, 401, 403, 404, 405, 409, 411, 412, 416, 501, 507)),
        *((code, None) for code in (Local.NO_CREDENTIALS, Local.SETTINGS, Local.VERSIONED, Local.OTHER)),
        ("BucketAlreadyExists", 409),
        ("XMinioStorageFull", 507),
    ],
)
def test_what_stays_wrong_is_not_tried_again(code: str, status: int | None) -> None:
    assert not is_retryable(S3Failure(code, "", status))


def test_a_missing_bucket_is_no_missing_object() -> None:
    assert is_absent(S3Failure("NoSuchKey", "", 404))
    assert is_absent(S3Failure("404", "", 404))  # of a HEAD, which has no body
    assert not is_absent(S3Failure("NoSuchBucket", "", 404))
    assert is_unsupported(S3Failure("NotImplemented", "", 501))


def test_patience_goes_on_until_it_succeeds() -> None:
    script = Script("SlowDown", Local.BROKEN, "500x", "SlowDown")
    with pytest.raises(S3Failure, match="500x") as caught:  # no server's code that may pass, and no status
        script.patience(100).call(script)
    assert (caught.value.tries, len(script.pauses)) == (3, 2)
    assert script.patience(100).call(script) == "done"


@given(st.floats(0, 500))
def test_patience_never_goes_on_beyond_its_seconds(total_s: float) -> None:
    script = Script(*["SlowDown"] * 10_000)
    with pytest.raises(S3Failure) as caught:
        script.patience(total_s).call(script)
    assert script.now <= max(total_s, 1) + 1  # the last try may begin at the very end
    assert script.now > total_s - LONGEST_PAUSE_S
    assert caught.value.elapsed_s == script.now
    assert all(pause <= longest_pause_s(number) for number, pause in enumerate(script.pauses, 1))


def test_pauses_double_up_to_a_bound_and_differ_between_clients() -> None:
    assert [longest_pause_s(tries) for tries in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert longest_pause_s(1000) == LONGEST_PAUSE_S
    first, second = (Script(*["SlowDown"] * 12) for _ in range(2))
    for script in (first, second):
        assert script.patience(1e6).call(script) == "done"
    assert first.pauses != second.pauses


def test_altered_bytes_are_read_a_few_times_only() -> None:
    script = Script(*[Local.ALTERED] * 100)
    with pytest.raises(S3Failure) as caught:
        script.patience(1e6).call(script)
    assert caught.value.tries == 3


@pytest.mark.parametrize("code", [*Local, "NoSuchBucket", "AccessDenied", "SlowDown", "RequestTimeTooSkewed", "Weird"])
def test_every_error_names_place_endpoint_and_remedy_in_one_line(code: str) -> None:
    failure = S3Failure(code, "two\n lines", 400)
    failure.tries, failure.elapsed_s = 4, 12.3
    error = store_error(failure, "write", "s3://bucket/a", "http://there")
    where = "the store must be readable and writable, cannot write s3://bucket/a at http://there: "
    pattern = rf"{where}.+ \(two lines\), gave up after 4 tries in 12 s; .+, or use another store"
    assert re.fullmatch(pattern, str(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


@pytest.mark.parametrize(("off_s", "told"), [(901, "901 s ahead of"), (-86400, "86400 s behind")])
def test_a_wrong_clock_is_told_with_its_difference(off_s: int, told: str) -> None:
    server = datetime(2026, 1, 2, tzinfo=UTC)
    failure = S3Failure("RequestTimeTooSkewed", "", 403, server)
    message = str(store_error(failure, "read", "s3://bucket/a", "", server + timedelta(seconds=off_s)))
    assert f"this machine's clock is {told} the server's" in message


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"ETag": f'"{MD5.hex()}"'}, False),
        ({"ETag": MD5.hex().upper()}, False),
        ({"ETag": f'"{"0" * 32}"'}, True),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "AES256"}, True),
        ({"ETag": f'"{"0" * 32}"', "ServerSideEncryption": "aws:kms"}, False),  # no MD5 of the bytes
        ({"ETag": f'"{"0" * 32}"', "SSECustomerAlgorithm": "AES256"}, False),
        ({"ETag": f'"{"0" * 32}-2"'}, False),
        ({}, False),
    ],
)
def test_an_etag_speaks_where_it_is_an_md5(answer: dict[str, str], expected: bool) -> None:
    assert is_other(answer, MD5) is expected
