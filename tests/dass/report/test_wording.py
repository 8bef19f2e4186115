import pytest

from dass.report import Final, PageData, verdict
from dass.report.wording import correlation, count, duration, percent, points, signed, spread, times
from tests.dass.report.example import BEST, LARGEST, RANDOM, TEACHER, empty_page, final, full_page, record


def page_of(ours: tuple[float, ...], theirs: tuple[float, ...]) -> PageData:
    return full_page(finals=(final("recommended", BEST, ours), final("random", RANDOM, theirs)))


def test_verdict_when_the_recommended_student_wins() -> None:
    said = verdict(full_page())
    assert said.startswith("The recommended student reaches 85.0 ± 1.0 % on test (over 3 seeds) with ")
    assert "fewer MACs than the teacher. It beats the best control, largest (81.0 ± 1.0 %, " in said
    assert said.endswith("by 4.0 points.")


def test_verdict_when_a_control_wins() -> None:
    said = verdict(page_of((80.0, 80.2), (83.0, 83.2)))
    assert "A control does better: random (83.1 ± 0.1 %" in said
    assert said.endswith("is ahead by 3.0 points.")


@pytest.mark.parametrize(("shift", "verb"), [(0.3, "leads"), (-0.3, "trails")])
def test_verdict_when_the_difference_is_noise(shift: float, verb: str) -> None:
    said = verdict(page_of((80.0 + shift, 82.0 + shift), (80.0, 82.0)))
    assert f"It {verb} the best control, random (81.0 ± 1.4 %" in said
    # two standard errors: 2 * sqrt(2) * sqrt(1/2 + 1/2)
    assert said.endswith("by 0.3 points, which is within the noise of ±2.8.")


@pytest.mark.parametrize(
    ("ours", "words"), [(84.0, "It beats the best control"), (80.0, "A control does better"), (82.0, "It equals")]
)
def test_verdict_of_single_seeds_says_that_the_noise_is_unknown(ours: float, words: str) -> None:
    said = verdict(page_of((ours,), (82.0,)))
    assert "(in one seed)" in said
    assert words in said
    assert said.endswith("without repeated seeds the noise is not known.")


def test_verdict_without_a_control_claims_nothing() -> None:
    said = verdict(full_page(finals=(final("recommended", BEST, (84.0, 85.0)),)))
    assert "whether the search beats chance is not known" in said


def test_verdict_before_the_distillation_is_a_prediction() -> None:
    said = verdict(full_page(finals=()))
    assert said.startswith("The recommended student is predicted to reach 82.0 % with ")
    assert said.endswith("It has not been distilled yet: run `dass distil`.")


def test_verdict_before_the_search() -> None:
    assert verdict(empty_page()) == "No student is recommended yet: run `dass search`."


def test_verdict_of_a_student_that_was_never_scored() -> None:
    said = verdict(empty_page(finals=(Final("recommended", BEST, None),)))
    assert said == "A student is recommended, but it has not been distilled yet: run `dass distil`."


def test_verdict_tells_of_seeds_that_diverged() -> None:
    some = (record(BEST, 80.0, test=79.0), record(BEST, None, seed=1))
    assert "(in one seed; 1 more diverged)" in verdict(full_page(finals=(Final("recommended", BEST, 82.0, some),)))
    said = verdict(full_page(finals=(Final("recommended", BEST, 82.0, some[1:]),)))
    assert said.startswith("The recommended student diverged in its only seed")


def test_verdict_names_valid_where_test_was_not_measured() -> None:
    finals = (Final("recommended", BEST, 82.0, (record(BEST, 84.0),)), final("largest", LARGEST, (80.0,)))
    assert "reaches 84.0 % on valid" in verdict(full_page(finals=finals))


def test_teacher_is_not_called_cheaper_than_itself() -> None:
    assert "fewer MACs" not in verdict(full_page(finals=(final("recommended", TEACHER, (84.0,)),)))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.00 k"), (812_345, "812 k"), (999_499, "999 k"), (999_600, "1.00 M"),
        (7_459_626, "7.46 M"), (99_960_000, "100 M"), (1_456_867_840, "1.46 G"), (None, "–"),
    ],
)  # fmt: skip
def test_counts_keep_three_digits(value: int | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"), (9.97, "10 s"), (42, "42 s"), (59.6, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
        (97200, "1 d 3 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_differences_have_a_sign_and_no_negative_zero() -> None:
    assert [signed(value) for value in (1.13, -0.4, -0.01, None)] == ["+1.1", "−0.4", "0.0", "–"]
    assert [points(value) for value in (-1.0, 2.04, 0.01)] == ["1.0 point", "2.0 points", "less than 0.1 points"]


def test_what_is_unknown_is_a_dash() -> None:
    assert [percent(None), percent(float("nan")), spread(None, None), times(None)] == ["–"] * 4
    assert correlation(None) == "undefined"
    assert correlation(-0.126) == "−0.13"
