"""The queue as a Ray actor: its clock, and its rebirth from the store."""

import math
import time
from collections.abc import Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from cluster.checkpoints import Token, find_saved
from cluster.database import RunDatabase
from cluster.objects import open_store
from cluster.plan import Decision, FailureKind, teacher_run
from cluster.queue import LeaseQueue, LeaseReply, QueueStats, claim_incarnation
from cluster.queue_meter import QueueMeter
from dass.records import Run, Status

RESTART_PATIENCE_S = 3600.0  # what a constructor raises ends an actor for good, and lanes only wait meanwhile


class QueueActor:
    """A LeaseQueue with a clock, rebuilt from the store whenever Ray starts it again.

    Args:
        store_url: the store with the run database and the claims.
        runs: all planned runs.
        grace_s: for how long a queue that was started again grants nothing.
        settings: passed on to LeaseQueue.
    """

    def __init__(self, store_url: str, runs: Iterable[Run], grace_s: float = 60.0, **settings: Any) -> None:  # noqa: ANN401
        store = open_store(store_url, RESTART_PATIENCE_S if _was_restarted() else None)
        runs = list(runs)
        database = RunDatabase(store)
        self._queue = LeaseQueue(
            runs,
            database.finished_ids(),
            claim_incarnation(store),
            diverged=_diverged_teachers(database, runs),
            saved=find_saved(store, [run.id for run in runs]),
            grace_until=time.monotonic() + grace_s if _was_restarted() else -math.inf,
            **settings,
        )
        self._meter = QueueMeter(store, self._queue.incarnation, len(runs))

    def lease(self, lane: str, max_runs: int, request: str = "") -> LeaseReply:
        """See LeaseQueue."""
        return self._meter.granted(lane, self._queue.lease(lane, max_runs, self._now(), request))

    def heartbeat(self, lane: str, token: Token, saved: Mapping[str, Hashable] | None = None) -> bool:
        """See LeaseQueue."""
        return self._queue.heartbeat(lane, token, self._now(), saved)

    def complete(self, run_id: str, token: Token, status: Status = Status.FINISHED) -> bool:
        """See LeaseQueue."""
        return self._queue.complete(run_id, token, self._now(), status)

    def recorded(self, run_ids: AbstractSet[str], diverged: AbstractSet[str] = frozenset()) -> None:
        """See LeaseQueue."""
        self._queue.recorded(run_ids, diverged)

    def fail(self, run_ids: Iterable[str], token: Token, kind: FailureKind, reason: str = "") -> dict[str, Decision]:
        """See LeaseQueue."""
        return self._meter.failed(kind, self._queue.fail(run_ids, token, kind, self._now(), reason))

    def arrive(self, lane: str) -> dict[str, Decision]:
        """See LeaseQueue."""
        return self._meter.released(FailureKind.LANE_LOST, self._queue.arrive(lane, self._now()))

    def reregister(self, lane: str, run_ids: Iterable[str], token: Token) -> tuple[str, ...]:
        """See LeaseQueue."""
        kept = self._queue.reregister(lane, run_ids, token, self._now())
        self._meter.kept(lane, token, kept)
        return kept

    def stats(self) -> QueueStats:
        """See LeaseQueue; silent lanes are found out first."""
        self._now()
        return self._meter.stands(self._queue.stats())

    def _now(self) -> float:
        """The clock; leases that expire by now are taken back and told."""
        now = time.monotonic()
        self._meter.expired(self._queue.expire(now))
        return now


def remote_queue() -> Any:  # noqa: ANN401 - Ray makes the class
    """QueueActor as a Ray actor class; the caller names it and pins it to a node that stays, with `.options(...)`.

    Every method may be called twice, so Ray repeats what was under way when the actor died: nobody sees it restart.
    """
    import ray

    return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(QueueActor)


def _was_restarted() -> bool:
    import ray

    return bool(ray.is_initialized() and ray.get_runtime_context().was_current_actor_reconstructed)


def _diverged_teachers(database: RunDatabase, runs: Iterable[Run]) -> set[str]:
    teachers = {teacher for run in runs if (teacher := teacher_run(run))}
    return {record.run.id for record in database.scan(teachers) if record.result.status is Status.DIVERGED}
