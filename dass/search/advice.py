"""What else to say of a ranking: how sure it is, whether pilot runs pay, and whether the task is one to trust it on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dass.kd.teacher import Teacher
from dass.meta.calibration import Calibration
from dass.meta.novelty import MIN_GROUPS, Novelty, novelty, sketch
from dass.search.confidence import HeadConfidence, PilotPlan, head_confidence, pilot_runs
from dass.search.select import PredictorScorer
from dass.seeding import generator
from dass.spaces.space import SearchSpace

LEVEL = 0.8  # of the interval: what five groups of meta tasks can vouch for
TOP_SHARE = 0.1  # a winner is compared with held-out students that were predicted to be among the best tenth
_DRAWN = 200  # students that tell the spread of the task's predictions


@dataclass(frozen=True)
class Advice:
    """Of a ranking's winner and of its task; percent and accuracy points.

    predicted_pct: the winner's. epochs: of the distillation after which it would have that; None where that is unknown.
    interval_pct: where the accuracy of one run of it lies with a chance of `level`; None where there were too few tasks for
    that level. It and the pilot runs go by the tasks held out, or by `num_elsewhere` of other images where that is above 0.
    """

    predicted_pct: float
    epochs: int | None
    level: float
    interval_pct: tuple[float, float] | None
    head: HeadConfidence
    pilots: PilotPlan
    novelty: Novelty
    num_elsewhere: int = 0

    @property
    def sentences(self) -> tuple[str, ...]:
        """All of it in words."""
        return (self._accuracy, self.head.verdict, self._pilots, *self._warning)

    @property
    def _accuracy(self) -> str:
        after = "" if self.epochs is None else f" after {self.epochs} epochs"
        predicted, level = f"Predicted for the winner{after}: {self.predicted_pct:.1f} %", f"{100 * self.level:.0f} %"
        if self.interval_pct is None:
            return f"{predicted}; too few tasks were held out for an interval of {level}."
        low, high = self.interval_pct
        within = f"with a chance of {level} between {low:.1f} and {high:.1f} %"
        if self.num_elsewhere:
            return f"{predicted}, {within}, by {self.num_elsewhere} tasks of images that it never saw either."
        if self.novelty.is_unlike_all:
            return (
                f"{predicted}. On a task like those held out it would have a chance of {level} to lie between {low:.1f} and "
                f"{high:.1f} %; this one is unlike them, so what the chance is nobody knows."
            )
        return f"{predicted}, {within}, by tasks that were held out."

    @property
    def _pilots(self) -> str:
        plan = self.pilots
        where = f"{self.num_elsewhere} tasks of images that it never saw" if self.num_elsewhere else "tasks held out"
        found = (
            f"On {where}, the winner of {plan.students} or more students came out {plan.before_pct:.1f} points behind "
            "the best of them"
        )
        if not plan.runs:
            return f"{found}: within {plan.within_pct:g} points, so no pilot run is needed."
        few = f"the best of the first {plan.runs} {plan.after_pct:.1f}"
        if not plan.is_enough:
            return f"{found}, {few}: more pilot runs than that would be needed to be within {plan.within_pct:g} points."
        if plan.before_pct <= plan.within_pct:
            reason = "this task is unlike all meta tasks" if self.novelty.is_unlike_all else "this winner is not clear"
            return f"{found}, {few}: distil so many as pilot runs, as {reason}."
        is_guess = self.novelty.is_unlike_all and not self.num_elsewhere
        at_least = "at least so many" if is_guess else "so many"
        return f"{found}, {few}: distil {at_least} as pilot runs to be within {plan.within_pct:g} points."

    @property
    def _warning(self) -> Sequence[str]:
        if not self.novelty.is_unlike_all:
            return ()
        return (f"Careful, this task looks unlike all meta tasks: {'; '.join(self.novelty.reasons)}.",)


def advise(
    calibration: Calibration | None,
    scorer: PredictorScorer,
    space: SearchSpace,
    teacher: Teacher,
    num_classes: int,
    scores: Sequence[float],
    *,
    epochs: int | None = None,
) -> Advice | None:
    """The advice on a ranking; None where there is nothing to tell.

    That is without a calibration, with one of fewer groups of tasks than `novelty` compares, and where scores do not tell
    students apart. scores: of all candidates, percent, in any order. epochs: see `Advice`.
    """
    scores_pct = torch.tensor(scores)
    if calibration is None or len(calibration.groups) < MIN_GROUPS or int(scores_pct.isfinite().sum()) < 2:
        return None
    drawn = space.sample(min(_DRAWN, space.size), generator("spread", 0), calibration.sampler)
    known = scorer.score(drawn)
    if len(known := known[known.isfinite()]) < 2 or not (spread_pct := float(known.std())) > 0:
        return None
    best_pct = float(scores_pct[scores_pct.isfinite()].max())
    head = head_confidence(calibration, scores_pct, spread_pct=spread_pct)
    unlike = novelty(calibration.teachers, sketch(scorer.map_of(teacher.student), teacher.accuracy_pct), num_classes)
    judging = calibration.judging(LEVEL, is_unlike_all=unlike.is_unlike_all)
    is_settled = head.is_distinguishable and not unlike.is_unlike_all
    return Advice(
        predicted_pct=best_pct,
        epochs=epochs,
        level=LEVEL,
        interval_pct=judging.interval(best_pct, LEVEL, TOP_SHARE),
        head=head,
        pilots=pilot_runs(judging, least=0 if is_settled else 2),
        novelty=unlike,
        num_elsewhere=0 if judging is calibration else len(judging.tasks),
    )
