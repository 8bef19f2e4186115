import json
import math

import pytest

from dass.report import MetaPoint, facts
from tests.dass.report.example import BEST, LARGEST, RANDOM, TEACHER, empty_page, full_page


def macs(widths: tuple[tuple[int, ...], ...]) -> int:
    """MACs at 32 px and 3 classes, counted convolution by convolution."""
    total, entering = 27 * widths[0][0] * 32 * 32, widths[0][0]
    for side, stage in zip((32, 16, 8, 4), widths, strict=True):
        for width in stage:
            total += 9 * (entering * width + width * width) * side * side
            entering = width
    return total + 3 * entering


def test_recommended_student_is_the_mean_over_its_seeds() -> None:
    found = facts(full_page())["recommended"]
    assert found["student"] == "16.32-64-96.128-256"
    assert found["accuracy_pct"] == pytest.approx(85.0)
    assert found["accuracy_sd"] == pytest.approx(1.0)
    assert found["valid_accuracy_pct"] == pytest.approx(86.0)
    assert (found["predicted_pct"], found["seeds"], found["diverged"]) == (82.0, 3, 0)


def test_costs_equal_a_hand_count() -> None:
    found = facts(full_page())
    assert found["recommended"]["macs"] == macs(BEST.widths)
    assert found["teacher"]["macs"] == macs(TEACHER.widths)
    assert found["recommended"]["times_fewer_macs"] == pytest.approx(macs(TEACHER.widths) / macs(BEST.widths))
    assert [final["macs"] for final in found["finals"]] == [macs(s.widths) for s in (BEST, RANDOM, LARGEST)]


def test_controls_are_measured_from_the_recommended_student() -> None:
    found = facts(full_page())
    assert [final["ahead_by_pct"] for final in found["finals"]] == pytest.approx([0.0, -5.0, -4.0])
    assert found["comparison"]["control"] == "largest"
    assert found["comparison"]["lead_pct"] == pytest.approx(4.0)
    assert found["comparison"]["margin_pct"] == pytest.approx(2 * math.sqrt(1 / 3 + 1 / 3))  # every sd is 1


def test_agreement_equals_hand_computed_ranks() -> None:
    observed = facts(full_page())["agreement"]["observed"]
    # ranks 1 2 3 4 against 1 3 2 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15)
    assert observed == {
        "num": 4,
        "by_score": pytest.approx(0.8),
        "by_macs": pytest.approx(0.8),
        "mean_abs_error": pytest.approx((59 + 60 + 58 + 60) / 4),
    }


def test_finals_without_a_prediction_are_left_out_of_the_agreement() -> None:
    assert facts(full_page())["agreement"]["all"]["num"] == 6


def test_undefined_correlation_is_none() -> None:
    page = full_page()
    found = facts(full_page(observed=page.observed[:1], finals=()))["agreement"]["all"]
    assert (found["num"], found["by_score"], found["by_macs"]) == (1, None, None)


def test_tasks_have_their_five_numbers() -> None:
    plants, animals = facts(full_page())["tasks"]
    assert plants["accuracy_pct"] == {"min": 50.0, "q1": 55.0, "median": 60.0, "q3": 75.0, "max": 90.0}
    assert (plants["finished"], plants["planned"], plants["diverged"]) == (3, 4, 1)
    assert animals["accuracy_pct"] is None


def test_best_predictor_is_the_first_of_the_highest_spearman() -> None:
    assert facts(full_page())["meta"] == {
        "episodes": 60,
        "last_loss": 0.4,
        "best_valid_spearman": 0.8,
        "best_episode": 40,
    }


def test_what_is_not_finite_becomes_none() -> None:
    found = facts(full_page(meta=(MetaPoint(1, math.nan, math.nan),)))
    assert found["meta"] == {"episodes": 1, "last_loss": None, "best_valid_spearman": None, "best_episode": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_top_is_the_first_ten_in_rank() -> None:
    page = full_page()
    found = facts(page)["candidates"]
    assert found["num"] == 30
    assert [point["predicted_pct"] for point in found["top"]] == [point.score for point in page.candidates[:10]]


def test_runs_are_rows_under_named_columns() -> None:
    page = full_page()
    found = facts(page)["runs"]
    assert len(found["rows"]) == len(page.runs)
    first, last = (dict(zip(found["columns"], row, strict=True)) for row in (found["rows"][0], found["rows"][-1]))
    assert (first["accuracy_pct"], first["status"]) == (None, "diverged")
    run = page.runs[-1]
    assert (last["task"], last["student"], last["macs"], last["params"]) == (
        run.task,
        run.student.key,
        run.macs,
        run.params,
    )
    assert last["accuracy_pct"] == pytest.approx(run.accuracy_pct, abs=0.005)
    assert last["seconds"] == pytest.approx(run.seconds, abs=0.05)


def test_frontier_holds_many_budgets_and_tells_who_was_distilled() -> None:
    points = facts(full_page())["candidates"]["frontier"]
    assert len(points) > 5
    assert [point["valid_accuracy_pct"] for point in points] == [None] * (len(points) - 1) + [pytest.approx(86.0)]
    assert points[-1]["student"] == BEST.key


def test_trials_stand_winner_first_then_finalists_then_the_best_of_the_rest() -> None:
    trials = facts(full_page())["tuning"]
    assert [trial["number"] for trial in trials] == [2, 1, 0, 3]
    assert (trials[0]["seeds_mean"], trials[0]["seeds_sd"]) == (pytest.approx(0.5), pytest.approx(0.1))
    assert [trial["best_spearman"] for trial in trials] == [0.4, 0.5, 0.3, None]


def test_texts_that_are_no_unicode_become_writable() -> None:
    found = facts(empty_page(classes=("caf\udce9",)))
    assert found["classes"] == ["caf?"]


def test_empty_page_has_every_key_of_a_full_one() -> None:
    empty, full = facts(empty_page()), facts(full_page())
    assert empty.keys() == full.keys()
    assert empty["recommended"] is None
    assert full["missing"] == {}
    assert {"teacher", "tasks", "meta", "candidates", "finals", "observed"} <= empty["missing"].keys()
