"""One seeded schedule: submissions of one plan to a cluster in virtual time, faults at random moments, and rules.

Real are the lanes with their heartbeats (cluster.lane.Lane, cluster.heartbeat), the queue and its actor's class with
their plan and retry policy, checkpoints, records, claims, weights, events and compaction: their modules get the simulated
store, Ray, clock and threads in the place of the real ones, and `ChainCohort` in the place of training. What cluster.lanes
does with Ray itself is mirrored here: `_Submission` is run_plan, its queue and its lanes, each of which Ray Train starts
again until it has failed too often. A user submits again until all is done.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

import cluster.events
import cluster.heartbeat
import cluster.lane
import cluster.queue
from cluster.compaction import compact
from cluster.database import RunDatabase
from cluster.documents import put_task
from cluster.lane import Lane, LaneJob
from cluster.lanes import lanes_for
from cluster.memory import MemoryUse
from cluster.plan import Plan, pending
from cluster.queue import QueueActor, QueueStats
from cluster.settings import LaneConfig
from dass.errors import DassError
from dass.records import Recipe, Run, Student, Task
from tests.chaos.chain import NUM_BATCHES, ChainCohort, ChainState, Training, Trouble, right_result
from tests.chaos.kernel import Process, World
from tests.chaos.rules import QueueRules, Rules
from tests.chaos.simulated_ray import (
    Actor,
    SimulatedOs,
    SimulatedRay,
    SimulatedThreading,
    SimulatedTime,
)
from tests.chaos.simulated_store import SimulatedStore
from tests.cluster.stores import Killed

LEASE_S = 10.0
HANG_S = 40.0
POLL_S = 8.0
TRACED = 80  # events that are kept
START_S = (1.0, 6.0)  # Ray Train starts a lane
THINK_S = (1.0, 20.0)  # the user submits again
ORPHAN_S = 25.0  # for how long lanes may outlive their driver
CALM_S = 4000.0  # within which everything must be done once the faults have ended
CALLS = ("lease", "heartbeat", "complete", "recorded", "fail", "release", "reregister")
WRITES = {
    "lane": ("put checkpoints/", "put_if_absent records/", "put_if_absent blobs/", "delete checkpoints/"),
    "queue": ("put_if_absent queue/",),
}  # between two of which a process is killed
TASK = Task("task-a", "a", "pack", 32, ("x", "y"), (0, 1), (0,), (1,), (2,))


@dataclass(frozen=True)
class Outcome:
    """What happened in one schedule. Times in virtual seconds, numbers of steps over all runs.

    violation: the rule that was broken, with the last events in `trace`; None when all held.
    """

    seed: int
    violation: str | None
    trace: tuple[str, ...]
    faults: Counter[str]
    runs: int
    records: int
    submissions: int
    leases: int
    steps: int
    steps_repeated: int
    hits: int
    recovery_s: float
    virtual_s: float
    events: int


def simulate(seed: int, *, traced: bool = False) -> Outcome:
    """Run the schedule of a seed; traced: keep all events."""
    world = World(seed, traced=None if traced else TRACED)
    with _Cluster(world).patched() as cluster:
        cluster.play()
    world.close()
    rules = cluster.rules
    return Outcome(
        seed=seed,
        violation=world.violation,
        trace=tuple(world.told()) if world.violation or traced else (),
        faults=world.counts,
        runs=len(cluster.plan.runs),
        records=len(rules.winners),
        submissions=cluster.num_submissions,
        leases=len(rules.tokens),
        steps=rules.num_steps,
        steps_repeated=rules.num_repeated,
        hits=rules.num_hits,
        recovery_s=rules.recovery_s,
        virtual_s=world.now,
        events=world.num_events,
    )


class _Cluster:
    """Everything that one schedule is made of."""

    def __init__(self, world: World) -> None:
        chance = world.random
        self.world = world
        self.plan = Plan("collect", tuple(_runs(chance)))
        diverges_at = {
            run.id: chance.randint(1, run.recipe.epochs * NUM_BATCHES)
            for run in self.plan.runs
            if chance.random() < 0.08
        }
        self.faults_end_s = chance.uniform(20, 120)
        self.is_double = chance.random() < 0.15  # a second driver of the same plan at the same time
        self.settings = LaneConfig(
            num=chance.randint(1, 3),
            cohort_size=chance.randint(1, 4),
            yield_every=chance.randint(1, 5),
            checkpoint_s=chance.choice((0.5, 3.0, 6.0)),
            lease_s=LEASE_S,
            hang_s=HANG_S,
            max_failures=chance.randint(3, 5),  # a run that ends its lane is set apart at the third time
        )
        step_s = chance.choice((0.3, 0.6, 1.5))
        right = _right(self.plan, diverges_at)
        interval = self.settings.checkpoint_s / (0.95 * 1.2 * step_s) + max(self.settings.yield_every, NUM_BATCHES) + 1
        self.rules = Rules(
            world,
            {run_id: result for run_id, (result, _) in right.items()},
            {run.id: _values(run, right) for run in self.plan.runs},
            interval=math.inf if self.is_double else interval,
            trap=self.trap,
        )
        self.store = SimulatedStore(world, self.rules)
        self.ray = SimulatedRay(world)
        self.training = Training(
            world,
            step_s=step_s,
            evaluation_s=chance.choice((0.1, 0.1, 1.4 * LEASE_S)),
            memory=chance.choice((1, 2, 9, 9, 9)),
            diverges_at=diverges_at,
            troubles=_troubles(chance, self.plan.runs),
            is_faulty=lambda: world.now < self.faults_end_s,
            began=self.rules.began,
            stepped=self.rules.stepped,
        )
        self.traps: list[tuple[str, str]] = []
        self.submissions: list[_Submission] = []
        self.compactions: list[Process] = []
        self.num_submissions = 0

    def play(self) -> None:
        """Let everything happen, and check that everything is done in the end."""
        world = self.world
        self._as_process("setup", lambda: put_task(self.store, TASK))
        world.run(lambda: bool(self.store.objects), 10.0)
        self.users = [_User(self, f"user{number}") for number in range(2 if self.is_double else 1)]
        for _ in range(world.random.randint(1, 12)):
            world.at(world.random.uniform(0, self.faults_end_s), self._fault)
        world.at(self.faults_end_s, self._calm)
        is_over = world.run(self._is_over, self.faults_end_s + CALM_S)
        if world.violation is None and not is_over:
            world.break_rule(f"not all is done {CALM_S:g} s after the last fault")
        if world.violation is None:
            self._check_end()

    def _is_over(self) -> bool:
        return self.world.now > self.faults_end_s and all(user.is_content for user in self.users)

    def missing(self) -> set[str]:
        """What has no record, though neither it nor its teacher fails for ever."""
        hopeless = {run_id for run_id, trouble in self.training.troubles.items() if trouble.times == math.inf}
        unusable = hopeless | self.training.diverges_at.keys()
        expected = {run.id for run in self.plan.runs if run.id not in hopeless and run.teacher not in unusable}
        return expected - self.rules.winners.keys()

    def _check_end(self) -> None:
        if missing := self.missing():
            self.world.break_rule(f"the user is told that all is done, and {sorted(missing)} have no record")

    # Faults

    def _fault(self) -> None:
        kinds: dict[str, Callable[[], bool]] = {
            "lane killed": lambda: self._kill_one(self._lanes()),
            "lane killed between two operations": lambda: self._set_trap("lane"),
            "lane frozen": lambda: self._freeze_one(self._lanes()),
            "lane given up while it lives": self._part,
            "queue killed": lambda: self._kill_one(self._queues()),
            "queue killed between two operations": lambda: self._set_trap("queue"),
            "queue frozen": lambda: self._freeze_one(self._queues()),
            "driver killed": lambda: self._kill_one([submission.driver for submission in self.submissions]),
            "store down": self._store_down,
            "store loses requests": self._store_failing,
            "compaction": self._compact,
            "compaction killed": lambda: self._compact() and self._kill_compaction(),
            "two compactions": lambda: self._compact() and self._compact(),
            "reader": self._read,
        }
        kind = self.world.random.choice(list(kinds))
        if kinds[kind]():
            self.world.counts[kind] += 1
            self.world.note("chance", kind)

    def _calm(self) -> None:
        """From here on nothing goes wrong."""
        self.store.failing = 0.0
        self.store.down_until = 0.0
        self.traps.clear()

    def _lanes(self) -> list[Process]:
        return [lane.process for submission in self.submissions for lane in submission.lanes]

    def _queues(self) -> list[Process]:
        return [submission.queue.process for submission in self.submissions if submission.queue is not None]

    def _living(self, processes: list[Process]) -> Process | None:
        living = [process for process in processes if not process.is_dead]
        return self.world.random.choice(living) if living else None

    def _kill_one(self, processes: list[Process]) -> bool:
        if process := self._living(processes):
            self.rules.hit(process.name)
            process.kill()
        return process is not None

    def _freeze_one(self, processes: list[Process]) -> bool:
        if process := self._living(processes):
            self.rules.hit(process.name)
            process.freeze(self.world.random.choice((0.3, 1.0, 3.0)) * LEASE_S)
        return process is not None

    def _part(self) -> bool:
        """A lane is cut off and started again elsewhere, and the old one comes back: two processes of one name."""
        lanes = [lane for submission in self.submissions for lane in submission.lanes if not lane.process.is_dead]
        if lanes:
            lane = self.world.random.choice(lanes)
            self.rules.hit(lane.process.name)
            lane.process.freeze(self.world.random.choice((0.3, 1.0, 3.0)) * LEASE_S)
            lane.abandon()
        return bool(lanes)

    def _set_trap(self, victim: str) -> bool:
        chance = self.world.random
        moments = {f"call {method}{done}" for method in CALLS for done in ("", " done")}
        moments |= {
            f"{write.replace(' ', ' done ' if is_done else ' ')}" for write in WRITES[victim] for is_done in (0, 1)
        }
        self.traps.append((victim, chance.choice(sorted(moments))))
        return True

    def trap(self, who: str, what: str) -> None:
        """Kill a process in the midst of what it does."""
        for trap in self.traps:
            victim, moment = trap
            if what != moment and (what.startswith("call") or not what.startswith(moment)):
                continue
            is_call_to_queue = victim == "queue" and what.startswith("call")
            process = self.world.process if is_call_to_queue else self._named(who)
            if process is not None and process.name.startswith(victim):
                self.traps.remove(trap)
                self.world.counts[f"{victim} killed at: {moment}"] += 1
                self.world.note(process.name, "is killed at", what)
                self.rules.hit(process.name)
                self.world.at(0, process.kill)
                if process is self.world.process:
                    self.world.park()
                return

    def _named(self, name: str) -> Process | None:
        return next((p for p in [*self._lanes(), *self._queues()] if p.name == name and not p.is_dead), None)

    def _store_down(self) -> bool:
        self.store.down_until = self.world.now + self.world.random.uniform(1, 30)
        return True

    def _store_failing(self) -> bool:
        self.store.failing = self.world.random.choice((0.02, 0.1))
        self.world.at(self.world.random.uniform(5, 40), setattr, self.store, "failing", 0.0)
        return True

    def _compact(self) -> bool:
        def work() -> None:
            for _ in compact(self.store, 1.0, full_rows=3, sleep=self.world.sleep):
                pass

        self.compactions.append(self._as_process(f"compaction{len(self.compactions)}", work))
        return True

    def _kill_compaction(self) -> bool:
        process = self.compactions[-1]
        self.world.at(self.world.random.uniform(0, 4), process.kill)
        return True

    def _read(self) -> bool:
        def work() -> None:
            before = dict(self.rules.winners)
            records = {record.run.id: record for record in RunDatabase(self.store).scan()}
            for run_id, lease in before.items():
                record = records.get(run_id)
                if record is None or (record.provenance.incarnation, record.provenance.attempt) != lease:
                    self.world.break_rule(
                        f"a reader does not see the record of {run_id}, or another than that of {lease}"
                    )
            if missing := before.keys() - RunDatabase(self.store).finished_ids():
                self.world.break_rule(f"a reader does not see that {sorted(missing)} are finished")

        self._as_process("reader", work)
        return True

    def _as_process(self, name: str, work: Callable[[], object]) -> Process:
        return Process(self.world, name, work, partial(self.note_exit, name))

    def note_exit(self, name: str, error: BaseException | None) -> None:
        """A process has ended; only what was injected may end it with an error."""
        self.world.note(name, "ends", error)
        if not (error is None or isinstance(error, DassError | RayError | Killed)):
            self.world.break_rule(f"{name} ends by {type(error).__name__}: {error}")

    @contextmanager
    def patched(self) -> "Iterator[_Cluster]":
        """The modules of the cluster layer in the simulator, for the time of a `with` block."""
        world = self.world
        time = SimulatedTime(world)
        changes: list[tuple[Any, dict[str, Any]]] = [
            (
                cluster.lane,
                {
                    "ray": self.ray,
                    "time": time,
                    "open_store": lambda url: self.store,
                    "Cohort": partial(ChainCohort, self.training),
                    "ResidentBatches": SimpleNamespace(of=lambda *_: None),
                    "MemoryMeter": lambda *_: SimpleNamespace(read=lambda: MemoryUse(0, 0, math.inf)),
                    "keep_freed_memory": lambda: None,
                    "gc": SimpleNamespace(collect=lambda: None),
                    "WAIT_S": 3.0,
                    "device_name": str,
                },
            ),
            (cluster.lane.Lane, {"_load_pack": lambda lane, task: None}),
            (
                cluster.heartbeat,
                {"ray": self.ray, "time": time, "threading": SimulatedThreading(world), "os": SimulatedOs(world)},
            ),
            (
                cluster.queue,
                {"time": time, "open_store": lambda url: self.store, "_was_restarted": self._was_restarted},
            ),
        ]
        with pytest.MonkeyPatch.context() as patch:
            for place, values in changes:
                for name, value in values.items():
                    patch.setattr(place, name, value)
            yield self

    def _was_restarted(self) -> bool:
        return not self.world.process.name.endswith("#1")


class _User:
    """Submits a plan again until nothing is left to do; for what fails for its own reason once more after the faults.

    A run that ends every lane ends its driver with them: the user gives up on it when all else is there.
    """

    def __init__(self, cluster: _Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self.is_content = False
        self._submit()

    def _submit(self) -> None:
        self._cluster.num_submissions += 1
        self._is_calm = self._cluster.world.now >= self._cluster.faults_end_s
        submission = _Submission(self._cluster, f"{self._name}.{self._cluster.num_submissions}", self._ended)
        self._cluster.submissions.append(submission)

    def _ended(self, stats: QueueStats | None) -> None:
        is_done = stats is not None and stats.finished + len(stats.failed) == stats.planned
        is_perfect = is_done and not (stats and stats.failed)
        if is_perfect or (self._is_calm and (is_done or not self._cluster.missing())):
            self.is_content = True
        else:
            self._cluster.world.at(self._cluster.world.random.uniform(*THINK_S), self._submit)


class _Submission:
    """A driver with its queue and its lanes, as cluster.lanes.run_plan has them.

    ended: called when the driver has ended, with the last stats where it came that far.
    """

    def __init__(self, cluster: _Cluster, name: str, ended: Callable[[QueueStats | None], None]) -> None:
        self._cluster = cluster
        self._name = name
        self._ended = ended
        self._stats: QueueStats | None = None
        self.queue: Actor | None = None
        self.lanes: list[_LaneLives] = []
        self.driver = Process(cluster.world, f"driver {name}", self._drive, self._exited)

    def _drive(self) -> None:
        cluster, settings = self._cluster, self._cluster.settings
        left = pending(cluster.plan, RunDatabase(cluster.store).finished_ids())
        self.queue = queue = Actor(cluster.world, f"queue {self._name}", self._make_queue, self._observe)
        cluster.ray.get(queue.stats.remote())
        self.lanes = [_LaneLives(cluster, queue, self._name, number) for number in range(lanes_for(left, settings))]
        while not all(lane.is_over for lane in self.lanes):
            cluster.ray.get(queue.stats.remote())
            cluster.world.sleep(POLL_S)
        self._stats = cluster.ray.get(queue.stats.remote())

    def _make_queue(self) -> QueueActor:
        return QueueActor(self._cluster.store.url, self._cluster.plan.runs, grace_s=LEASE_S, lease_s=LEASE_S)

    def _observe(self, process: Process, is_restart: bool) -> QueueRules:
        planned = {run.id for run in self._cluster.plan.runs}
        return QueueRules(self._cluster.rules, process, planned, LEASE_S, LEASE_S, is_restart=is_restart)

    def _exited(self, error: BaseException | None) -> None:
        """Ray ends the queue and the lanes of a driver that has ended, sooner or later."""
        world = self._cluster.world
        self._cluster.note_exit(self.driver.name, error)
        if self.queue is not None:
            world.at(0 if error is None else world.random.uniform(0, 3), self.queue.destroy)
        for lane in self.lanes:
            lane.abandon_all(ORPHAN_S)
        self._ended(self._stats)


class _LaneLives:
    """One lane under Ray Train: started again when its process ends badly, until that has happened too often."""

    def __init__(self, cluster: _Cluster, queue: Actor, submission: str, number: int) -> None:
        self._cluster = cluster
        self._queue = queue
        self._name = f"lane{number}"
        self._where = submission
        self._num_lives = 0
        self.is_over = False
        self._start()

    def _start(self) -> None:
        if self.is_over:
            return
        self._num_lives += 1
        name = f"{self._name} {self._where}#{self._num_lives}"
        self.process = Process(self._cluster.world, name, self._work, partial(self._exited, self._num_lives, name))

    def abandon(self) -> None:
        """Ray takes the present process for dead, though it lives, and starts another one."""
        self._next_life()

    def abandon_all(self, within_s: float) -> None:
        """The driver has ended: no life follows, and the present one ends some time."""
        self.is_over = True
        world = self._cluster.world
        if not self.process.is_dead:
            world.at(world.random.uniform(0, within_s), self.process.kill)

    def _work(self) -> None:
        job = LaneJob(self._cluster.store.url, "queue", self._cluster.settings)
        Lane(self._name, job, self._queue).work()

    def _exited(self, life: int, name: str, error: BaseException | None) -> None:
        self._cluster.note_exit(name, error)
        if life != self._num_lives:
            return
        if error is None:
            self.is_over = True
        else:
            self._next_life()

    def _next_life(self) -> None:
        world = self._cluster.world
        if self._num_lives > self._cluster.settings.max_failures:
            self.is_over = True
        else:
            world.at(world.random.uniform(*START_S), self._start)


def _runs(chance: random.Random) -> Iterator[Run]:
    """A teacher or two with their students; each is a student of a plan somewhere."""
    recipe = Recipe(epochs=chance.randint(1, 4), eval_every=1)
    for number in range(chance.randint(1, 2)):
        teacher = Run(TASK.id, None, Student(((8,), (8,), (8 + number,))), replace(recipe, loss="ce", init="scratch"))
        yield teacher
        for width in range(chance.randint(0, 5)):
            for seed in range(chance.randint(1, 2)):
                yield Run(TASK.id, teacher.id, Student(((4,), (4,), (4 + width,))), recipe, seed)


def _right(plan: Plan, diverges_at: dict[str, int]) -> dict[str, Any]:
    right: dict[str, Any] = {}
    for run in plan.runs:
        teacher = b"" if run.teacher is None else right[run.teacher][1]
        right[run.id] = right_result(run, teacher, diverges_at.get(run.id))
    return right


def _values(run: Run, right: dict[str, Any]) -> list[bytes]:
    state = ChainState.first(run, b"" if run.teacher is None else right[run.teacher][1])
    values = [state.value]
    for _ in range(state.num_steps):
        state = state.after()
        values.append(state.value)
    return values


def _troubles(chance: random.Random, runs: tuple[Run, ...]) -> dict[str, Trouble]:
    """What happens to which run; at most one ends every lane that trains it, because a lane has few lives."""
    troubles = {}
    for run in runs:
        if chance.random() < 0.1:
            kind = chance.choice(["error", "out of memory", "hang", "crash"])
            ends_lanes = kind in ("hang", "crash")
            is_first = not any(each.kind in ("hang", "crash") for each in troubles.values())
            times = chance.choice([1, 2, math.inf] if not ends_lanes or is_first else [1, 2])
            troubles[run.id] = Trouble(kind, chance.randrange(run.recipe.epochs * NUM_BATCHES), times)
    return troubles
