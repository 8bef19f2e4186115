"""Students as ranked for a task, and the way from there to a distilled one."""

from collections.abc import Callable, Sequence
from typing import overload

from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.kd.alone import train_alone
from dass.kd.teacher import Teacher
from dass.records import Recipe, Run, Student, Task
from dass.report.cards import render_card
from dass.report.model import PageData
from dass.report.wording import count, percent
from dass.search.advice import Advice
from dass.search.budget import Budget
from dass.search.ranking import COLUMNS, Candidate, Ranking, pareto, to_row
from dass.spaces import SearchSpace
from dass.zoo.distilled import Distilled

SHOWN = 10
STUDENT_RECIPE = Recipe()


class RankedStudents(Sequence[Candidate]):
    """Scored students, best first, as a sequence; in a notebook a table of the best and a picture of all.

    ranking: of them all. budget: that they are within. teacher, data: what they were ranked for.
    is_selected: whether meta-validation chose the predictor. advice: how far the ranking can be trusted, where the
    predictor was calibrated.
    """

    def __init__(
        self,
        ranking: Ranking,
        budget: Budget,
        space: SearchSpace,
        teacher: Teacher,
        data: ResidentBatches,
        *,
        is_selected: bool,
        advice: Advice | None = None,
    ) -> None:
        self._candidates = ranking.ranked
        self._sample = [] if ranking.is_complete else ranking.sample
        self.scored = ranking.scored
        self.budget = budget
        self.space = space
        self.teacher = teacher
        self.advice = advice
        self._data = data
        self._is_selected = is_selected

    @overload
    def __getitem__(self, index: int) -> Candidate: ...

    @overload
    def __getitem__(self, index: slice) -> list[Candidate]: ...

    def __getitem__(self, index: int | slice) -> Candidate | list[Candidate]:
        return self._candidates[index]

    def __len__(self) -> int:
        """How many are kept: all of them up to `KEEP_ALL`; `scored` is how many there were."""
        return len(self._candidates)

    @property
    def task(self) -> Task:
        """The images, cut into train, valid and test."""
        return self._data.task

    @property
    def best(self) -> Candidate:
        """The first."""
        return self[0]

    @property
    def frontier(self) -> list[Candidate]:
        """Those that no cheaper one beats, by rising MACs."""
        return pareto(self)

    def distil(
        self,
        student: Student | Candidate | None = None,
        *,
        seed: int = 1,
        recipe: Recipe = STUDENT_RECIPE,
        progress: Callable[[int, int], None] = lambda *_: None,
    ) -> Distilled:
        """Distil a student from the teacher: what the verb `distil` does for one seed, without a store.

        Args:
            student: any of the space; None: the best.
            seed: of the run.
            recipe: how it is trained; the released KD recipe where none is given.
            progress: called with the optimiser steps done and of all.

        Raises:
            SpaceError: the student is not one of the space.
            ConfigError: the recipe is not legal here, or the training diverged.
        """
        chosen = self.best if student is None else student
        chosen = chosen.student if isinstance(chosen, Candidate) else chosen
        self.space.check(chosen)
        run = Run(self.task.id, self.teacher.id, chosen, recipe, seed)
        trained = train_alone(run, self._data, self.teacher, progress)
        predicted = next((each.score for each in self if each.student == chosen), None)
        epochs = None if self.advice is None else self.advice.epochs
        return Distilled(trained, self.task, self.teacher, predicted, epochs)

    def __repr__(self) -> str:
        title, *lines = self._told()
        return "\n".join([title, *lines, *_aligned([COLUMNS, *map(to_row, self[:SHOWN])])])

    def _repr_html_(self) -> str:
        """The best in a table, and all in a picture."""
        from dass.report import figures  # matplotlib loads only for those who draw

        page = PageData(
            title="",
            space=self.space.name,
            resolution=self.task.resolution,
            target=self.task.name,
            classes=self.task.classes,
            teacher=None,
            largest=self.space.largest,
            max_macs=self.budget.max_macs,
            candidates=tuple(self),
            scored=self.scored,
            sample=tuple(self._sample),
        )
        num_classes, student = self.task.num_classes, self.teacher.student
        cost = count_macs(student, self.task.resolution, num_classes), count_params(student, num_classes)
        teacher = Candidate(student, self.teacher.accuracy_pct, *cost)
        title, *lines = self._told()
        rows = [to_row(each) for each in self[:SHOWN]]
        return render_card(title, lines, COLUMNS, rows, figures.predictions(page, teacher, "wide"))

    def _told(self) -> list[str]:
        """The ranking in words: a title, and a few lines."""
        task, limits = self.task, []
        if self.budget.max_macs is not None:
            limits.append(f"at most {count(self.budget.max_macs)} MACs")
        if self.budget.max_params is not None:
            limits.append(f"at most {count(self.budget.max_params)} parameters")
        macs = count_macs(self.teacher.student, task.resolution, task.num_classes)
        lines = [
            f"{self.scored:,} students ranked for {task.name}",
            ", ".join([f"{task.num_classes} classes at {task.resolution} px, space {self.space.name}", *limits]),
            f"The teacher reaches {percent(self.teacher.accuracy_pct)} % on valid with {count(macs)} MACs; the best student "
            f"is predicted to reach {percent(self.best.score)} % with {count(self.best.macs)}.",
        ]
        if not self._is_selected:
            lines.append(
                "Meta-validation gave no rank correlation, so the predictor is merely the last one of its training."
            )
        return lines if self.advice is None else [*lines, *self.advice.sentences]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of equal length as lines: the first column to the left, the others to the right."""
    left, *right = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([first.ljust(left), *(text.rjust(width) for text, width in zip(others, right, strict=True))])
        for first, *others in rows
    ]
