"""Who is told of this process's requests to S3: nobody, until a process that exports metrics asks for it."""

import io
import time
from collections.abc import Mapping
from typing import Any, Protocol

_BEGAN = "dass_began"  # in the context that botocore hands from one event of a request to the next


class Observer(Protocol):
    """Is called from all threads that use a store, so it must be quick and must not raise."""

    def answered(self, operation: str, seconds: float, sent_bytes: int, received_bytes: int) -> None:
        """A request has ended, in an answer or without one; of a streamed body only the announced length is known."""

    def repeated(self, reason: str) -> None:
        """A request failed for this reason, S3's word for it or ours, and is tried again."""


_observers: list[Observer] = []  # at most one


def observe(observer: Observer | None) -> None:
    """Tell `observer` of all requests from now on, and nobody else; None: nobody."""
    _observers[:] = [] if observer is None else [observer]


def repeated(reason: str) -> None:
    """Tell that a request is tried again."""
    for observer in tuple(_observers):
        observer.repeated(reason)


def watch(client: Any) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
    """Tell of every request of this client of boto3."""
    events = client.meta.events
    events.register("before-call.s3", _began)
    events.register("after-call.s3", _answered)
    events.register("after-call-error.s3", _broken)


def _began(params: Mapping[str, Any], context: dict[str, Any], **_: object) -> None:
    body = params.get("body")  # boto3 makes a file of bytes that are to be stored
    length = body.getbuffer().nbytes if isinstance(body, io.BytesIO) else len(body or b"")
    context[_BEGAN] = (time.perf_counter(), length)


def _answered(http_response: Any, context: Mapping[str, Any], event_name: str, **_: object) -> None:  # noqa: ANN401
    has_body = not event_name.endswith(".HeadObject")
    length = http_response.headers.get("content-length", "0") if has_body else "0"
    _tell(event_name, context, int(length) if length.isdecimal() else 0)


def _broken(context: Mapping[str, Any], event_name: str, **_: object) -> None:
    _tell(event_name, context, 0)


def _tell(event_name: str, context: Mapping[str, Any], received_bytes: int) -> None:
    for observer in tuple(_observers):
        began, sent_bytes = context[_BEGAN]
        operation = event_name.rpartition(".")[2]
        observer.answered(operation, time.perf_counter() - began, sent_bytes, received_bytes)
