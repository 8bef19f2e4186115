"""Tasks drawn from a known world, to hold calibrations against: a task has an error of its level, an own slope and noise.

accuracy = level error + slope * prediction + residual; what a further run shows has label noise in addition.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dass.meta.held_out import HeldOut
from dass.meta.novelty import STATISTICS, TeacherSketch

Values = npt.NDArray[np.float64]
TEACHER = TeacherSketch(80.0, (0.0,) * len(STATISTICS))


@dataclass(frozen=True)
class World:
    """How tasks come about; `useless`: the share of tasks whose predictions say nothing."""

    level_sd: float = 4.0
    slopes: tuple[float, float] = (0.7, 1.3)
    sds: tuple[float, float] = (1.0, 2.5)
    spreads: tuple[float, float] = (3.0, 3.0)
    useless: float = 0.0
    label_noise: float = 0.0
    heavy_tails: bool = False  # residuals of Student's t with 2 degrees of freedom, whose variance is infinite
    per_spread: bool = False  # a prediction means as much as its place in the task's spread

    def draw(self, rng: np.random.Generator, num: int, level: float | None = None) -> tuple[Values, Values, Values]:
        """Of one new task with `num` students: predictions, expected accuracies, and what one run of each shows."""
        level = rng.normal(0, self.level_sd) if level is None else level
        predicted = rng.uniform(*self.spreads) * rng.normal(size=num)
        slope, sd = (float(each[0]) for each in self.kinds(rng, 1))
        scaled = 3 * predicted / predicted.std(ddof=1) if self.per_spread else predicted
        true = level + slope * scaled + sd * self.residuals(rng, num)
        return 60 + predicted, 60 + true, 60 + true + self.label_noise * rng.normal(size=num)

    def kinds(self, rng: np.random.Generator, num: int) -> tuple[Values, Values]:
        """The slopes (num,) and residual sds (num,) of new tasks."""
        slopes = np.where(rng.random(num) < self.useless, 0.0, rng.uniform(*self.slopes, size=num))
        return slopes, rng.uniform(*self.sds, size=num)

    def residuals(self, rng: np.random.Generator, size: int | tuple[int, ...]) -> Values:
        """What is left of accuracies, before its task's sd."""
        drawn: Values = rng.standard_t(2, size=size) if self.heavy_tails else rng.normal(size=size)
        return drawn

    def held_out(self, rng: np.random.Generator, tasks: int, num: int, per_group: int = 1) -> list[HeldOut]:
        """So many tasks as if they had been held out; those of one group have one error of the level in common."""
        levels = np.repeat(rng.normal(0, self.level_sd, size=-(-tasks // per_group)), per_group)
        found = []
        for index in range(tasks):
            predicted, _, shown = self.draw(rng, num, levels[index])
            name, group = f"task {index}", f"group {index // per_group}"
            found.append(HeldOut(name, group, TEACHER, tuple(predicted.tolist()), tuple(shown.tolist())))
        return found
