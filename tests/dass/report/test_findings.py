import dataclasses
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dass.records import Student
from dass.report import Final
from dass.report.findings import Estimate, accuracy, controls, estimate, frontier, measured, pooled_sd, reported_part
from dass.search.ranking import Candidate
from tests.dass.report.example import BEST, RANDOM, empty_page, final, full_page, record

STUDENT = Student(((8,),))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=30))
def test_frontier_is_what_nobody_beats(points: list[tuple[int, int]]) -> None:
    candidates = [Candidate(STUDENT, float(score), macs, 1) for macs, score in points]
    undominated = {
        (p.macs, p.score)
        for p in candidates
        if not any(
            (o.macs <= p.macs and o.score > p.score) or (o.macs < p.macs and o.score >= p.score) for o in candidates
        )
    }
    found = [(p.macs, p.score) for p in frontier(full_page(candidates=tuple(candidates)))]
    assert len(found) == len(undominated)
    assert set(found) == undominated
    assert found == sorted(found)


def test_frontier_leaves_out_scores_that_are_not_finite() -> None:
    sound = Candidate(STUDENT, 1.0, 20, 1)
    candidates = (Candidate(STUDENT, math.inf, 5, 1), Candidate(STUDENT, math.nan, 10, 1), sound)
    assert frontier(full_page(candidates=candidates)) == (sound,)


def test_only_students_that_were_distilled_in_full_are_measured() -> None:
    page = full_page()
    assert measured(page, BEST) == pytest.approx(86.0)
    assert measured(page, page.observed[0].record.run.student) is None


def test_pooled_sd_weighs_by_degrees_of_freedom() -> None:
    estimates = [Estimate(0.0, 1.0, 3), Estimate(0.0, 2.0, 2), Estimate(0.0, None, 1)]
    assert pooled_sd(estimates) == pytest.approx(math.sqrt((2 * 1 + 1 * 4) / 3))


def test_pooled_sd_needs_a_repeated_seed() -> None:
    assert pooled_sd([Estimate(1.0, None, 1), Estimate(2.0, None, 1)]) is None


def test_estimate_leaves_out_seeds_that_diverged() -> None:
    values = (70.0, 72.0, 77.0)
    seeds = [*(record(BEST, value, seed=seed) for seed, value in enumerate(values)), record(BEST, None, seed=3)]
    found = estimate(seeds, "valid")
    assert found is not None
    assert (found.mean, found.sd) == pytest.approx((73.0, statistics.stdev(values)))
    assert found.num == 3


def test_single_seed_has_no_spread() -> None:
    assert estimate([record(BEST, 70.0)], "valid") == Estimate(70.0, None, 1)


def test_unmeasured_test_accuracy_is_none() -> None:
    assert accuracy(record(BEST, 70.0), "test") is None


def test_accuracy_that_is_not_finite_is_none() -> None:
    sound = record(BEST, 70.0)
    broken = dataclasses.replace(sound, result=dataclasses.replace(sound.result, best_accuracy_pct=math.nan))
    assert accuracy(broken, "valid") is None


def test_valid_is_reported_for_all_when_one_final_was_not_tested() -> None:
    untested = Final("random", RANDOM, None, (record(RANDOM, 70.0),))
    assert reported_part(full_page()) == "test"
    assert reported_part(full_page(finals=(final("recommended", BEST, (84.0,)), untested))) == "valid"
    assert reported_part(empty_page()) == "valid"


def test_recommended_student_is_no_control_of_itself() -> None:
    page = full_page(finals=(final("recommended", BEST, (84.0,)), final("largest", BEST, (84.0,))))
    assert controls(page) == ()
