import math
from collections import Counter
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from dass.errors import ConfigError
from dass.meta.train import MetaConfig, MetaProgress
from dass.meta.tuning import (
    CHOICES,
    KEPT,
    LOG_RANGES,
    Trial,
    TrialStatus,
    TuneConfig,
    best_seed,
    draws,
    finalists,
    grace_episodes,
    last_rung,
    mean_spearman,
    seeded,
    spec_for,
    varying,
    winner,
)
from tests.dass.meta.toy import spec

BASE = MetaConfig(episodes=90, queries=20, eval_every=10, hidden_dim=48, rate_init=0.004, seed=7)
TUNE = TuneConfig()
MANY = draws(BASE, TUNE, 300)


def trial(
    number: int, *values: float | None, status: TrialStatus = "finished", seed: int = 7, episode: int = 90
) -> Trial:
    curve = tuple(MetaProgress(episode, 1.0, value, False, 0) for value in values)
    return Trial(number, replace(BASE, seed=seed), status, curve)


class TestDraws:
    def test_the_first_is_the_base_and_no_two_are_equal(self) -> None:
        assert MANY[0] == BASE
        assert len(set(MANY)) == len(MANY)

    def test_more_of_them_begin_with_the_same_and_another_seed_gives_others(self) -> None:
        assert draws(BASE, TUNE, 20) == MANY[:20]
        assert len(set(draws(BASE, replace(TUNE, seed=1), 20)[1:]) & set(MANY[:20])) < 5  # small changes may coincide

    def test_what_is_compared_at_equal_length_and_seed_stays_as_in_the_base(self) -> None:
        for name in ("episodes", "eval_every", "seed", "tasks_per_episode"):
            assert {getattr(config, name) for config in MANY} == {getattr(BASE, name)}

    def test_every_value_of_every_choice_is_tried_about_as_often_as_it_is_listed(self) -> None:
        for name, values in CHOICES.items():
            has_effect = [config for config in MANY[1:] if config.guided or name not in ("inner_steps", "order")]
            drawn = Counter(getattr(config, name) for config in has_effect)
            for value in {*values, getattr(BASE, name)}:
                expected = (1 - KEPT) * values.count(value) / len(values) + KEPT * (value == getattr(BASE, name))
                tolerance = 4 * math.sqrt(expected * (1 - expected) / drawn.total())  # four standard deviations
                assert drawn[value] / drawn.total() == pytest.approx(expected, abs=tolerance), (name, value)
        assert {config.queries for config in MANY} == {20, 10}

    @pytest.mark.parametrize("name", LOG_RANGES)
    def test_rates_that_change_are_uniform_on_a_logarithmic_scale(self, name: str) -> None:
        low, high = LOG_RANGES[name]
        values = [getattr(config, name) for config in MANY if getattr(config, name) != getattr(BASE, name)]
        assert len(values) > 80
        assert low * 0.99 <= min(values)
        assert max(values) <= high * 1.01
        assert kstest([math.log(value / low) / math.log(high / low) for value in values], "uniform").pvalue > 1e-3

    def test_what_has_no_effect_stands_as_in_the_base(self) -> None:
        unguided = [config for config in MANY if not config.guided]
        assert unguided
        assert {(c.inner_steps, c.order, c.rate_init) for c in unguided} == {
            (BASE.inner_steps, BASE.order, BASE.rate_init)
        }

    @settings(max_examples=30)
    @given(queries=st.integers(1, 3), seed=st.integers(0, 2**31))
    def test_all_are_legal_whatever_the_base(self, queries: int, seed: int) -> None:
        base = MetaConfig(episodes=1, queries=queries, eval_every=5)
        for config in draws(base, TuneConfig(seed=seed), 8):
            made = spec_for(config, spec(base))  # the config has checked itself; so does the spec
            assert all(
                getattr(made, name) == getattr(config, name) for name in ("inputs", "unit", "hidden_dim", "guided")
            )
            assert (made.space, made.resolution, made.noise_sha) == ("toy", 16, "n0")

    def test_settings_that_differ_are_named(self) -> None:
        assert varying([BASE, replace(BASE, lr=0.1), replace(BASE, lr=0.2, unit="task_free")]) == ["lr", "unit"]
        assert varying([BASE]) == []


@pytest.mark.parametrize(
    ("episodes", "tune", "first", "last"),
    [
        (90, TuneConfig(), 10, 30),
        (1000, TuneConfig(), 112, 336),
        (400, TuneConfig(rungs=4, reduction_factor=2), 50, 200),
        (4, TuneConfig(), 1, 3),
        (90, TuneConfig(rungs=1), 90, 90),
    ],
)
def test_rungs_are_a_factor_apart(episodes: int, tune: TuneConfig, first: int, last: int) -> None:
    base = replace(BASE, episodes=episodes)
    assert (grace_episodes(base, tune), last_rung(base, tune)) == (first, last)


@pytest.mark.parametrize(("name", "value"), [("rungs", 0), ("reduction_factor", 1), ("finalists", 0), ("seeds", 0)])
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"tune\.{name} must be >= {value + 1}, got {value}; set tune\.{name}"):
        TuneConfig(**{name: value})


def test_only_what_a_trial_depends_on_enters_its_identity() -> None:
    same = replace(TUNE, finalists=9, seeds=9)
    assert same.of_trials == TUNE.of_trials
    others = {replace(TUNE, **{name: 5}).of_trials for name in ("seed", "rungs", "reduction_factor")}
    assert len(others | {TUNE.of_trials}) == 4
    assert set(asdict(TUNE)) == {
        "seed",
        "rungs",
        "reduction_factor",
        "finalists",
        "seeds",
    }  # a new one must be decided on


class TestConclusions:
    def test_a_trial_is_worth_its_best_evaluation_and_an_undefined_one_less_than_any(self) -> None:
        trials = [trial(0, None), trial(1, -1.0), trial(2, 0.9, 0.1), trial(3, 0.5, None)]
        assert [each.best for each in trials] == [None, -1.0, 0.9, 0.5]
        assert [each.number for each in finalists(trials, BASE, replace(TUNE, finalists=4))] == [2, 3, 1, 0]

    def test_finalists_reached_the_last_rung_before_others_fill_up(self) -> None:
        trials = [
            trial(0, 0.9, status="stopped", episode=10),
            trial(1, 0.2, status="stopped", episode=30),
            trial(2, 0.3),
            trial(3, 0.99, status="failed"),
            trial(4, 0.95, status="running"),
        ]
        assert [each.number for each in finalists(trials, BASE, TUNE)] == [2, 1, 0]
        assert [each.number for each in finalists(trials, BASE, replace(TUNE, finalists=1))] == [2]

    def test_a_tie_goes_to_the_lower_number(self) -> None:
        trials = [trial(2, 0.5), trial(0, 0.5), trial(1, 0.5)]
        assert [each.number for each in finalists(trials, BASE, TUNE)] == [0, 1, 2]
        assert winner({3: [trial(3, 0.5)], 1: [trial(1, 0.5)]}) == 1

    def test_the_winner_has_the_highest_mean_and_a_failed_seed_counts_against_it(self) -> None:
        steady = [trial(1, 0.6), trial(1, 0.6, seed=8)]
        lucky = [trial(2, 0.9), trial(2, 0.2, seed=8)]
        broken = [trial(3, 0.9), trial(3, 0.9, status="failed", seed=8)]
        assert mean_spearman(steady) == pytest.approx(0.6)
        assert winner({1: steady, 2: lucky, 3: broken}) == 1

    def test_the_predictor_kept_is_that_of_the_best_seed_that_finished(self) -> None:
        runs = [trial(1, 0.4), trial(1, 0.7, seed=8), trial(1, 0.7, seed=9), trial(1, 0.9, status="failed", seed=10)]
        assert best_seed(runs).config.seed == 8

    def test_seeds_begin_with_the_configurations_own(self) -> None:
        assert [config.seed for config in seeded(BASE, 3)] == [7, 8, 9]
        assert replace(seeded(BASE, 3)[2], seed=7) == BASE
