"""A cluster in virtual time, with its users: who starts what, and what follows when a process ends.

Real are the lanes with their heartbeats (cluster.lane.Lane, cluster.heartbeat), the queue and its actor's class with
their plan and retry policy, checkpoints, records, claims, weights, events and compaction: their modules get the simulated
store, Ray, clock and threads in the place of the real ones, and `ChainCohort` in the place of training. What cluster.lanes
does with Ray itself is mirrored: `Submission` is run_plan with its queue and its lanes, each of which Ray Train starts
again until it has failed too often.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError

import cluster.heartbeat
import cluster.lane
import cluster.queue_actor
import cluster.queue_meter
from cluster.lane import Lane, LaneJob
from cluster.memory import MemoryUse
from cluster.queue import QueueStats
from cluster.queue_actor import QueueActor
from dass.errors import DassError
from tests.chaos.chain import ChainCohort, Training
from tests.chaos.kernel import Process, World
from tests.chaos.rules import QueueRules, Rules
from tests.chaos.schedule import LEASE_S, Schedule
from tests.chaos.simulated_ray import Actor, SimulatedOs, SimulatedRay, SimulatedThreading, SimulatedTime
from tests.chaos.simulated_store import SimulatedStore
from tests.cluster.stores import Killed

POLL_S = 8.0
WAIT_S = 3.0
START_S = (1.0, 6.0)  # Ray Train starts a lane
THINK_S = (1.0, 20.0)  # the user submits again
ORPHAN_S = 25.0  # for how long lanes may outlive their driver


class Cluster:
    """What the submissions of one schedule share.

    trap: called at the changes of the store and the calls of queues; see `Rules`.
    """

    def __init__(self, world: World, schedule: Schedule, trap: Callable[[str, str], None]) -> None:
        self.world = world
        self.schedule = schedule
        self.rules = Rules(world, schedule.right, schedule.values, schedule.interval, trap)
        self.store = SimulatedStore(world, self.rules)
        self.ray = SimulatedRay(world)
        self.submissions: list[Submission] = []
        self._training = Training(
            world,
            step_s=schedule.step_s,
            evaluation_s=schedule.evaluation_s,
            memory=schedule.memory,
            diverges_at=schedule.diverges_at,
            troubles=schedule.troubles,
            is_faulty=lambda: world.now < schedule.faults_end_s,
            began=self.rules.began,
            stepped=self.rules.stepped,
        )

    @property
    def lanes(self) -> "list[LaneLives]":
        """All that were ever started."""
        return [lane for submission in self.submissions for lane in submission.lanes]

    @property
    def queues(self) -> list[Process]:
        """The processes of all that were ever started."""
        return [submission.queue.process for submission in self.submissions if submission.queue is not None]

    def start(self, name: str, work: Callable[[], object]) -> Process:
        """Start a process that does some work."""
        return Process(self.world, name, work, partial(self.note_exit, name))

    def note_exit(self, name: str, error: BaseException | None) -> None:
        """A process has ended; only what was injected may end it with an error."""
        self.world.note(name, "ends", error)
        if not (error is None or isinstance(error, DassError | RayError | Killed)):
            self.world.break_rule(f"{name} ends by {type(error).__name__}: {error}")

    @contextmanager
    def patched(self) -> "Iterator[Cluster]":
        """The modules of the cluster layer in the simulator, for the time of a `with` block."""
        world = self.world
        time, numbers = SimulatedTime(world), itertools.count()
        changes: list[tuple[Any, dict[str, Any]]] = [
            (
                cluster.lane,
                {
                    "ray": self.ray,
                    "time": time,
                    "open_store": lambda *_: self.store,
                    "Cohort": partial(ChainCohort, self._training),
                    "ResidentBatches": SimpleNamespace(of=lambda *_: _NO_DATA),
                    "LaneReporter": _NoReporter,
                    "MemoryMeter": lambda *_: SimpleNamespace(read=lambda: MemoryUse(0, 0, math.inf)),
                    "keep_freed_memory": lambda: None,
                    "gc": SimpleNamespace(collect=lambda: None),
                    "uuid": SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=str(next(numbers)))),
                    "WAIT_S": WAIT_S,
                    "device_name": str,
                },
            ),
            (cluster.lane.Lane, {"_load_pack": lambda lane, task: None}),
            (
                cluster.heartbeat,
                {"ray": self.ray, "time": time, "threading": SimulatedThreading(world), "os": SimulatedOs(world)},
            ),
            (
                cluster.queue_actor,
                {"time": time, "open_store": lambda *_: self.store, "_was_restarted": self._was_restarted},
            ),
            (cluster.queue_meter, {"EventLog": lambda *_, **__: SimpleNamespace(emit=_nothing, flush=_nothing)}),
        ]
        with pytest.MonkeyPatch.context() as patch:
            for place, values in changes:
                for name, value in values.items():
                    patch.setattr(place, name, value)
            yield self

    def _was_restarted(self) -> bool:
        return not self.world.process.name.endswith("#1")


class User:
    """Submits a plan again until nothing is left to do; for what fails for its own reason once more after the faults."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self.is_content = False
        self._submit()

    def _submit(self) -> None:
        number = len(self._cluster.submissions) + 1
        self._is_calm = self._cluster.world.now >= self._cluster.schedule.faults_end_s
        submission = Submission(self._cluster, f"{self._name}.{number}", self._ended)
        self._cluster.submissions.append(submission)

    def _ended(self, stats: QueueStats | None) -> None:
        is_done = stats is not None and stats.finished + len(stats.failed) == stats.planned
        if is_done and (self._is_calm or not (stats and stats.failed)):
            self.is_content = True
        else:
            self._cluster.world.at(self._cluster.world.random.uniform(*THINK_S), self._submit)


def _nothing(*_: object, **__: object) -> None:
    pass


_NO_DATA = SimpleNamespace()


class _NoReporter(AbstractContextManager[None]):
    """What lanes tell of themselves: nothing depends on it."""

    hold = begin = note = wait = __init__ = __exit__ = _nothing


class Submission:
    """A driver with its queue and its lanes, as cluster.lanes.run_plan has them.

    ended: called when the driver has ended, with the last stats where it came that far.
    """

    def __init__(self, cluster: Cluster, name: str, ended: Callable[[QueueStats | None], None]) -> None:
        self._cluster = cluster
        self._name = name
        self._ended = ended
        self._stats: QueueStats | None = None
        self.queue: Actor | None = None
        self.lanes: list[LaneLives] = []
        self.driver = Process(cluster.world, f"driver {name}", self._drive, self._exited)

    def _drive(self) -> None:
        cluster, settings = self._cluster, self._cluster.schedule.settings
        self.queue = queue = Actor(cluster.world, f"queue {self._name}", self._make_queue, self._observe)
        cluster.ray.get(queue.stats.remote())
        self.lanes = [LaneLives(cluster, queue, self._name, number) for number in range(settings.num)]
        while not all(lane.is_over for lane in self.lanes):
            cluster.ray.get(queue.stats.remote())
            cluster.world.sleep(POLL_S)
        self._stats = cluster.ray.get(queue.stats.remote())

    def _make_queue(self) -> QueueActor:
        return QueueActor(self._cluster.store.url, self._cluster.schedule.plan.runs, grace_s=LEASE_S, lease_s=LEASE_S)

    def _observe(self, process: Process, is_restart: bool) -> QueueRules:
        planned = {run.id for run in self._cluster.schedule.plan.runs}
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


class LaneLives:
    """One lane under Ray Train: started again when its process ends badly, until that has happened too often."""

    def __init__(self, cluster: Cluster, queue: Actor, submission: str, number: int) -> None:
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
        job = LaneJob(self._cluster.store.url, "queue", self._cluster.schedule.settings)
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
        if self._num_lives > self._cluster.schedule.settings.max_failures:
            self.is_over = True
        else:
            world.at(world.random.uniform(*START_S), self._start)
