"""What is said of a ranking, in words."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from dass.meta.calibration import calibrate
from dass.meta.held_out import HeldOut
from dass.meta.novelty import Novelty, sketch
from dass.records import Student
from dass.search.advice import Advice, advise
from dass.search.confidence import HeadConfidence, PilotPlan, head_confidence, pilot_runs
from dass.search.select import PredictorScorer, make_scorer
from dass.seeding import generator
from tests.dass.meta.test_features import NUM_CLASSES, SPACE
from tests.dass.search.test_make_scorer import METHODS, TEACHER

ADVICE = Advice(
    predicted_pct=61.23,
    epochs=None,
    level=0.8,
    interval_pct=(55.04, 67.4),
    head=HeadConfidence(0.71, (0.4, 0.3, 0.3), 0.95),
    pilots=PilotPlan(2, is_enough=True, within_pct=0.5, regrets_pct=(1.4, 1.4, 0.44), students=30),
    novelty=Novelty(0.5, ()),
)


def test_an_advice_in_words() -> None:
    assert ADVICE.sentences == (
        "Predicted for the winner: 61.2 %, with a chance of 80 % between 55.0 and 67.4 %, by tasks that were held out.",
        "The winner cannot be told from the runner-up at 95 %: it is better with a chance of 71 %, and the best of the first "
        "3 with one of 40 %.",
        "On tasks held out, the winner of 30 or more students came out 1.4 points behind the best of them, the best of the "
        "first 2 0.4: distil so many as pilot runs to be within 0.5 points.",
    )


@pytest.mark.parametrize(
    ("changed", "place", "sentence"),
    [
        (
            replace(ADVICE, epochs=6),
            0,
            "Predicted for the winner after 6 epochs: 61.2 %, with a chance of 80 % between 55.0 and 67.4 %, by tasks that were "
            "held out.",
        ),
        (
            replace(ADVICE, interval_pct=None),
            0,
            "Predicted for the winner: 61.2 %; too few tasks were held out for an interval of 80 %.",
        ),
        (
            replace(ADVICE, pilots=PilotPlan(0, is_enough=True, within_pct=0.5, regrets_pct=(0.3, 0.3), students=30)),
            2,
            "On tasks held out, the winner of 30 or more students came out 0.3 points behind the best of them: within 0.5 "
            "points, so no pilot run is needed.",
        ),
        (
            replace(ADVICE, pilots=PilotPlan(1, is_enough=False, within_pct=0.5, regrets_pct=(1.3, 1.3), students=30)),
            2,
            "On tasks held out, the winner of 30 or more students came out 1.3 points behind the best of them, the best of "
            "the first 1 1.3: more pilot runs than that would be needed to be within 0.5 points.",
        ),
        (
            replace(ADVICE, novelty=Novelty(2.0, ("one reason", "another"))),
            3,
            "Careful, this task looks unlike all meta tasks: one reason; another.",
        ),
        (
            replace(
                ADVICE, pilots=PilotPlan(2, is_enough=True, within_pct=0.5, regrets_pct=(0.3, 0.3, 0.1), students=30)
            ),
            2,
            "On tasks held out, the winner of 30 or more students came out 0.3 points behind the best of them, the best of the "
            "first 2 0.1: distil so many as pilot runs, as this winner is not clear.",
        ),
        (
            replace(ADVICE, novelty=Novelty(2.0, ("one reason",))),
            0,
            "Predicted for the winner: 61.2 %. On a task like those held out it would have a chance of 80 % to lie between 55.0 "
            "and 67.4 %; this one is unlike them, so what the chance is nobody knows.",
        ),
        (
            replace(ADVICE, novelty=Novelty(2.0, ("one reason",)), num_elsewhere=7),
            0,
            "Predicted for the winner: 61.2 %, with a chance of 80 % between 55.0 and 67.4 %, by 7 tasks of images that it never "
            "saw either.",
        ),
        (
            replace(ADVICE, novelty=Novelty(2.0, ("one reason",))),
            2,
            "On tasks held out, the winner of 30 or more students came out 1.4 points behind the best of them, the best of the "
            "first 2 0.4: distil at least so many as pilot runs to be within 0.5 points.",
        ),
        (
            replace(ADVICE, novelty=Novelty(2.0, ("one reason",)), num_elsewhere=7),
            2,
            "On 7 tasks of images that it never saw, the winner of 30 or more students came out 1.4 points behind the best of "
            "them, the best of the first 2 0.4: distil so many as pilot runs to be within 0.5 points.",
        ),
    ],
)
def test_what_else_may_be_said(changed: Advice, place: int, sentence: str) -> None:
    assert changed.sentences[place] == sentence


class Mute(PredictorScorer):
    """Says the same of every student."""

    def __init__(self, scorer: PredictorScorer, score: float) -> None:
        super().__init__(scorer._adapted, scorer._embedder, SPACE)
        self._score = score

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        return torch.full((len(students),), self._score)


def test_the_advice_on_a_ranking_knows_its_task_and_teacher() -> None:
    maps = torch.rand(9, 64, 2, 2, generator=generator("advice"))
    rng = generator("advice", 1)
    evidence = [
        HeldOut(
            f"task {index}",
            f"group {index}",
            sketch(maps[index], 60.0 + index),
            tuple((true := 50 + 5 * torch.randn(20, generator=rng)).tolist()),
            tuple((true + torch.randn(20, generator=rng)).tolist()),
        )
        for index in range(9)
    ]
    calibration = calibrate(evidence)
    scorer = make_scorer(METHODS["dass"], SPACE, TEACHER)
    scores = [40.0, 55.0, float("nan"), 54.0]
    found = advise(calibration, scorer, SPACE, TEACHER, NUM_CLASSES, scores)
    assert found is not None
    assert found.predicted_pct == 55.0
    assert found.interval_pct == calibration.interval(55.0, 0.8, 0.1)
    assert found.num_elsewhere == 0
    others = [
        replace(each, accuracies_pct=tuple(value - 9 for value in each.accuracies_pct), group=each.name)
        for each in evidence[:4]
    ]
    away = advise(calibrate(evidence, elsewhere=others), scorer, SPACE, TEACHER, NUM_CLASSES, scores)
    assert away is not None
    by_others = calibrate(others)
    pilots = pilot_runs(by_others, least=2)
    assert pilots != found.pilots
    assert away == replace(found, interval_pct=by_others.interval(55.0, 0.8, 0.1), pilots=pilots, num_elsewhere=4)
    assert any(f"{TEACHER.accuracy_pct:.1f} % is above those of all" in reason for reason in found.novelty.reasons)
    assert 0.5 < found.head.beats_runner_up < 1
    assert found.pilots == pilot_runs(calibration, least=2)
    assert advise(calibration, scorer, SPACE, TEACHER, NUM_CLASSES, scores[1:3]) is None
    stratified = replace(calibration, sampler="macs_stratified")
    drawn = SPACE.sample(min(200, SPACE.size), generator("spread", 0), "macs_stratified")
    told = advise(stratified, scorer, SPACE, TEACHER, NUM_CLASSES, scores)
    assert told is not None
    assert told.head == head_confidence(stratified, torch.tensor(scores), spread_pct=float(scorer.score(drawn).std()))
    for score in (math.nan, 50.0):  # as where a predictor's last layer is saturated
        alike = Mute(scorer, score)
        assert advise(calibration, alike, SPACE, TEACHER, NUM_CLASSES, scores) is None


@pytest.mark.parametrize(("lead", "accuracy_pct", "runs"), [(90.0, 62.0, 0), (0.05, 62.0, 2), (90.0, 99.0, 2)])
def test_no_pilot_run_is_needed_only_for_a_clear_winner_on_a_task_like_those_seen(
    lead: float, accuracy_pct: float, runs: int
) -> None:
    scorer = make_scorer(METHODS["dass"], SPACE, TEACHER)
    rng = generator("advice", 2)
    seen = scorer.map_of(TEACHER.student)
    evidence = [
        HeldOut(
            f"task {index}",
            f"group {index}",
            sketch(seen * (1 + 0.1 * torch.rand(1, generator=rng)), 60.0 + index),
            tuple((true := 50 + 5 * torch.randn(20, generator=rng)).tolist()),
            tuple((true + 0.1 * torch.randn(20, generator=rng)).tolist()),
        )
        for index in range(9)
    ]
    teacher = replace(TEACHER, accuracy_pct=accuracy_pct)
    found = advise(calibrate(evidence), scorer, SPACE, teacher, NUM_CLASSES, [0.0, lead])
    assert found is not None
    assert found.novelty.is_unlike_all is (accuracy_pct > 70)
    assert found.pilots.runs == runs
