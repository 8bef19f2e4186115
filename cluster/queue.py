"""Who trains what right now: leases as a pure state machine; `queue_actor` is the Ray actor around it.

A lane leases a cohort, renews it with heartbeats, completes or fails its runs one by one, and loses what it holds when
it falls silent. All of this may be lost: a new queue is built from the plan and the database, claims the next
incarnation number in the store, and for a grace period only lets lanes register what they still hold. A token names one
lease for ever, because it carries the incarnation; it stands in the keys of checkpoints, so an overtaken lane writes
where nobody reads.

What follows from all open runs (who may start, who never can) is worked out once and kept until a run is planned,
freed or let start: a lease then costs one step, where working it out anew would make a long plan's leases quadratic.

    pending --lease--> running --complete--> finished           a run waits while its teacher's run has no record,
       ^                  |                                     and fails for good when that run can never be used
       +--fail, expire----+--fail, out of budget--> failed
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum

from cluster.checkpoints import Saved, Token
from cluster.objects import ObjectStore
from cluster.plan import Decision, FailureKind, Outlook, Startable, after_failure, look_ahead, ready, teacher_run
from cluster.schema import SCHEMA_VERSION, encode_json
from cluster.sizing import FIRST_SIZE
from dass.errors import ConfigError
from dass.records import Run, Status

CLAIMS = "queue/"


@dataclass(frozen=True)
class Lease:
    """The right to train `runs`, a cohort, until it expires; `saved` names the checkpoints to go on from."""

    token: Token
    runs: tuple[Run, ...]
    saved: Mapping[str, Saved]
    lease_s: float


class LeaseState(StrEnum):
    """What a lane that asks for work should do."""

    GRANTED = "granted"
    WAIT = "wait"  # nothing is free now, but something may become so: ask again later
    EMPTY = "empty"  # nothing is left, and nothing will come back


@dataclass(frozen=True)
class LeaseReply:
    """The answer to a lane that asks for work; `lease` is there exactly when the state is GRANTED."""

    state: LeaseState
    lease: Lease | None = None


@dataclass(frozen=True)
class QueueStats:
    """Numbers of runs; `finished` counts diverged runs too, `failed` says why. They add up to `planned`.

    cohorts: how many are under way or could start now.
    lives: by lane how often it came to the queue anew.
    note: what else a person should know, such as what is waited for.
    """

    planned: int
    finished: int
    running: int
    pending: int
    waiting_for_teacher: int
    failed: Mapping[str, str]
    cohorts: int = field(default=0, compare=False)
    lives: Mapping[str, int] = field(default_factory=dict, compare=False)
    note: str = field(default="", compare=False)

    @property
    def left(self) -> int:
        """Runs that may still get a record from this queue."""
        return self.planned - self.finished - len(self.failed)


@dataclass
class _Held:
    lane: str
    expires: float
    run_ids: set[str] = field(default_factory=set)
    request: str = ""  # what it was granted to; empty where that is not known
    lease: Lease | None = None  # as it was granted


class LeaseQueue:
    """The leases of one incarnation. Reads no clock: `now` is in seconds of one monotonic clock, never decreasing.

    Every method may be called again with the same arguments, as after a lost reply; at worst a lease that nobody knows
    of expires. Whatever the calls, a run has at most one owner and a run with a record is never leased again.

    Args:
        runs: all planned runs, with or without a record; equal work keeps this order.
        finished: the ids of all runs with a record, teachers outside the plan included.
        incarnation: from `claim_incarnation`.
        lease_s: seconds without a heartbeat after which a lease expires.
        max_attempts: failed attempts of all kinds but RETURNED after which a run is given up.
        diverged: those of `finished` that diverged, so that no student starts from them.
        saved: the checkpoints that are known, by run id.
        work_of: estimated work of each run by run id; see `cut_cohorts`.
        priority_of: by task id, see `Startable`.
        grace_until: no lease is granted before this time, and `reregister` works until then.
    """

    def __init__(
        self,
        runs: Iterable[Run],
        finished: AbstractSet[str],
        incarnation: int,
        *,
        lease_s: float = 60.0,
        max_attempts: int = 6,
        diverged: AbstractSet[str] = frozenset(),
        saved: Mapping[str, Saved] | None = None,
        work_of: Mapping[str, float] | None = None,
        priority_of: Mapping[str, int] | None = None,
        grace_until: float = -math.inf,
    ) -> None:
        if lease_s <= 0 or max_attempts < 1:
            raise ConfigError(
                f"lease_s > 0 and max_attempts >= 1 must hold, got {lease_s} and {max_attempts}; set lanes.lease_s"
            )
        self.incarnation = incarnation
        self._lease_s = lease_s
        self._max_attempts = max_attempts
        self._grace_until = grace_until
        self._work_of = dict(work_of or {})
        self._priority_of = dict(priority_of or {})
        self._saved = dict(saved or {})
        self._runs: dict[str, Run] = {}
        self._open: dict[str, Run] = {}  # neither recorded nor given up
        self._recorded: set[str] = set()
        self._diverged: set[str] = set()
        self._given_up: dict[str, str] = {}
        self._alone: set[str] = set()
        self._failures: dict[str, Counter[FailureKind]] = defaultdict(Counter)
        self._leases: dict[Token, _Held] = {}
        self._owner: dict[str, Token] = {}
        self._teachers: set[str] = set()  # the runs that others wait for
        self._startable: Startable | None = None  # of the free runs; None: to be worked out anew
        self._outlook: Outlook | None = None  # None: to be worked out anew
        self._num_leases = 0
        self._cohort_size = FIRST_SIZE  # what lanes last asked for
        self._lives: Counter[str] = Counter()
        self.recorded(finished, diverged)
        self.add_runs(runs)

    def add_runs(self, runs: Iterable[Run], work_of: Mapping[str, float] | None = None) -> None:
        """Plan more runs, as a second submission does; a run that was given up gets a new budget."""
        self._forget()
        self._work_of.update(work_of or {})
        for run in runs:
            if teacher := teacher_run(run):
                self._teachers.add(teacher)
            self._runs.setdefault(run.id, run)
            if self._given_up.pop(run.id, None) is not None:
                self._failures.pop(run.id, None)
            if run.id not in self._recorded:
                self._open.setdefault(run.id, self._runs[run.id])

    def lease(self, lane: str, max_runs: int, now: float, request: str = "") -> LeaseReply:
        """Give `lane` the next cohort of at most `max_runs` runs: what most runs wait for first, then the longest.

        request: the name of this call alone. Repeated, because its answer was lost, it has the same answer: else nobody
        would know of the first lease, and its runs would be charged with a lane that was lost.
        """
        self.expire(now)
        for held in self._leases.values():
            if request and (held.lane, held.request) == (lane, request):
                return LeaseReply(LeaseState.GRANTED, held.lease)
        self._cohort_size = max_runs
        startable = self._free()
        if startable and now >= self._grace_until:
            cohort = startable.take(max_runs)
            self._num_leases += 1
            token = Token(self.incarnation, self._num_leases)
            self._hold(lane, token, (run.id for run in cohort), now)
            saved = {run.id: self._saved[run.id] for run in cohort if run.id in self._saved}
            lease = Lease(token, cohort, saved, self._lease_s)
            self._leases[token].request, self._leases[token].lease = request, lease
            return LeaseReply(LeaseState.GRANTED, lease)
        return LeaseReply(LeaseState.WAIT if startable or self._leases else LeaseState.EMPTY)

    def heartbeat(self, lane: str, token: Token, now: float, saved: Mapping[str, Hashable] | None = None) -> bool:
        """Renew a lease; False: it is lost, and the lane must drop its runs.

        saved: by run id the positions of checkpoints that are in the store since the last heartbeat.
        """
        self.expire(now)
        held = self._leases.get(token)
        if held is None or held.lane != lane:
            return False
        held.expires = now + self._lease_s
        for run_id, position in (saved or {}).items():
            if run_id in held.run_ids:
                before = self._saved.get(run_id)
                self._saved[run_id] = Saved(token, position)
                if before is None or before.position != position:
                    self._failures[run_id].pop(
                        FailureKind.LANE_LOST, None
                    )  # it comes forward: it is not what ends lanes
        return True

    def complete(self, run_id: str, token: Token, now: float, status: Status = Status.FINISHED) -> bool:
        """Say that the run's record is in the database; the rest of the lease goes on.

        False: the lease was lost before, and nothing changed. A lane that did write the record then says so with
        `recorded`, which needs no lease.
        """
        self.expire(now)
        if run_id not in self._recorded and self._owner.get(run_id) == token:
            self.recorded({run_id}, {run_id} if status is Status.DIVERGED else frozenset())
        return run_id in self._recorded

    def recorded(self, run_ids: AbstractSet[str], diverged: AbstractSet[str] = frozenset()) -> None:
        """Learn what the database holds, whoever put it there; a record is the truth and ends its run's lease."""
        self._recorded |= run_ids
        self._diverged |= diverged & run_ids
        for run_id in run_ids:
            if run_id in self._teachers or (run_id in self._open and run_id not in self._owner):
                self._forget()
            self._take_back(run_id)
            for state in (self._open, self._given_up, self._saved, self._failures):
                state.pop(run_id, None)

    def fail(
        self, run_ids: Iterable[str], token: Token, kind: FailureKind, now: float, reason: str = ""
    ) -> dict[str, Decision]:
        """End the attempts at some runs of a lease; what follows for each of those that the lease still held."""
        self.expire(now)
        owned = [run_id for run_id in dict.fromkeys(run_ids) if self._owner.get(run_id) == token]
        return {run_id: self._end_attempt(run_id, kind, reason) for run_id in owned}

    def arrive(self, lane: str, now: float) -> dict[str, Decision]:
        """A lane begins a life: what an earlier one held is taken back, for it died of it, or of its node."""
        self._lives[lane] += 1
        return self.release(lane, now, FailureKind.LANE_LOST)

    def release(self, lane: str, now: float, kind: FailureKind = FailureKind.RETURNED) -> dict[str, Decision]:
        """Take back all that a lane holds because it ends, or is known to be dead; what follows for each run."""
        self.expire(now)
        return self._end_leases([held for held in self._leases.values() if held.lane == lane], kind, f"{lane} ended")

    def expire(self, now: float) -> dict[str, Decision]:
        """Take back what silent lanes hold; every other method does so first."""
        silent = [held for held in self._leases.values() if held.expires <= now]
        return self._end_leases(silent, FailureKind.LANE_LOST, f"no heartbeat for {self._lease_s:g} s")

    def reregister(self, lane: str, run_ids: Iterable[str], token: Token, now: float) -> tuple[str, ...]:
        """Let a lane go on with a lease of an earlier incarnation; gives the runs it keeps, the others it drops.

        Of two lanes that claim a run the one of the higher token had it last, so it takes the run over: the other one's
        checkpoints are never read.
        """
        self.expire(now)
        held = self._leases.get(token)
        is_known = held is not None and held.lane == lane
        if now >= self._grace_until or token.incarnation >= self.incarnation or (held and not is_known):
            return ()
        kept = tuple(run_id for run_id in run_ids if run_id in self._open and self._owner.get(run_id, token) <= token)
        if kept:
            self._forget()
            for run_id in kept:
                if self._owner.get(run_id, token) != token:
                    self._take_back(run_id)
            self._hold(lane, token, kept, now)
        return kept

    def stats(self) -> QueueStats:
        """Where all planned runs stand."""
        if self._outlook is None:
            self._outlook = look_ahead(list(self._open.values()), self._recorded, self._diverged)
        outlook = self._outlook
        failed = {run_id: why for run_id, why in outlook.stuck.items() if run_id not in self._owner}
        num_waiting = len(outlook.waiting) - sum(run_id in outlook.waiting for run_id in self._owner)
        return QueueStats(
            planned=len(self._runs),
            finished=len(self._runs) - len(self._open) - len(self._given_up),
            running=len(self._owner),
            pending=len(self._open) - len(self._owner) - num_waiting - len(failed),
            waiting_for_teacher=num_waiting,
            failed={**self._given_up, **failed},
            cohorts=len(self._leases) + self._free().num_cohorts(self._cohort_size),
            lives=dict(self._lives),
        )

    def _forget(self) -> None:
        self._startable = self._outlook = None

    def _free(self) -> Startable:
        """The free runs that may start, worked out anew only after a change."""
        if self._startable is None:
            self._startable = self._look_around()
        return self._startable

    def _look_around(self) -> Startable:
        free = [run for run_id, run in self._open.items() if run_id not in self._owner]
        startable = ready(free, self._recorded, self._diverged)
        positions = {run_id: saved.position for run_id, saved in self._saved.items()}
        num_students = Counter(teacher for run in free if (teacher := teacher_run(run)))
        return Startable(startable, positions, self._work_of, num_students, self._alone, self._priority_of)

    def _hold(self, lane: str, token: Token, run_ids: Iterable[str], now: float) -> None:
        held = self._leases.setdefault(token, _Held(lane, now))
        held.expires = now + self._lease_s
        for run_id in run_ids:
            held.run_ids.add(run_id)
            self._owner[run_id] = token

    def _take_back(self, run_id: str) -> None:
        token = self._owner.pop(run_id, None)
        if token is not None:
            self._leases[token].run_ids.remove(run_id)
            if not self._leases[token].run_ids:
                del self._leases[token]

    def _end_leases(self, ended: list[_Held], kind: FailureKind, reason: str) -> dict[str, Decision]:
        run_ids = [run_id for held in ended for run_id in sorted(held.run_ids)]
        return {run_id: self._end_attempt(run_id, kind, reason) for run_id in run_ids}

    def _end_attempt(self, run_id: str, kind: FailureKind, reason: str) -> Decision:
        self._forget()
        self._take_back(run_id)
        failures = self._failures[run_id]
        failures[kind] += 1
        decision = after_failure(failures[kind], kind)
        if failures.total() - failures[FailureKind.RETURNED] >= self._max_attempts:
            decision = Decision.GIVE_UP
        if decision is Decision.RETRY_ALONE:
            self._alone.add(run_id)
        elif decision is Decision.GIVE_UP:
            del self._open[run_id]
            self._given_up[run_id] = f"{kind}: {reason}" if reason else str(kind)
        return decision


def claim_incarnation(store: ObjectStore) -> int:
    """The next incarnation number, from 1; no other queue of this store ever gets the same."""
    while True:
        taken = [int(name) for key in store.list(CLAIMS) if (name := key.removeprefix(CLAIMS)).isdecimal()]
        number = max(taken, default=0) + 1
        if store.put_if_absent(f"{CLAIMS}{number}", encode_json({"schema": SCHEMA_VERSION, "incarnation": number})):
            return number
