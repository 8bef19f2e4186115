"""The numbers behind the page: estimates over seeds, the comparison with the controls, the frontier, the agreement."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal, TypeGuard

from dass.cost import count_macs, count_params
from dass.metrics import spearman
from dass.records import Record, Status, Student
from dass.report.model import Final, PageData
from dass.search.ranking import Candidate, pareto

Part = Literal["test", "valid"]
Outcome = Literal["ahead", "tied", "behind"]


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation over `num` seeds; `sd` is None for a single one."""

    mean: float
    sd: float | None
    num: int


@dataclass(frozen=True)
class Cost:
    """MACs and parameters of a student on the target."""

    macs: int
    params: int


@dataclass(frozen=True)
class Comparison:
    """The recommended student against the best of the controls.

    lead: mean accuracy of the recommended student minus the control's, in points.
    margin: two standard errors of that difference, or None when no student was distilled with two seeds.
    """

    control: Final
    estimate: Estimate
    lead: float
    margin: float | None

    @property
    def outcome(self) -> Outcome:
        """`tied` when the lead lies within the margin; without a known margin the sign alone decides."""
        if abs(self.lead) <= (self.margin or 0.0):
            return "tied"
        return "ahead" if self.lead > 0 else "behind"


@dataclass(frozen=True)
class Pair:
    """A distilled student: what was predicted and what came out on valid; `role` is None for an observed student."""

    predicted: float
    actual: float
    macs: int
    role: str | None = None


@dataclass(frozen=True)
class Agreement:
    """Rank correlation with the accuracies of `num` distilled students, of the predictor and of MACs alone.

    A correlation is None where it is undefined: fewer than two students, or constant values.
    """

    num: int
    by_score: float | None
    by_macs: float | None
    mean_abs_error: float | None


def is_finite(value: float | None) -> TypeGuard[float]:
    """Whether the value is known and a finite number."""
    return value is not None and math.isfinite(value)


def accuracy(record: Record, part: Part) -> float | None:
    """Accuracy in percent on `part` (valid: of the best epoch, whose weights are kept); None if diverged or unknown."""
    if record.result.status != Status.FINISHED:
        return None
    value = record.result.test_accuracy_pct if part == "test" else record.result.best_accuracy_pct
    return value if is_finite(value) else None


def estimate(records: Iterable[Record], part: Part) -> Estimate | None:
    """Mean and spread over the finished seeds; None if there is none."""
    values = [value for record in records if (value := accuracy(record, part)) is not None]
    if not values:
        return None
    return Estimate(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def num_diverged(records: Iterable[Record]) -> int:
    """How many of the seeds diverged."""
    return sum(record.result.status == Status.DIVERGED for record in records)


def reported_part(page: PageData) -> Part:
    """`test` when every finished final was measured on it, else `valid`: a comparison never mixes the two."""
    finished = [r for final in page.finals for r in final.records if r.result.status == Status.FINISHED]
    return "test" if finished and all(accuracy(record, "test") is not None for record in finished) else "valid"


def recommended(page: PageData) -> Final | None:
    """The final the search chose; before the distillation the best candidate stands in for it."""
    chosen = next((final for final in page.finals if final.role == "recommended"), None)
    if chosen is None and page.candidates:
        best = page.candidates[0]
        return Final("recommended", best.student, best.score)
    return chosen


def controls(page: PageData) -> tuple[Final, ...]:
    """All finals of another student than the recommended one."""
    chosen = recommended(page)
    return tuple(f for f in page.finals if chosen is not None and f.student != chosen.student)


def pooled_sd(estimates: Iterable[Estimate]) -> float | None:
    """Standard deviation between seeds, taken as the same for every student; None without two seeds of one student."""
    repeated = [(e.sd, e.num - 1) for e in estimates if e.sd is not None]
    if not repeated:
        return None
    return math.sqrt(sum(sd**2 * freedom for sd, freedom in repeated) / sum(freedom for _, freedom in repeated))


def compare(page: PageData) -> Comparison | None:
    """The recommended student against the control of the highest mean; None until both are distilled."""
    part, chosen = reported_part(page), recommended(page)
    ours = estimate(chosen.records, part) if chosen else None
    rivals = [(e, f) for f in controls(page) if (e := estimate(f.records, part)) is not None]
    if ours is None or not rivals:
        return None
    theirs, control = max(rivals, key=lambda rival: rival[0].mean)
    sd = pooled_sd([ours, *(e for e, _ in rivals)])
    margin = None if sd is None else 2 * sd * math.sqrt(1 / ours.num + 1 / theirs.num)
    return Comparison(control, theirs, ours.mean - theirs.mean, margin)


def cost_of(page: PageData, student: Student) -> Cost | None:
    """Cost on the target in closed form; None while the target's classes are unknown."""
    if not page.classes:
        return None
    num_classes = len(page.classes)
    return Cost(count_macs(student, page.resolution, num_classes), count_params(student, num_classes))


def frontier(page: PageData) -> tuple[Candidate, ...]:
    """The best predicted student of every budget of MACs: no other candidate is as cheap and scores higher."""
    return tuple(pareto(candidate for candidate in page.candidates if is_finite(candidate.score)))


def measured(page: PageData, student: Student) -> float | None:
    """Mean accuracy on valid of a student that was distilled in full; None for every other student."""
    found = estimate((r for final in page.finals if final.student == student for r in final.records), "valid")
    return found.mean if found else None


def pairs(page: PageData) -> tuple[Pair, ...]:
    """Predicted and actual accuracy on valid: the observed students, then the finals as means over their seeds."""
    seen = [
        Pair(o.point.score, actual, o.point.macs)
        for o in page.observed
        if (actual := accuracy(o.record, "valid")) is not None
    ]
    finals = [
        Pair(final.predicted, mean.mean, final.records[0].macs, final.role)
        for final in page.finals
        if final.predicted is not None and (mean := estimate(final.records, "valid")) is not None
    ]
    return (*seen, *finals)


def agree(points: Sequence[Pair]) -> Agreement:
    """How well the predictor, and MACs alone, rank the students of `points`."""
    actual = [point.actual for point in points]
    errors = [abs(point.predicted - point.actual) for point in points]
    return Agreement(
        num=len(points),
        by_score=_finite(spearman([point.predicted for point in points], actual)),
        by_macs=_finite(spearman([point.macs for point in points], actual)),
        mean_abs_error=fmean(errors) if errors else None,
    )


def _finite(value: float) -> float | None:
    return value if is_finite(value) else None
