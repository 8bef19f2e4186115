"""What can go wrong on the way to an S3 bucket: what is worth another try, for how long, and what the user is told.

Pure but for the clock and the sleep that come in, and the observer that hears of repeated requests. Amazon's servers,
Ceph, MinIO and others name their errors alike; what is no answer of a server, such as a refused connection, has one of
the codes of `Local`.
"""

import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

from cluster import s3_observer
from cluster.redact import redacted
from dass.errors import StoreError

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0
TRIES_OF_ALTERED = 3  # it may be the network; if it is the object, more tries read the same

_Out = TypeVar("_Out")


class Local(StrEnum):
    """Codes of failures that no server reported."""

    UNREACHABLE = "Unreachable"
    TIMEOUT = "Timeout"
    BROKEN = "Broken"  # the connection ended before the answer did, or the answer is no S3 answer
    TLS = "TLS"
    ALTERED = "Altered"  # the bytes are not those that were written
    NO_CREDENTIALS = "NoCredentials"
    BAD_CREDENTIALS = "BadCredentials"  # they are configured, but cannot be had
    SETTINGS = "Settings"  # endpoint, profile or files of the configuration cannot be used
    VERSIONED = "Versioned"
    OTHER = "Other"


class S3Failure(Exception):  # noqa: N818 - it never leaves cluster/s3.py, where it becomes a StoreError
    """A request failed.

    Args:
        code: S3's word for it, or one of Local.
        message: the server's or the library's own text.
        status: of the HTTP answer, where there was one.
        server_time: the server's clock at its answer.
    """

    def __init__(
        self, code: str, message: str = "", status: int | None = None, server_time: datetime | None = None
    ) -> None:
        self.code = code
        self.message = redacted(" ".join(message.split()))
        super().__init__(code, self.message, status, server_time)
        self.status = status
        self.server_time = server_time
        self.tries = 1
        self.elapsed_s = 0.0


_RETRYABLE = {
    *(Local.UNREACHABLE, Local.TIMEOUT, Local.BROKEN, Local.TLS, Local.ALTERED, Local.BAD_CREDENTIALS),
    *("SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "ThrottlingException", "TooManyRequests"),
    *("RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "Busy"),
    *("BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"),  # the body was damaged on its way
    *("ConditionalRequestConflict", "OperationAborted"),  # another writer is at the same key
}
_FULL = {"QuotaExceeded", "EntityTooLarge", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "507"}
_UNSUPPORTED = {"NotImplemented", "501"}
_ABSENT = {"NoSuchKey", "404"}


def is_retryable(failure: S3Failure) -> bool:
    """Whether the same request may succeed later: lost connections, overload, errors of the server's own."""
    if failure.code in _RETRYABLE:
        return True
    is_final = failure.code in _FULL | _UNSUPPORTED or failure.status in (501, 507)
    return not is_final and failure.status is not None and (failure.status >= 500 or failure.status in (408, 429))


def is_absent(failure: S3Failure) -> bool:
    """Whether there is no such object; a bucket that is not there is another matter."""
    return failure.code in _ABSENT


def is_taken(failure: S3Failure) -> bool:
    """Whether a conditional write found the key taken."""
    return failure.code in ("PreconditionFailed", "412")


def is_unsupported(failure: S3Failure) -> bool:
    """Whether the server does not know this kind of request."""
    return failure.code in _UNSUPPORTED or failure.status == 501


@dataclass(frozen=True)
class Patience:
    """For how long a request is tried: again and again with growing random pauses until `total_s` are spent.

    A try that has begun is not cut short, so the end may come later by the client's timeout.
    """

    total_s: float = 120.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def call(self, attempt: Callable[[], _Out]) -> _Out:
        """What `attempt` gives, at the first try that succeeds.

        Raises:
            S3Failure: the last one, with the number of tries and the seconds they took.
        """
        began = self.clock()
        for tries in itertools.count(1):
            try:
                return attempt()
            except S3Failure as failure:
                failure.tries, failure.elapsed_s = tries, self.clock() - began
                pause_s = random.uniform(0, longest_pause_s(tries))
                is_spent = failure.elapsed_s + pause_s > self.total_s
                if not is_retryable(failure) or is_spent or tries >= _most_tries(failure):
                    raise
                s3_observer.repeated(failure.code)
            self.sleep(pause_s)
        raise AssertionError("the loop above ends by itself")


def longest_pause_s(tries: int) -> float:
    """The upper end of the pause after that many tries; the pause is drawn below it, so that clients spread out."""
    return float(min(FIRST_PAUSE_S * 2 ** min(tries - 1, 30), LONGEST_PAUSE_S))


def _most_tries(failure: S3Failure) -> float:
    return TRIES_OF_ALTERED if failure.code == Local.ALTERED else float("inf")


_PERMISSION = (
    "permission is denied",
    "grant these credentials s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject on it",
)
_EXPIRED = ("the credentials have expired", "get new ones and submit again: what is finished is kept")
_KEY_ID = ("the access key id is not known there", "correct AWS_ACCESS_KEY_ID or the endpoint (AWS_ENDPOINT_URL)")
_SECRET = ("the secret access key is wrong", "correct AWS_SECRET_ACCESS_KEY, and see that nothing rewrites requests")
_REGION = (
    "the server sends us elsewhere, perhaps because the bucket lies in another region",
    "set AWS_DEFAULT_REGION to the bucket's region, or correct the endpoint (AWS_ENDPOINT_URL)",
)
_NO_SPACE = ("the store is full or a quota is used up", "free some space or ask for more")
_UNHEALTHY = ("the server keeps failing", "see that it is healthy, then submit again: what is finished is kept")
_SILENT = (
    "no complete answer came in time",
    "see that the endpoint (AWS_ENDPOINT_URL) is right, up and not overloaded",
)

_WORDS: dict[str, tuple[str, str]] = {
    "NoSuchBucket": ("the bucket does not exist", "create it or correct the bucket's name"),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "403"), _PERMISSION),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"), _EXPIRED),
    "InvalidToken": ("the session token is not valid", "correct AWS_SESSION_TOKEN, or unset it"),
    "InvalidAccessKeyId": _KEY_ID,
    "SignatureDoesNotMatch": _SECRET,
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "301", "307"), _REGION),
    **dict.fromkeys(_FULL, _NO_SPACE),
    Local.UNREACHABLE: ("nothing answers there", "correct the endpoint (AWS_ENDPOINT_URL) or start the server"),
    Local.TIMEOUT: _SILENT,
    Local.BROKEN: _SILENT,
    Local.TLS: ("no secure connection can be made", "correct http or https in the endpoint, or set AWS_CA_BUNDLE"),
    Local.ALTERED: (
        "the bytes are not those that were written",
        "delete the object and run the job again that writes it",
    ),
    Local.NO_CREDENTIALS: (
        "no credentials were found",
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role",
    ),
    Local.BAD_CREDENTIALS: (
        "the credentials cannot be had",
        "renew them, for example with `aws sso login`, or let the trust policy of the role (AWS_ROLE_ARN) name this identity",
    ),
    Local.SETTINGS: (
        "the settings of the client cannot be used",
        "correct AWS_ENDPOINT_URL, AWS_PROFILE or the files that hold your AWS configuration",
    ),
    Local.VERSIONED: (
        "the bucket keeps old versions, which fill it and undo writes that must happen once",
        "use a bucket of its own without versioning",
    ),
}


def store_error(failure: S3Failure, action: str, place: str, endpoint: str, now: datetime | None = None) -> StoreError:
    """What to tell the user when `action` (a verb) on `place` met `failure`; `now` is this machine's clock."""
    what, remedy = _words(failure, now or datetime.now(UTC))
    said = f" ({failure.message})" if failure.message else ""
    tries = f", gave up after {failure.tries} tries in {failure.elapsed_s:.0f} s" if failure.tries > 1 else ""
    at = f" at {redacted(endpoint)}" if endpoint else ""
    return StoreError(
        f"the store must be readable and writable, cannot {action} {place}{at}: {what}{said}{tries}; {remedy}, "
        "or use another store"
    )


def _words(failure: S3Failure, now: datetime) -> tuple[str, str]:
    if failure.code == "RequestTimeTooSkewed":
        return _skew(failure, now), "set this machine's clock, for example with NTP"
    if failure.status == 507:
        return _NO_SPACE
    if words := _WORDS.get(failure.code):
        return words
    if is_retryable(failure):
        what, remedy = _UNHEALTHY
        return f"{what} with {failure.code}", remedy
    return (
        f"the answer is {failure.code}",
        "see that the endpoint (AWS_ENDPOINT_URL) is an S3 server and the URL is right",
    )


def _skew(failure: S3Failure, now: datetime) -> str:
    if failure.server_time is None:
        return "this machine's clock is wrong"
    off_s = (now - failure.server_time).total_seconds()
    return f"this machine's clock is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} the server's"
