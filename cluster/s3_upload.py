"""Writing an object to S3, whole or in parts: nothing is seen before the last request, and what is stored is verified.

`Request` carries out one request of the client, tried again as patience allows; see cluster/s3.py.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from cluster.s3_failures import Local, S3Failure, is_absent

PART_BYTES = 32 * 2**20
MOST_PARTS = 10_000  # S3's bound
WRITER = "writer"  # metadata: the name of the call that wrote the object

_MD5 = re.compile(r"[0-9a-f]{32}")
_Out = TypeVar("_Out")


class Request(Protocol):
    """Calls its argument, which makes one request, until that succeeds; raises S3Failure with the number of tries."""

    def __call__(self, attempt: Callable[[], _Out]) -> _Out:
        """What `attempt` gives."""


@dataclass(frozen=True)
class Upload:
    """One write under way.

    Args:
        client: boto3's.
        request: see Request.
        at: bucket and key.
        data: the bytes.
        metadata: what the object gets, the WRITER's name among it.
        condition: IfNoneMatch, or nothing.
    """

    client: Any
    request: Request
    at: Mapping[str, str]
    data: bytes = field(repr=False)
    metadata: Mapping[str, str]
    condition: Mapping[str, str]

    def put_whole(self) -> None:
        """One request; S3Failure when it failed or the condition does not hold."""
        digest, condition = _md5(self.data), dict(self.condition)

        def attempt() -> None:
            answer = self.client.put_object(
                **self.at, Body=self.data, ContentMD5=_base64(digest), Metadata=self.metadata, **condition
            )
            if is_other(answer, digest):
                condition.clear()  # the key is ours now, and the next try has to replace what is there
                raise S3Failure(Local.ALTERED, f"the server has stored bytes with the ETag {answer['ETag']}")

        self.request(attempt)

    def put_in_parts(self) -> None:
        """A multipart upload, for objects of any length; a failed one leaves no parts behind where that can be helped."""
        created = self.request(
            lambda: self.client.create_multipart_upload(**self.at, Metadata=self.metadata)  # seen by nobody yet
        )
        upload = {**self.at, "UploadId": created["UploadId"]}
        part_bytes = max(PART_BYTES, -(-len(self.data) // MOST_PARTS))
        try:
            parts = [
                {"PartNumber": number, "ETag": self._put_part(upload, number, self.data[start : start + part_bytes])}
                for number, start in enumerate(range(0, len(self.data), part_bytes), 1)
            ]
            self._complete(upload, parts)
        except BaseException:  # an interruption too: parts that nobody completes are paid for and seen by nobody
            with suppress(Exception):  # one try: the failure above is what matters
                self.client.abort_multipart_upload(**upload)
            raise
        size_bytes = self.request(lambda: self.client.head_object(**self.at))["ContentLength"]
        if size_bytes != len(self.data):
            raise S3Failure(Local.ALTERED, f"the server has stored {size_bytes} bytes instead of {len(self.data)}")

    def is_there(self) -> bool:
        """Whether the object under the key is the one of this very upload, whatever its answer was."""
        try:
            answer = self.request(lambda: self.client.head_object(**self.at))
        except S3Failure as failure:
            if is_absent(failure):
                return False
            raise
        return bool(answer.get("Metadata", {}).get(WRITER) == self.metadata[WRITER])

    def _put_part(self, upload: Mapping[str, str], number: int, data: bytes) -> str:
        digest = _md5(data)

        def attempt() -> str:
            answer = self.client.upload_part(**upload, PartNumber=number, Body=data, ContentMD5=_base64(digest))
            if is_other(answer, digest):
                raise S3Failure(Local.ALTERED, f"the server has stored a part with the ETag {answer['ETag']}")
            return str(answer["ETag"])

        return self.request(attempt)

    def _complete(self, upload: Mapping[str, str], parts: list[dict[str, Any]]) -> None:
        """The last request; when the answer to an earlier try was lost, the upload is gone and the object there."""
        whole = {"Parts": parts}
        try:
            self.request(
                lambda: self.client.complete_multipart_upload(**upload, MultipartUpload=whole, **self.condition)
            )
        except S3Failure as failure:
            if failure.tries == 1 or failure.code not in ("NoSuchUpload", "404") or not self.is_there():
                raise


def is_other(answer: Mapping[str, Any], md5: bytes) -> bool:
    """Whether the ETag says that other bytes were stored; it is an MD5 unless a key service encrypts."""
    is_encrypted = "aws:kms" in str(answer.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in answer
    etag = str(answer.get("ETag", "")).strip('"').lower()
    return not is_encrypted and _MD5.fullmatch(etag) is not None and etag != md5.hex()


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
