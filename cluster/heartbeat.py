"""Keeps a lease alive while its training is silent, for a while: an evaluation may take longer than a lease lasts."""

import threading
import time
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.queue import Token

BEATS_PER_LEASE = 3


class Heartbeat:
    """Renews a lease from a thread during a `with` block, as long as the training has shown life within `hang_s`.

    A lane that is killed or frozen loses this thread too, so its lease expires; so does that of one that hangs.

    Args:
        queue: handle of the queue's actor.
        lane: who holds the lease.
        token: the lease's.
        lease_s: seconds after which the lease expires without a beat.
        hang_s: seconds without `note_life` after which the beats stop.
    """

    def __init__(self, queue: Any, lane: str, token: Token, lease_s: float, hang_s: float) -> None:  # noqa: ANN401 - a Ray handle
        self._queue = queue
        self._lane = lane
        self._token = token
        self._pause_s = lease_s / BEATS_PER_LEASE
        self._hang_s = hang_s
        self._alive_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"heartbeat-{token}", daemon=True)

    def note_life(self) -> None:
        """The training has just come forward."""
        self._alive_at = time.monotonic()

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(self._pause_s) and time.monotonic() - self._alive_at < self._hang_s:
            try:
                if not ray.get(self._queue.heartbeat.remote(self._lane, self._token)):
                    return
            except RayError:
                return  # the queue is gone; the lane's own next call tells
