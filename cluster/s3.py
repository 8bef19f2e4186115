"""An S3 bucket as an ObjectStore: Amazon's, Ceph's, MinIO's or any other endpoint. The only file that uses boto3.

Endpoint, region, profile and credentials come from where boto3 always looks (AWS_ENDPOINT_URL, AWS_PROFILE, web
identity, ...), so workers need nothing but the store's URL. Checksums that older servers refuse are off; instead every
write carries its MD5, every object the SHA-256 of its bytes, and every read is compared with it. Retries are ours and
not botocore's: bounded in seconds, and aware that a write whose answer was lost may have happened.
"""

import hashlib
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import cache
from typing import Any, NoReturn, TypeVar

import boto3
from botocore import exceptions as boto
from botocore.config import Config
from botocore.parsers import ResponseParserError

from cluster import s3_observer
from cluster.objects import Entry, check_key, check_size
from cluster.redact import redacted
from cluster.s3_failures import (
    Local,
    Patience,
    S3Failure,
    is_absent,
    is_taken,
    is_unsupported,
    store_error,
)
from cluster.s3_upload import WRITER, Upload
from dass.errors import ConfigError, ObjectNotFoundError, StoreError

SINGLE_PUT_BYTES = 64 * 2**20  # above it, an object is written in parts
PAGE_KEYS = 1000  # of a listing; S3's bound
ASK_FIRST_BYTES = 2**20  # above it, one more question is cheaper than an upload in vain
CHECK_S = 8.0  # patience of the check before a job: a wrong endpoint is told soon

_CONNECTIONS = 64
_BUCKET = re.compile(r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
SHA256 = "sha256"  # metadata: of the object's bytes

_Out = TypeVar("_Out")


@dataclass(frozen=True)
class S3Store:
    """The objects of a bucket below a prefix; see ObjectStore. What is pickled is the place, never a connection.

    The bucket should keep no versions. It should end uploads that are never completed (a lifecycle rule): a writer that is
    killed in the middle of a large object leaves parts that no listing shows. On a server that cannot write under a
    condition, two writers of one key at the same instant may both get True from `put_if_absent`.
    """

    bucket: str
    prefix: str = ""
    patience: Patience = Patience()

    @classmethod
    def parse(cls, place: str, patience_s: float | None = None) -> "S3Store":
        """The store at `bucket/prefix`; ConfigError when either is not legal."""
        bucket, _, prefix = place.rstrip("/").partition("/")
        try:
            legal = bool(_BUCKET.fullmatch(bucket)) and (not prefix or bool(check_key(prefix)))
        except StoreError:
            legal = False
        if not legal:
            raise ConfigError(
                "a store must be a folder or s3://bucket/prefix, a bucket being 3 to 63 lower-case letters, digits, "
                f"dots and hyphens, got {redacted(f's3://{place}')!r}; correct the URL"
            )
        return cls(bucket, prefix, Patience() if patience_s is None else Patience(patience_s))

    @property
    def url(self) -> str:
        """The text that `open_store` takes."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def is_remote(self) -> bool:
        """Always."""
        return True

    def put(self, key: str, data: bytes) -> None:
        """See ObjectStore."""
        self._write(key, data, {})

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See ObjectStore."""
        if len(data) > ASK_FIRST_BYTES and self.exists(key):
            return False
        return self._write(key, data, {"IfNoneMatch": "*"})

    def get(self, key: str) -> bytes:
        """See ObjectStore; StoreError when the bytes are not those that were written."""

        def attempt() -> bytes:
            answer = self._client.get_object(**self._at(key))
            check_size(key, answer["ContentLength"])
            return _checked(_whole(answer, key), answer)

        return self._call("read", key, attempt)

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """See ObjectStore; checks how many bytes come, not which."""
        if length == 0:
            self.size(key)
            return b""

        def attempt() -> bytes:
            try:
                answer = self._client.get_object(**self._at(key), Range=f"bytes={start}-{start + length - 1}")
            except boto.ClientError as error:
                if error.response["Error"]["Code"] in ("InvalidRange", "416"):  # the object ends before `start`
                    return b""
                raise
            data: bytes = answer["Body"].read()
            return data if "ContentRange" in answer else data[start : start + length]  # some servers know no ranges

        return self._call("read", key, attempt)

    def exists(self, key: str) -> bool:
        """See ObjectStore."""
        try:
            self._head(key)
        except ObjectNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        """See ObjectStore."""
        return int(self._head(key)["ContentLength"])

    def list(self, prefix: str = "") -> Iterator[str]:
        """See ObjectStore; what lies there under a key that is none of ours is passed over."""
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """See ObjectStore."""
        root = f"{self.prefix}/" if self.prefix else ""
        where: dict[str, Any] = {"Bucket": self.bucket, "Prefix": root + prefix, "MaxKeys": PAGE_KEYS}
        while True:
            page = self._call("list", prefix, lambda: self._client.list_objects_v2(**where))
            for found in page.get("Contents", ()):
                with suppress(StoreError):
                    yield Entry(check_key(found["Key"].removeprefix(root)), found["Size"], found["LastModified"])
            if not page.get("IsTruncated"):
                return
            where["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """See ObjectStore."""
        with suppress(ObjectNotFoundError):
            self._call("delete", key, lambda: self._client.delete_object(**self._at(key)))

    def check_writable(self) -> None:
        """See ObjectStore; also refuses a bucket that keeps versions. Gives up much sooner than other calls."""
        soon = replace(self, patience=replace(self.patience, total_s=min(CHECK_S, self.patience.total_s)))
        soon._refuse_versions()
        probe = f".probe-{uuid.uuid4().hex}"  # no legal key, so no listing shows it
        at = {"Bucket": self.bucket, "Key": "/".join(filter(None, (self.prefix, probe)))}
        soon._call("write", probe, lambda: soon._client.put_object(**at, Body=b"probe"))
        soon._call("delete", probe, lambda: soon._client.delete_object(**at))

    def _refuse_versions(self) -> None:
        try:
            answer = self._try(lambda: self._client.get_bucket_versioning(Bucket=self.bucket))
        except S3Failure as failure:
            if failure.code in ("AccessDenied", "403", "MethodNotAllowed", "405") or is_unsupported(failure):
                return  # those who may not ask are trusted
            raise self._error("write", "", failure) from failure
        if answer.get("Status") == "Enabled":
            raise self._error("write", "", S3Failure(Local.VERSIONED))

    def _write(self, key: str, data: bytes, condition: dict[str, str]) -> bool:
        """Write the object; False when the condition does not hold.

        An answer may be lost after the object was stored, and the next try then finds the key taken: the writer's name
        in the metadata tells whether by us.
        """
        metadata = {SHA256: hashlib.sha256(data).hexdigest(), WRITER: uuid.uuid4().hex}
        at = self._at(key)
        check_size(key, len(data))
        try:
            upload = Upload(self._try(lambda: self._client), self._try, at, data, metadata, condition)
            try:
                upload.put_whole() if len(data) <= SINGLE_PUT_BYTES else upload.put_in_parts()
            except S3Failure as failure:
                if condition and is_taken(failure):
                    return failure.tries > 1 and upload.is_there()
                if condition and is_unsupported(failure):
                    return not self.exists(key) and self._write(key, data, {})
                raise
        except S3Failure as failure:
            raise self._error("write", key, failure) from failure
        return True

    def _head(self, key: str) -> dict[str, Any]:
        at = self._at(key)
        try:
            answer: dict[str, Any] = self._try(lambda: self._client.head_object(**at))
        except S3Failure as failure:
            if not is_absent(failure) and failure.status in (400, 403):  # no body says why; that of a GET does
                self._call("read", key, lambda: self._client.get_object(**at)["Body"].close())
            self._raise("read", key, failure)
        return answer

    def _call(self, action: str, key: str, attempt: Callable[[], _Out]) -> _Out:
        """What `attempt` gives, tried as often as patience allows."""
        try:
            return self._try(attempt)
        except S3Failure as failure:
            self._raise(action, key, failure)

    def _try(self, attempt: Callable[[], _Out]) -> _Out:
        """As `_call`, but raises S3Failure."""

        def translated() -> _Out:
            with _failures():
                return attempt()

        return self.patience.call(translated)

    def _raise(self, action: str, key: str, failure: S3Failure) -> NoReturn:
        if is_absent(failure) and action != "list":
            raise ObjectNotFoundError(
                f"an object must exist to be read, got none under {key!r} in {self.url}; run the job that writes it first"
            ) from failure
        raise self._error(action, key, failure) from failure

    def _error(self, action: str, key: str, failure: S3Failure) -> StoreError:
        endpoint = ""
        with suppress(S3Failure), _failures():
            endpoint = self._client.meta.endpoint_url
        return store_error(failure, action, f"{self.url}/{key}".rstrip("/"), endpoint)

    def _at(self, key: str) -> dict[str, str]:
        """Where the object is, as boto3 wants to be told."""
        return {"Bucket": self.bucket, "Key": "/".join(filter(None, (self.prefix, check_key(key))))}

    @property
    def _client(self) -> Any:  # noqa: ANN401 - boto3 makes its clients at run time
        with _making:
            return client_of(os.getpid(), self.patience.total_s)


_making = threading.Lock()


@cache
def client_of(process: int, patience_s: float) -> Any:  # noqa: ANN401, ARG001 - a child must not share its parent's sockets
    """The client of this process, for all threads; its timeouts leave time for a second try."""
    client = boto3.session.Session().client(
        "s3",
        config=Config(
            connect_timeout=min(10.0, patience_s / 3),
            read_timeout=min(60.0, patience_s / 2),
            max_pool_connections=_CONNECTIONS,
            retries={"total_max_attempts": 1},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            tcp_keepalive=True,
        ),
    )
    s3_observer.watch(client)
    return client


def _whole(answer: dict[str, Any], key: str) -> bytes:
    """The bytes of an object, as far as they fit into memory."""
    try:
        return bytes(answer["Body"].read())
    except MemoryError as error:
        raise StoreError(
            f"an object must fit into memory, got {answer['ContentLength']} bytes under {key!r}; use a machine with more "
            "memory, or delete the object if nothing of yours can be as large"
        ) from error


def _checked(data: bytes, answer: dict[str, Any]) -> bytes:
    """The bytes of a whole object, when they are those that were written."""
    expected = answer.get("Metadata", {}).get(SHA256)
    if expected is not None and (found := hashlib.sha256(data).hexdigest()) != expected:
        raise S3Failure(Local.ALTERED, f"{len(data)} bytes with the SHA-256 {found} instead of {expected}")
    return data


_CODES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], Local], ...] = (
    ((boto.NoCredentialsError, boto.PartialCredentialsError, boto.InvalidConfigError), Local.NO_CREDENTIALS),
    ((boto.CredentialRetrievalError, boto.TokenRetrievalError, boto.SSOError), Local.BAD_CREDENTIALS),
    ((boto.ProfileNotFound, boto.ConfigParseError, boto.ConfigNotFound, ValueError), Local.SETTINGS),
    ((boto.ConnectTimeoutError, boto.ReadTimeoutError), Local.TIMEOUT),
    (boto.SSLError, Local.TLS),
    (boto.ConnectionError, Local.UNREACHABLE),
    ((boto.HTTPClientError, boto.IncompleteReadError, ResponseParserError), Local.BROKEN),
    (boto.BotoCoreError, Local.OTHER),
)


@contextmanager
def _failures() -> Iterator[None]:
    """Raises what boto3 raises as an S3Failure, and without it: its text, in a traceback, may hold the endpoint's password."""
    try:
        yield
    except boto.ClientError as error:
        if error.operation_name.startswith("AssumeRole"):  # of the server that gives credentials out
            raise S3Failure(Local.BAD_CREDENTIALS, str(error)) from None
        raise _answered(error.response) from None
    except (boto.BotoCoreError, ResponseParserError, ValueError) as error:
        code = next(code for kinds, code in _CODES if isinstance(error, kinds))
        raise S3Failure(code, str(error)) from None
    except (FileNotFoundError, PermissionError) as error:  # the file with a web identity's token
        raise S3Failure(Local.NO_CREDENTIALS, str(error)) from None
    except RecursionError as error:  # botocore 1.44 goes round and round when a redirect names no region
        raise S3Failure("PermanentRedirect") from error


def _answered(response: dict[str, Any]) -> S3Failure:
    error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
    sent: datetime | None = None
    with suppress(ValueError, TypeError):
        sent = parsedate_to_datetime(meta.get("HTTPHeaders", {}).get("date"))
    status = meta.get("HTTPStatusCode")
    return S3Failure(str(error.get("Code") or status), str(error.get("Message") or ""), status, sent)
