"""What must hold after every step, whatever happens: rules over the store, over each queue, and over what lanes train.

They look from outside: at the changes of the store, at the calls of the queue with their answers, and at the steps of
training. What a queue may answer follows from a model of its own that is told nothing but these calls.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.checkpoints import FOLDER as CHECKPOINTS
from cluster.checkpoints import Token
from cluster.database import LOOSE, read_loose
from cluster.packed import PACKED
from cluster.plan import Decision, FailureKind
from cluster.queue import LeaseQueue, LeaseReply, LeaseState
from cluster.tables import parquet_to_table, table_to_records
from dass.kd.cohort import state_position
from dass.records import Record, Result, Run
from dass.tensors import unpack_tensors
from tests.chaos.chain import step_of
from tests.chaos.kernel import Process, World

_Lease = tuple[int, int]  # incarnation and attempt


@dataclass
class Rules:
    """See the top.

    right: the one result of each planned run. values: by run id the chain's value before the first step and after each.
    interval: most steps between two checkpoints of a run; math.inf where two submissions may train a run twice.
    trap: called before each change of the store and each call of a queue, and after; may kill who does it.
    """

    world: World
    right: Mapping[str, Result]
    values: Mapping[str, list[bytes]]
    interval: float
    trap: Callable[[str, str], None] = lambda who, what: None
    winners: dict[str, _Lease] = field(default_factory=dict)  # the visible record of each run
    seen_at: dict[str, float] = field(default_factory=dict)  # since when a run has a record
    tokens: set[Token] = field(default_factory=set)
    incarnations: set[int] = field(default_factory=set)
    queues: list["QueueRules"] = field(default_factory=list)
    leased_at: dict[str, float] = field(default_factory=dict)  # by lane's process
    num_steps: int = 0
    num_repeated: int = 0
    num_hits: int = 0
    recovery_s: float = 0.0

    def __post_init__(self) -> None:
        self._loose: dict[str, _Lease] = {}
        self._packed: dict[str, dict[str, _Lease]] = {}
        self._checkpoints: dict[str, tuple[str, int]] = {}  # by key: its writer and the step in it
        self._reached: dict[str, int] = {}  # the step at which a run's owner stands or stood
        self._hit_at: dict[str, tuple[float, str]] = {}  # runs that were interrupted: when, and whose they were

    def hit(self, who: str) -> None:
        """A lane's process is interrupted: what it holds must go on elsewhere, or there later."""
        for queue in self.queues:
            for run_id in queue.runs_of(who):
                self._hit_at.setdefault(run_id, (self.world.now, who))

    # The store

    def before(self, who: str, operation: str, key: str) -> None:
        self.trap(who, f"{operation} {key}")

    def written(self, who: str, key: str, data: bytes) -> None:
        if key.startswith(LOOSE):
            record = read_loose(data, key)
            self._check_record(who, record)
            self._loose[record.run.id] = _lease_of(record)
        elif key.startswith(PACKED):
            records = list(table_to_records(parquet_to_table(data, key), key))
            for record in records:
                self._check_record(who, record)
            self._packed[key] = {record.run.id: _lease_of(record) for record in records}
        elif key.startswith(CHECKPOINTS):
            self._check_state(who, key, data)
        if key.startswith((LOOSE, PACKED)):
            self._check_winners(who, key)

    def deleted(self, who: str, key: str) -> None:
        if key.startswith(LOOSE):
            del self._loose[key.rpartition("/")[2].removesuffix(".json")]
        self._packed.pop(key, None)
        self._checkpoints.pop(key, None)
        if key.startswith((LOOSE, PACKED)):
            self._check_winners(who, key)

    def _check_record(self, who: str, record: Record) -> None:
        if record.result != self.right[record.run.id]:
            self.world.break_rule(f"{who} leaves a wrong record of {record.run.id}: {record.result}")

    def _check_winners(self, who: str, key: str) -> None:
        winners = dict(self._loose)
        packed: dict[str, _Lease] = {}
        for leases in self._packed.values():
            for run_id, lease in leases.items():
                packed[run_id] = min(lease, packed.get(run_id, lease))
        winners |= packed
        for run_id, lease in self.winners.items():
            if winners.get(run_id) != lease:
                self.world.break_rule(
                    f"{who} changes {key}, and the record of {run_id} is that of {winners.get(run_id)}, not of {lease}"
                )
        for run_id in winners.keys() - self.winners.keys():
            self.seen_at[run_id] = self.world.now
            self._recovered(run_id)
        self.winners = winners

    def _check_state(self, who: str, key: str, data: bytes) -> None:
        run_id = key.split("/")[1]
        owner, position = state_position(data)
        step = step_of(position)
        if owner != run_id or bytes.fromhex(unpack_tensors(data)[1]["value"]) != self.values[run_id][step]:
            self.world.break_rule(f"{who} leaves a wrong checkpoint {key}, of run {owner} at step {step}")
        writer, before = self._checkpoints.get(key, (who, 0))
        if writer != who or (step < before and self.interval < math.inf):
            self.world.break_rule(f"{who} at step {step} writes over {key}, which {writer} wrote at step {before}")
        self._checkpoints[key] = who, step

    # Training

    def began(self, who: str, run: Run, step: int) -> None:
        """A lane goes on with a run from a step."""
        if self.seen_at.get(run.id, math.inf) < self.leased_at[who]:
            self.world.break_rule(f"{who} trains {run.id} again, which had a record before its lease")
        lost = self._reached.get(run.id, 0) - step
        if not any(queue.owns(who, run.id) for queue in self.queues):
            return
        if lost > 0:
            self.num_repeated += lost
            self.num_hits += 1
            self.world.note(who, "repeats", run.id, lost, "steps")
        if lost > self.interval:
            self.world.break_rule(
                f"{who} repeats {lost} steps of {run.id}, more than the {self.interval} of an interval"
            )
        self._reached[run.id] = step

    def stepped(self, who: str, run: Run, step: int) -> None:
        """A lane has come to a step of a run."""
        self.num_steps += 1
        if any(queue.owns(who, run.id) for queue in self.queues):
            self._reached[run.id] = step
            self._recovered(run.id)

    def _recovered(self, run_id: str) -> None:
        hit_at, _ = self._hit_at.pop(run_id, (self.world.now, ""))
        self.recovery_s = max(self.recovery_s, self.world.now - hit_at)


@dataclass
class _Held:
    lane: str
    process: str
    expires: float
    run_ids: set[str]


class QueueRules:
    """What one life of a queue may answer.

    Args:
        rules: those of all.
        process: the queue's.
        planned: the ids of the runs that it is given.
        lease_s, grace_s: its settings.
        is_restart: whether it is not the first life of its actor.
    """

    def __init__(
        self,
        rules: Rules,
        process: Process,
        planned: set[str],
        lease_s: float,
        grace_s: float,
        *,
        is_restart: bool,
    ) -> None:
        self._rules = rules
        self._process = process
        self._clock = process.monotonic
        self._started_at = process.monotonic()
        self._planned = planned
        self._lease_s = lease_s
        self._is_restart = is_restart
        self._grace_s = grace_s
        self._recorded_before = set(rules.winners)
        self._leases: dict[Token, _Held] = {}
        self._asked: dict[tuple[str, str], Token] = {}  # by process and request
        self._told: set[str] = set()
        self._given_up: set[str] = set()
        self._grace_until = -math.inf
        rules.queues.append(self)

    def runs_of(self, process: str) -> set[str]:
        """What a lane's process holds."""
        return {run_id for held in self._leases.values() if held.process == process for run_id in held.run_ids}

    def owns(self, process: str, run_id: str) -> bool:
        """Whether a lane's process holds a run now."""
        return not self._process.is_dead and any(
            held.process == process and run_id in held.run_ids and held.expires > self._clock()
            for held in self._leases.values()
        )

    def begin(self, instance: Any) -> None:
        """The queue is made."""
        self._queue: LeaseQueue = instance._queue
        self._told = set(self._queue._recorded)
        self._expect(
            self._recorded_before <= self._told <= self._rules.winners.keys(),
            "a new queue knows other records than there are",
        )
        if self._is_restart:
            self._grace_until = self._queue._grace_until
            self._expect(
                self._grace_until >= self._started_at + self._grace_s, "a queue has less grace than it is given"
            )
        self._expect(self._queue.incarnation not in self._rules.incarnations, "two queues have one incarnation")
        self._rules.incarnations.add(self._queue.incarnation)

    def before(self, caller: str, method: str, args: tuple[Any, ...]) -> None:
        """A call is about to be answered; silent lanes lose what they hold."""
        self._rules.trap(caller, f"call {method}")
        now = self._clock()
        silent = [token for token, held in self._leases.items() if held.expires <= now]
        lost = {run_id for token in silent for run_id in self._leases.pop(token).run_ids}
        decisions = self._queue.expire(now)
        self._expect(decisions.keys() == lost, f"silence costs {sorted(decisions)}, not {sorted(lost)}")
        self._learn(decisions)

    def after(self, caller: str, method: str, args: tuple[Any, ...], reply: Any) -> None:
        """A call was answered."""
        checks: dict[str, Callable[..., None]] = {
            "lease": self._lease,
            "heartbeat": self._heartbeat,
            "complete": self._complete,
            "recorded": self._recorded,
            "fail": self._fail,
            "arrive": self._arrive,
            "reregister": self._reregister,
            "stats": self._stats,
        }
        checks[method](caller, reply, *args)
        self._stats(caller, self._queue.stats())
        self._rules.trap(caller, f"call {method} done")

    def _lease(self, caller: str, reply: LeaseReply, lane: str, max_runs: int, request: str) -> None:
        if reply.lease is None:
            if reply.state is LeaseState.EMPTY:
                self._expect(not self._leases, "nothing is said to be left while lanes hold runs")
            return
        run_ids = {run.id for run in reply.lease.runs}
        if (token := self._asked.get((caller, request))) in self._leases:
            is_same = reply.lease.token == token and run_ids == self._leases[token].run_ids
            self._expect(is_same, "a call that is repeated has another lease")
            return
        self._asked[caller, request] = reply.lease.token
        self._expect(self._clock() >= self._grace_until, "a lease is granted in the time of grace")
        self._expect(1 <= len(run_ids) <= max_runs, f"a lease holds {len(run_ids)} runs of {max_runs}")
        self._expect(run_ids <= self._planned, "a run is leased that nobody planned")
        self._expect(not run_ids & self._told, "a run with a record is leased")
        self._expect(not run_ids & self._given_up, "a run that was given up is leased")
        self._expect(not run_ids & self._owned(), "a run has two owners")
        self._expect(reply.lease.token not in self._rules.tokens, f"the token {reply.lease.token} was granted before")
        self._rules.tokens.add(reply.lease.token)
        self._rules.leased_at[caller] = self._rules.world.now
        self._leases[reply.lease.token] = _Held(lane, caller, self._clock() + self._lease_s, run_ids)

    def _heartbeat(self, caller: str, reply: bool, lane: str, token: Token, saved: object = None) -> None:
        held = self._leases.get(token)
        self._expect(reply == (held is not None and held.lane == lane), f"a heartbeat of {token} is answered {reply}")
        if held is not None and reply:
            held.expires = self._clock() + self._lease_s

    def _complete(self, caller: str, reply: bool, run_id: str, token: Token, status: object) -> None:
        is_owner = token in self._leases and run_id in self._leases[token].run_ids
        self._expect(
            reply == (is_owner or run_id in self._told), f"the end of {run_id} under {token} is answered {reply}"
        )
        if reply:
            self._recorded(caller, None, {run_id})

    def _recorded(self, caller: str, reply: None, run_ids: set[str], diverged: object = None) -> None:
        self._expect(run_ids <= self._rules.winners.keys(), "a queue is told of records that are not there")
        self._told |= run_ids
        self._given_up -= run_ids
        self._drop(run_ids)

    def _fail(
        self,
        caller: str,
        reply: dict[str, Decision],
        run_ids: list[str],
        token: Token,
        kind: FailureKind,
        reason: str = "",
    ) -> None:
        held = self._leases[token].run_ids if token in self._leases else set()
        self._expect(reply.keys() == held & set(run_ids), f"{token} fails {sorted(reply)}, not what it holds")
        injected = kind in (FailureKind.RETURNED, FailureKind.LANE_LOST) or "simulated" in reason
        self._expect(injected or "the store must answer" in reason, f"a lane fails for a reason of its own: {reason}")
        self._drop(set(reply))
        self._learn(reply)

    def _arrive(self, caller: str, reply: dict[str, Decision], lane: str) -> None:
        held = {run_id for held in self._leases.values() if held.lane == lane for run_id in held.run_ids}
        self._expect(reply.keys() == held, f"{lane} lost {sorted(reply)}, not the {sorted(held)} that it holds")
        self._drop(held)
        self._learn(reply)

    def _reregister(self, caller: str, reply: tuple[str, ...], lane: str, run_ids: list[str], token: Token) -> None:
        if not reply:
            return
        kept = set(reply)
        self._expect(self._clock() < self._grace_until, "a lane registers after the time of grace")
        self._expect(token.incarnation < self._queue.incarnation, "a lane registers a lease that cannot be old")
        later = {run_id for other, held in self._leases.items() if other > token for run_id in held.run_ids}
        self._expect(kept <= set(run_ids) - self._told - later, "a lane registers what is not its own any more")
        self._drop(kept)
        self._leases[token] = _Held(lane, caller, self._clock() + self._lease_s, kept)

    def _stats(self, caller: str, reply: Any) -> None:
        stats = reply
        self._expect(
            stats.planned == len(self._planned), f"of {len(self._planned)} planned runs {stats.planned} are left"
        )
        total = stats.finished + stats.running + stats.pending + stats.waiting_for_teacher + len(stats.failed)
        self._expect(total == stats.planned, f"the numbers do not add up: {stats}")
        self._expect(
            stats.running == len(self._owned()), f"{stats.running} runs are said to run, not {len(self._owned())}"
        )
        self._expect(
            stats.finished == len(self._told & self._planned), f"{stats.finished} runs are said to be finished"
        )
        self._expect(self._given_up <= stats.failed.keys() <= self._planned - self._told, "the failed runs are others")
        self._expect(all(stats.failed.values()), "a run is given up without a reason")

    def _owned(self) -> set[str]:
        return {run_id for held in self._leases.values() for run_id in held.run_ids}

    def _drop(self, run_ids: set[str]) -> None:
        for token, held in list(self._leases.items()):
            held.run_ids -= run_ids
            if not held.run_ids:
                del self._leases[token]

    def _learn(self, decisions: Mapping[str, Decision]) -> None:
        self._given_up |= {run_id for run_id, decision in decisions.items() if decision is Decision.GIVE_UP}

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self._rules.world.break_rule(f"queue {getattr(self._queue, 'incarnation', '?')}: {text}")


def _lease_of(record: Record) -> _Lease:
    return record.provenance.incarnation, record.provenance.attempt
