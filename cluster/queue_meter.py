"""What the queue tells of itself: metrics for Prometheus, and events of what lanes cannot tell any more."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from cluster import metrics, s3_observer
from cluster.checkpoints import Token
from cluster.events import EventLog
from cluster.objects import ObjectStore
from cluster.plan import Decision, FailureKind

if TYPE_CHECKING:
    from cluster.queue import LeaseReply, QueueStats


class QueueMeter:
    """Hears of every change; never waits for the store, because lanes wait for the queue.

    Each method gives back what the queue is to answer.
    """

    def __init__(self, store: ObjectStore, incarnation: int, num_planned: int) -> None:
        s3_observer.observe(metrics.S3Metrics())
        for kind in FailureKind:
            metrics.FAILED_ATTEMPTS.start(kind=str(kind))
        metrics.LEASES_GRANTED.start()
        metrics.LEASES_EXPIRED.start()
        self._holders: dict[str, tuple[Token, str]] = {}  # lease and lane by run id, old ones among them
        self._events = EventLog(store, "queue", in_background=True)
        self._events.emit("queue started", incarnation=incarnation, planned=num_planned)
        self._events.flush()

    def granted(self, lane: str, reply: "LeaseReply") -> "LeaseReply":
        """A lane asked for work."""
        if reply.lease is not None:
            metrics.LEASES_GRANTED.add()
            self.kept(lane, reply.lease.token, [run.id for run in reply.lease.runs])
        return reply

    def kept(self, lane: str, token: Token, run_ids: Iterable[str]) -> None:
        """A lane holds these runs."""
        self._holders.update(dict.fromkeys(run_ids, (token, lane)))

    def failed(self, kind: FailureKind, decisions: dict[str, Decision]) -> dict[str, Decision]:
        """A lane told that attempts failed; it writes the events itself."""
        metrics.FAILED_ATTEMPTS.add(len(decisions), kind=str(kind))
        return decisions

    def released(self, kind: FailureKind, decisions: dict[str, Decision]) -> dict[str, Decision]:
        """A lane has ended, or was found dead, while it held these runs."""
        for (token, lane), runs in self._by_lease(decisions).items():
            self._events.emit("lease released", token=str(token), holder=lane, failure=str(kind), runs=sorted(runs))
        self._tell_failed(kind, decisions, "its lane ended")
        return decisions

    def expired(self, decisions: dict[str, Decision]) -> None:
        """Leases on these runs expired."""
        for (token, lane), runs in self._by_lease(decisions).items():
            metrics.LEASES_EXPIRED.add()
            self._events.emit("lease expired", token=str(token), holder=lane, runs=sorted(runs))
        self._tell_failed(FailureKind.LANE_LOST, decisions, "its lease expired")

    def stands(self, stats: "QueueStats") -> "QueueStats":
        """Where all runs stand; to be told every few seconds."""
        counts = {
            "pending": stats.pending,
            "running": stats.running,
            "waiting": stats.waiting_for_teacher,
            "finished": stats.finished,
            "failed": len(stats.failed),
        }
        for state, count in counts.items():
            metrics.QUEUE_RUNS.set(count, state=state)
        return stats

    def _by_lease(self, decisions: Mapping[str, Decision]) -> dict[tuple[Token, str], list[str]]:
        leases: dict[tuple[Token, str], list[str]] = {}
        for run_id in decisions:
            leases.setdefault(self._holders[run_id], []).append(run_id)
        return leases

    def _tell_failed(self, kind: FailureKind, decisions: Mapping[str, Decision], reason: str) -> None:
        metrics.FAILED_ATTEMPTS.add(len(decisions), kind=str(kind))
        if not decisions:
            return
        if kind is not FailureKind.RETURNED:
            for run_id, decision in decisions.items():
                token, lane = self._holders[run_id]
                where = {"run": run_id, "token": str(token), "holder": lane}
                self._events.emit("failed", **where, failure=str(kind), reason=reason, decision=str(decision))
        self._events.flush()
