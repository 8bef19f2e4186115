"""The lease queue in any order of events, against a model of who owns what."""

import itertools
import pickle

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.checkpoints import Token
from cluster.plan import Decision, FailureKind
from cluster.queue import LeaseQueue, LeaseState
from dass.records import Status
from tests.cluster.builders import make_run

TEACHER = make_run(100, teacher=None)


class QueueMachine(RuleBasedStateMachine):
    """Lanes, crashes, silence, zombies and restarts in any order, against a model of who owns what.

    The model knows leases only from what the queue answered, so it can catch a run that is owned twice.
    """

    LEASE_S = 10.0
    LANES = st.sampled_from(["a", "b", "c"])

    @initialize(num_own=st.integers(0, 4), num_students=st.integers(0, 3), has_teacher=st.booleans())
    def start(self, num_own: int, num_students: int, has_teacher: bool) -> None:
        own = [make_run(number, seed=number % 2) for number in range(num_own)]
        students = [make_run(number, teacher=TEACHER.id) for number in range(num_students)]
        self.runs = [*students, *own, *([TEACHER] if has_teacher else [])]
        self.incarnation = 1
        self.now = 0.0
        self.grace_until = -1.0
        self.database: dict[str, Status] = {}
        self.given_up: set[str] = set()
        self.leases: dict[Token, tuple[str, set[str], float]] = {}  # lane, runs, expiry
        self.lost: dict[Token, tuple[str, set[str]]] = {}  # what zombies may still believe
        self.queue = self._build()

    def _build(self) -> LeaseQueue:
        diverged = {run_id for run_id, status in self.database.items() if status is Status.DIVERGED}
        return LeaseQueue(
            self.runs,
            set(self.database),
            self.incarnation,
            lease_s=self.LEASE_S,
            max_attempts=4,
            diverged=diverged,
            grace_until=self.grace_until,
        )

    def _advance(self, seconds: float) -> None:
        self.now += seconds
        for token, (lane, held, expiry) in list(self.leases.items()):
            if expiry <= self.now:
                self.lost[token] = (lane, set(held))
                del self.leases[token]

    def _owned(self) -> list[str]:
        return [run_id for _, held, _ in self.leases.values() for run_id in held]

    def _drop(self, run_id: str) -> None:
        for token, (_, held, _) in list(self.leases.items()):
            held.discard(run_id)
            if not held:
                del self.leases[token]

    def _any_lease(self, data: st.DataObject) -> tuple[Token, str, set[str]]:
        token = data.draw(st.sampled_from(sorted(self.leases)))
        lane, held, _ = self.leases[token]
        return token, lane, held

    @rule(lane=LANES, max_runs=st.integers(1, 4))
    def lease(self, lane: str, max_runs: int) -> None:
        anew = pickle.loads(pickle.dumps(self.queue))  # noqa: S301 - our own bytes
        anew.add_runs([])  # planning nothing more makes a queue forget what it had worked out
        reply = self.queue.lease(lane, max_runs, self.now)
        assert reply == anew.lease(lane, max_runs, self.now)
        assert self.queue.stats() == anew.stats()
        if reply.lease is None:
            assert reply.state is not LeaseState.GRANTED
            return
        assert self.now >= self.grace_until
        new = {run.id for run in reply.lease.runs}
        assert 1 <= len(new) == len(reply.lease.runs) <= max_runs
        assert not new & (self.database.keys() | set(self._owned()) | self.given_up)
        assert reply.lease.token not in self.leases.keys() | self.lost.keys()
        for run in reply.lease.runs:
            assert run.teacher != TEACHER.id or self.database[TEACHER.id] is Status.FINISHED
        assert len({(run.task, run.teacher, run.recipe, run.seed) for run in reply.lease.runs}) == 1
        self.leases[reply.lease.token] = (lane, new, self.now + self.LEASE_S)

    @rule(seconds=st.sampled_from([0.5, 4.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self._advance(seconds)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        token, lane, held = self._any_lease(data)
        assert self.queue.heartbeat(lane, token, self.now, dict.fromkeys(held, data.draw(st.integers(0, 2))))
        self.leases[token] = (lane, held, self.now + self.LEASE_S)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), status=st.sampled_from([Status.FINISHED] * 4 + [Status.DIVERGED]))
    def complete(self, data: st.DataObject, status: Status) -> None:
        token, _, held = self._any_lease(data)
        run_id = data.draw(st.sampled_from(sorted(held)))
        self.database[run_id] = status
        assert self.queue.complete(run_id, token, self.now, status)
        assert self.queue.complete(run_id, token, self.now, status)
        self._drop(run_id)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), kind=st.sampled_from(FailureKind))
    def fail(self, data: st.DataObject, kind: FailureKind) -> None:
        token, _, held = self._any_lease(data)
        some = data.draw(st.sets(st.sampled_from(sorted(held)), min_size=1))
        decisions = self.queue.fail(some, token, kind, self.now)
        assert decisions.keys() == some
        self._learn(decisions)

    @rule(lane=LANES, kind=st.sampled_from([FailureKind.RETURNED, FailureKind.LANE_LOST]))
    def release(self, lane: str, kind: FailureKind) -> None:
        decisions = self.queue.release(lane, self.now, kind)
        assert decisions.keys() == {
            run_id for owner, held, _ in self.leases.values() if owner == lane for run_id in held
        }
        self._learn(decisions)

    def _learn(self, decisions: dict[str, Decision]) -> None:
        for run_id, decision in decisions.items():
            self._drop(run_id)
            if decision is Decision.GIVE_UP:
                self.given_up.add(run_id)

    @precondition(lambda self: self.lost)
    @rule(data=st.data(), writes_record=st.booleans())
    def zombie(self, data: st.DataObject, writes_record: bool) -> None:
        token = data.draw(st.sampled_from(sorted(self.lost)))
        lane, held = self.lost[token]
        assert not self.queue.heartbeat(lane, token, self.now)
        assert self.queue.fail(held, token, FailureKind.ERROR, self.now) == {}
        run_id = data.draw(st.sampled_from(sorted(held)))
        assert self.queue.complete(run_id, token, self.now) == (run_id in self.database)
        if writes_record:
            self.database.setdefault(run_id, Status.FINISHED)
            self.queue.recorded({run_id})
            self._drop(run_id)
            self.given_up.discard(run_id)

    @precondition(lambda self: self.lost)
    @rule(data=st.data())
    def zombie_registers(self, data: st.DataObject) -> None:
        token = data.draw(st.sampled_from(sorted(self.lost)))
        lane, held = self.lost[token]
        kept = self.queue.reregister(lane, sorted(held), token, self.now)
        later = {run_id for other, (_, runs, _) in self.leases.items() if other > token for run_id in runs}
        assert not set(kept) & (self.database.keys() | later)
        for run_id in kept:
            self._drop(run_id)
        if kept:
            assert self.now < self.grace_until
            assert token.incarnation < self.incarnation
            del self.lost[token]
            self.leases[token] = (lane, set(kept), self.now + self.LEASE_S)

    @rule(data=st.data(), grace_s=st.sampled_from([0.0, 6.0]))
    def restart(self, data: st.DataObject, grace_s: float) -> None:
        self.incarnation += 1
        self.grace_until = self.now + grace_s
        self.given_up.clear()
        self.queue = self._build()
        before, self.leases = self.leases, {}
        for token, (lane, held, _) in sorted(before.items()):
            if data.draw(st.booleans()):
                kept = self.queue.reregister(lane, sorted(held), token, self.now)
                assert set(kept) == (held if grace_s else set())
                if kept:
                    self.leases[token] = (lane, set(kept), self.now + self.LEASE_S)
                    continue
            self.lost[token] = (lane, set(held))

    @invariant()
    def no_run_is_lost_and_none_has_two_owners(self) -> None:
        self._catch_up()
        owned, stats = self._owned(), self.queue.stats()
        assert len(owned) == len(set(owned)) == stats.running
        assert stats.planned == len(self.runs)
        assert stats.planned == stats.finished + stats.running + stats.pending + stats.waiting_for_teacher + len(
            stats.failed
        )
        assert stats.finished == len(self.database.keys() & {run.id for run in self.runs})
        assert self.given_up <= stats.failed.keys()

    def _catch_up(self) -> None:
        """Let the queue notice what the model knows to have expired, and learn what it gave up for that."""
        decisions = self.queue.expire(self.now)
        assert not decisions.keys() & set(self._owned())
        self.given_up |= {run_id for run_id, decision in decisions.items() if decision is Decision.GIVE_UP}

    def teardown(self) -> None:
        """From any state, one lane that works well brings everything to its end."""
        if not hasattr(self, "queue"):
            return
        self._advance(max(self.grace_until - self.now, 0) + self.LEASE_S)
        self._catch_up()
        for _ in itertools.count():
            reply = self.queue.lease("last", 2, self.now)
            if reply.lease is None:
                break
            assert not {run.id for run in reply.lease.runs} & self.database.keys()
            for run in reply.lease.runs:
                self.database[run.id] = Status.FINISHED
                assert self.queue.complete(run.id, reply.lease.token, self.now)
        assert reply.state is LeaseState.EMPTY
        stats = self.queue.stats()
        assert stats.finished + len(stats.failed) == stats.planned == len(self.runs)
        assert all(stats.failed.values())


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40)
