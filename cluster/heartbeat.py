"""Keeps a lease alive while its training is silent, for a while: an evaluation may take longer than a lease lasts.

After that while the training hangs, and on a GPU only the end of its process ends a hanging call, so that is what follows.
"""

import os
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

import ray
from ray.exceptions import RayError

from cluster.checkpoints import Token

BEATS_PER_LEASE = 3
EXIT_HANG = 70


class Heartbeat:
    """Renews a lease from a thread during a `with` block; kills this process when the training hangs.

    A lane that is killed or frozen loses this thread too, so its lease expires. One that hangs would keep its device
    and the driver for ever: its process ends, and Ray Train starts the lane again.

    Args:
        queue: handle of the queue's actor.
        lane: who holds the lease.
        token: the lease's.
        lease_s: seconds after which the lease expires without a beat.
        hang_s: seconds without `note_life` after which the training hangs.
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
        while not self._ended.wait(self._pause_s):
            if time.monotonic() - self._alive_at >= self._hang_s:
                os._exit(EXIT_HANG)
            # A lost lease is no reason to stop: a queue that was started again may give it back to the lane. Neither is one
            # that is gone or silent, as the lane's own next call tells: whether the training hangs is asked all the same.
            with suppress(RayError):
                ray.get(self._queue.heartbeat.remote(self._lane, self._token), timeout=self._pause_s)
