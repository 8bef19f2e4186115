"""What a seed makes of one schedule before anything happens: the plan, the fleet, and what its runs meet."""

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from cluster.plan import Plan
from cluster.settings import LaneConfig
from dass.records import Recipe, Result, Run, Student, Task
from tests.chaos.chain import NUM_BATCHES, ChainState, Trouble, right_result

LEASE_S = 10.0
HANG_S = 40.0
MANY_FAILURES = 7  # more than the attempts that a run has
DIVERGING = 0.08  # share of the runs
TROUBLED = 0.1
DOUBLE = 0.15  # share of the schedules
TASK = Task("task-a", "a", "pack", 32, ("x", "y"), (0, 1), (0,), (1,), (2,))


@dataclass(frozen=True)
class Schedule:
    """See the top. Times are virtual seconds; `diverges_at` (a step) and `troubles` are by run id.

    memory: students that fit in a lane. is_double: two drivers submit the plan at the same time.
    """

    plan: Plan
    settings: LaneConfig
    step_s: float
    evaluation_s: float
    memory: int
    diverges_at: Mapping[str, int]
    troubles: Mapping[str, Trouble]
    faults_end_s: float
    is_double: bool

    @classmethod
    def draw(cls, chance: random.Random) -> "Schedule":
        """One of all that may be."""
        plan = Plan("collect", tuple(_runs(chance)))
        settings = LaneConfig(
            num=chance.randint(1, 3),
            cohort_size=chance.randint(1, 4),
            yield_every=chance.randint(1, 5),
            checkpoint_s=chance.choice((0.5, 3.0, 6.0)),
            lease_s=LEASE_S,
            hang_s=HANG_S,
            max_failures=chance.choice((3, 4, MANY_FAILURES)),
        )
        return cls(
            plan=plan,
            settings=settings,
            step_s=chance.choice((0.3, 0.6, 1.5)),
            evaluation_s=chance.choice((0.1, 0.1, 1.4 * LEASE_S)),
            memory=chance.choice((1, 2, 9, 9, 9)),
            diverges_at={
                run.id: chance.randint(1, run.recipe.epochs * NUM_BATCHES)
                for run in plan.runs
                if chance.random() < DIVERGING
            },
            troubles=_troubles(chance, plan.runs, settings.max_failures),
            faults_end_s=chance.uniform(20, 120),
            is_double=chance.random() < DOUBLE,
        )

    @property
    def interval(self) -> float:
        """Most steps between two checkpoints of a run; infinite where a second driver trains it too."""
        steps = self.settings.checkpoint_s / (0.95 * 1.2 * self.step_s)  # 0.95: a lane's clock may be slow
        return math.inf if self.is_double else steps + max(self.settings.yield_every, NUM_BATCHES) + 1

    @property
    def attainable(self) -> set[str]:
        """The runs that have a record in the end: neither they nor their teachers fail for ever."""
        hopeless = {run_id for run_id, trouble in self.troubles.items() if trouble.times == math.inf}
        unusable = hopeless | self.diverges_at.keys()
        return {run.id for run in self.plan.runs if run.id not in hopeless and run.teacher not in unusable}

    @cached_property
    def right(self) -> Mapping[str, Result]:
        """The one result of each run."""
        return {run_id: result for run_id, (result, _) in self._ends.items()}

    @cached_property
    def values(self) -> Mapping[str, list[bytes]]:
        """By run id the chain's value before the first step and after each."""
        return {run.id: self._values(run) for run in self.plan.runs}

    @cached_property
    def _ends(self) -> Mapping[str, tuple[Result, bytes]]:
        ends: dict[str, tuple[Result, bytes]] = {}
        for run in self.plan.runs:  # teachers come before their students
            teacher = b"" if run.teacher is None else ends[run.teacher][1]
            ends[run.id] = right_result(run, teacher, self.diverges_at.get(run.id))
        return ends

    def _values(self, run: Run) -> list[bytes]:
        state = ChainState.first(run, b"" if run.teacher is None else self._ends[run.teacher][1])
        values = [state.value]
        for _ in range(state.num_steps):
            state = state.after()
            values.append(state.value)
        return values


def _runs(chance: random.Random) -> Iterator[Run]:
    """A teacher or two with their students; each is a student of a plan somewhere."""
    recipe = Recipe(epochs=chance.randint(1, 4), eval_every=1)
    for number in range(chance.randint(1, 2)):
        teacher = Run(TASK.id, None, Student(((8,), (8,), (8 + number,))), replace(recipe, loss="ce", init="scratch"))
        yield teacher
        for width in range(chance.randint(0, 5)):
            for seed in range(chance.randint(1, 2)):
                yield Run(TASK.id, teacher.id, Student(((4,), (4,), (4 + width,))), recipe, seed)


def _troubles(chance: random.Random, runs: tuple[Run, ...], max_failures: int) -> dict[str, Trouble]:
    """What happens to which run.

    At most one ends every lane that trains it, and only where a lane has more lives than a run has attempts: with fewer
    the lanes are gone before the queue gives the run up, and its company is not trained.
    """
    troubles: dict[str, Trouble] = {}
    for run in runs:
        if chance.random() < TROUBLED:
            kind = chance.choice(["error", "out of memory", "hang", "crash"])
            ends_lanes = kind in ("hang", "crash")
            is_first = not any(each.kind in ("hang", "crash") for each in troubles.values())
            may_last = not ends_lanes or (is_first and max_failures >= MANY_FAILURES)
            times = chance.choice([1, 2, math.inf] if may_last else [1, 2])
            troubles[run.id] = Trouble(kind, chance.randrange(run.recipe.epochs * NUM_BATCHES), times)
    return troubles
