"""What collecting costs beside training: runs that train nothing through the real queue, lanes, store and database.

    python -m tests.benchmarks control-plane [--json] [--runs N ...] [--lanes N ...] [--planned N ...] [--run-seconds S]

Everything is the product's own - driver, queue actor, lanes under Ray Train, packs, teachers, records, events, a folder as
the store - but for one class: in the lanes a cohort that ends all its runs in one yield stands in for the one that trains. So
this leaves out: building students, the further yields of a real run (a call of the queue each, whose time is told), and
checkpoints. With `--run-seconds` a lane waits so long for each run, which ends alone, as it would for its device: what is left of
more lanes' speed when this machine's cores only have the lanes to keep.

A collection's time runs from its first cohort to its last record; the start of the lanes is told apart. `parts` is one
lane in this process with the same queue actor, its calls timed one by one. `queue_alone` is the queue without Ray: what
leasing and completing costs for each run of a plan of N.

`ratio`: the cost of a run at most lanes over that at one lane; as many cores as lanes would bring it down to 1 / lanes.
`limit_share` is null, because nothing here convolves.
"""

import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import ray

import cluster.fleet
import cluster.lane
from cluster.database import RunDatabase
from cluster.documents import put_task
from cluster.events import EventLog, read_events
from cluster.lane import Lane, LaneJob
from cluster.lanes import run_plan
from cluster.objects import FolderStore
from cluster.packs import put_pack
from cluster.plan import Plan
from cluster.queue import LeaseQueue
from cluster.queue_actor import remote_queue
from cluster.runtime import NAMESPACE, session
from cluster.settings import LaneConfig
from cluster.weights import put_weights
from dass.data.batches import ResidentBatches
from dass.data.sources import read_source
from dass.data.splits import assign_parts, class_splits
from dass.kd.cohort import Ended, Position, Progress
from dass.kd.teacher import teacher_run
from dass.networks import build
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Task
from dass.seeding import generator
from dass.spaces import get_space
from tests.benchmarks.measure import document, parser, seconds, tell
from tests.benchmarks.processes import watched

ROOT = Path(__file__).resolve().parents[2]
SPACE = get_space("paper5_w8")
RECIPE = Recipe(epochs=50)
SETTINGS = LaneConfig(checkpoint_s=3600.0)  # never: there is nothing to save
CURVE = tuple(CurvePoint(5 * number, 1.0, 1.0, 50.0) for number in range(1, 11))
RESULT = Result(Status.FINISHED, CURVE, 10.0, 50.0, 50.0, 1.0)
WHERE = Provenance("2025-01-02T03:04:05+00:00", 1.0, 1, "lane0", "cpu", 1, "contiguous", "0.1.0", {}, 1)
CLASSES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (1, 3, 5))
NUM_CALLS = 300  # of the queue, to see what one takes
COHORT = 8
PARTS: Mapping[str, tuple[Any, str]] = {
    "write the records": (RunDatabase, "add"),
    "look for records": (Lane, "_without_record"),
    "load the teacher": (cluster.lane, "load_teacher"),
    "load the pack": (Lane, "_load_pack"),
    "batches": (ResidentBatches, "of"),
    "remove checkpoints": (cluster.lane, "remove_checkpoints"),
    "events": (EventLog, "emit"),
    "calls of the queue": (ray, "get"),
}


class IdleCohort:
    """Stands in for a Cohort, and ends its runs together.

    run_s: seconds of each run, after which it ends; where there are any, one run after the other.
    """

    run_s = 0.0
    step = 0
    images_per_step = 1

    def __init__(self, runs: Sequence[Run], *_: object, **__: object) -> None:
        self.runs = tuple(runs)
        self.position = Position()

    def train(self) -> Iterator[Progress]:
        """A yield for each run, or one for all that take no time."""
        while self.runs:
            num = 1 if self.run_s else len(self.runs)
            time.sleep(self.run_s)
            ended, self.runs = self.runs[:num], self.runs[num:]
            yield Progress(1, 1, 1, tuple(Ended(run, RESULT, None, self.run_s) for run in ended))


def train_nothing(config: dict[str, Any], run_s: float) -> None:
    """Ray Train's train function of a lane whose cohorts are idle."""
    with mock.patch.object(cluster.lane, "Cohort", IdleCohort), mock.patch.object(IdleCohort, "run_s", run_s):
        cluster.fleet._train_lane(config)


@dataclass(frozen=True)
class Site:
    """An empty store but for four tasks of the digits and their teachers."""

    store: FolderStore
    tasks: tuple[Task, ...]

    @classmethod
    def make(cls, folder: str) -> "Site":
        """Untrained teachers: nothing looks at their values."""
        store = FolderStore(Path(folder))
        pack = assign_parts(read_source("digits", 16), valid_fraction=0.5, test_fraction=0.3)
        tasks = tuple(class_splits(pack, list(CLASSES), [f"task{index}" for index in range(len(CLASSES))]))
        put_pack(store, pack)
        for task in tasks:
            put_task(store, task)
            sha = put_weights(store, build(SPACE.largest, task.num_classes, generator("teacher")).state_dict())
            record = Record(teacher_run(task, SPACE), RESULT, 1, 1, task.num_classes, 16, WHERE, sha)
            RunDatabase(store).add(record)
        return cls(store, tasks)

    def plan(self, num: int) -> Plan:
        """The same number of students for each task."""
        students = SPACE.sample(num, generator("students"))
        each = -(-num // len(self.tasks))
        runs = (
            Run(self.tasks[place // each].id, teacher_run(self.tasks[place // each], SPACE).id, student, RECIPE)
            for place, student in enumerate(students)
        )
        return Plan("collect", tuple(runs))


@dataclass(frozen=True)
class Collection:
    """Seconds from the call to the first cohort, and from there to the last record."""

    start_s: float
    work_s: float


def collect(num_runs: int, lanes: int) -> Collection:
    """A whole collection on lanes."""
    with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
        site = Site.make(folder)
        plan, began = site.plan(num_runs), time.time()
        *_, last = run_plan(site.store.url, plan, replace(SETTINGS, num=lanes))
        assert last.finished == num_runs
        times: dict[str, list[float]] = {"cohort": [], "ended": []}
        for event in read_events(site.store):
            times.setdefault(event.kind, []).append(datetime.fromisoformat(event.time).timestamp())
        assert len(times["ended"]) == num_runs
        return Collection(min(times["cohort"]) - began, max(times["ended"]) - min(times["cohort"]))


def parts(num_runs: int) -> dict[str, float]:
    """Milliseconds for each run of one lane in this process: in all, and of them in which calls."""
    with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
        site = Site.make(folder)
        plan = site.plan(num_runs)
        queue = remote_queue().options(name="parts", namespace=NAMESPACE).remote(site.store.url, plan.runs)
        ray.get(queue.stats.remote())
        lane = Lane("lane0", LaneJob(site.store.url, "parts", SETTINGS), queue)
        with mock.patch.object(cluster.lane, "Cohort", IdleCohort), stopwatches() as spent:
            total = seconds(lane.work)
        ray.kill(queue)
    named = {name: 1000 * spent[name] / num_runs for name in PARTS}
    return {"all": 1000 * total / num_runs, **named, "else": 1000 * total / num_runs - sum(named.values())}


@contextmanager
def stopwatches() -> Iterator[Counter[str]]:
    """Seconds spent in each of PARTS during a `with` block."""
    spent: Counter[str] = Counter()

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[name] += time.perf_counter() - began  # type: ignore[assignment]

        return run

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            stack.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield spent


def queue_call_ms() -> float:
    """The median of calls of a queue that holds nothing."""
    with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
        queue = remote_queue().remote(folder, ())
        ray.get(queue.stats.remote())
        times = [seconds(lambda: ray.get(queue.arrive.remote("lane0"))) for _ in range(NUM_CALLS)]
        ray.kill(queue)
    return 1000 * statistics.median(times)


def queue_alone_ms(num_planned: int) -> float:
    """Milliseconds for each run: leasing it in a cohort, a heartbeat for its cohort, completing it, and looking now and then."""
    plan = Plan("collect", tuple(Run("task", "e" * 64, each, RECIPE) for each in _students(num_planned)))
    queue = LeaseQueue(plan.runs, set(), 1)

    def work() -> None:
        while (lease := queue.lease("lane0", COHORT, 0.0).lease) is not None:
            queue.heartbeat("lane0", lease.token, 0.0)
            for run in lease.runs:
                queue.complete(run.id, lease.token, 0.0)
            if lease.token.attempt % 100 == 0:
                queue.stats()

    return 1000 * seconds(work) / num_planned


def _students(num: int) -> Sequence[Any]:
    return SPACE.sample(num, generator("planned"))


@contextmanager
def idle_session(num_lanes: int, run_s: float) -> Iterator[None]:
    """A local Ray in which lanes train nothing, and wait for each run."""
    os.environ["PYTHONPATH"] = str(ROOT)  # so that workers find this file
    ray.cloudpickle.register_pickle_by_value(cluster.fleet)  # as it is patched here
    with (
        mock.patch.object(cluster.fleet, "_train_lane", partial(train_nothing, run_s=run_s)),
        redirect_stdout(sys.stderr),  # Ray prints warnings there, as of many processes that start together
        session(num_lanes),
    ):
        yield


def measure(sizes: Sequence[int], lanes: Sequence[int], planned: Sequence[int], run_s: float) -> dict[str, Any]:
    """The document: one lane at each size, and at most runs each number of lanes."""
    alone = {num: queue_alone_ms(num) for num in planned}
    most = max(sizes)
    with idle_session(max(lanes), run_s), watched(os.getpid()) as memory:
        call_ms = queue_call_ms()
        by_runs = {num: collect(num, min(lanes)) for num in sizes}
        by_lanes = {num: by_runs[most] if num == min(lanes) else collect(most, num) for num in lanes}
        where = parts(most)
    first, last = by_lanes[min(lanes)], by_lanes[max(lanes)]
    return document(
        "control-plane",
        sizes={"runs": list(sizes), "lanes": list(lanes), "planned": list(planned), "run_s": run_s},
        ratio=round(last.work_s / first.work_s, 3),
        limit_share=None,
        peak_mb=round(memory.peak_mb),
        medians={
            "run by number of runs, one lane": _figures(
                "ms", {n: 1000 * each.work_s / n for n, each in by_runs.items()}
            ),
            "run by number of lanes": _figures("ms", {n: 1000 * each.work_s / most for n, each in by_lanes.items()}),
            "start by number of lanes": _figures("s", {n: each.start_s for n, each in by_lanes.items()}),
            "queue_alone by planned runs": _figures("ms", alone),
            "queue call": _figures("ms", {"": call_ms}),
            "parts of a run": _figures("ms", where),
        },
        points=[[num, round(each.work_s, 3)] for num, each in by_lanes.items()],
    )


def _figures(unit: str, values: Mapping[Any, float]) -> dict[str, Any]:
    return {"unit": unit, "values": {str(name): round(value, 3) for name, value in values.items()}}


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A table for each figure."""
    for title, figure in found["medians"].items():
        yield f"{title}, {figure['unit']}"
        for name, value in figure["values"].items():
            yield f"  {name:>20} {value:10.3f}"
    yield f"cost at most lanes / at one: {found['ratio']}; peak memory of all processes: {found['peak_mb']} MB"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options = parser("control-plane", __doc__)
    options.add_argument("--runs", type=int, nargs="+", default=[250, 500, 1000, 2000], metavar="N", help="runs")
    options.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 4], metavar="N", help="lanes")
    options.add_argument(
        "--planned", type=int, nargs="+", default=[1000, 10_000, 100_000], metavar="N", help="of the queue alone"
    )
    options.add_argument("--run-seconds", type=float, default=0.0, metavar="S", help="what a lane waits for each run")
    chosen = options.parse_args(arguments)
    found = measure(chosen.runs, chosen.lanes, chosen.planned, chosen.run_seconds)
    tell(found, as_json=chosen.json, lines=lines(found))
