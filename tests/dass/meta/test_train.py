import dataclasses
import math
from typing import Any

import pytest
import torch

from dass.errors import ConfigError, DataError, StoreError
from dass.meta.episodes import MetaTask
from dass.meta.train import MetaConfig, MetaPredictor, MetaProgress, MetaTraining
from dass.metrics import spearman
from dass.predictor import Predictor, load_predictor
from dass.tensors import pack_tensors, unpack_tensors
from tests.benchmarks.reference_meta import PlainTraining
from tests.dass.meta.toy import spec, task

SHORT = MetaConfig(episodes=5, queries=6, eval_every=2)
TRAIN = (task("a", 80, seed=0), task("b", 60, seed=1))
VALID = (task("c", 70, seed=2),)


def training(config: MetaConfig = SHORT, **changes: Any) -> MetaTraining[MetaPredictor]:
    values: dict[str, Any] = {"spec": spec(config), "train_tasks": TRAIN, "valid_tasks": VALID}
    return MetaTraining(config=config, **{**values, **changes})


def weights(predictor: MetaPredictor) -> dict[str, torch.Tensor]:
    phi = {f"phi.{name}": value.detach() for name, value in predictor.model.named_parameters()}
    return phi | {f"rate.{name}": value.detach() for name, value in predictor.rates.items()}


def ranking(predictor: MetaPredictor, of: MetaTask) -> torch.Tensor:
    return predictor.adapt(of.support()).score(of.maps, of.arch)


class TestLearning:
    def test_it_learns_to_rank_the_students_of_teachers_it_never_saw_at_their_own_level(self) -> None:
        run = training(MetaConfig(episodes=60, queries=16))
        list(run)
        low, high = task("low", level=45, seed=3), task("high", level=85, seed=4)
        scores = [ranking(run.best(), each) for each in (low, high)]
        assert min(spearman(s, each.targets_pct) for s, each in zip(scores, (low, high), strict=True)) > 0.9
        assert scores[1].mean() - scores[0].mean() > 10

    @pytest.mark.parametrize("order", ["second", "first"])
    def test_episodes_are_those_of_the_plain_loop(self, order: Any) -> None:
        config = dataclasses.replace(SHORT, episodes=3, eval_every=1, order=order)
        run, plain = training(config), PlainTraining(spec(config), config, TRAIN)
        first, *points = run
        assert first.valid_spearman == pytest.approx(PlainTraining(spec(config), config, TRAIN).evaluate(VALID))
        assert [point.loss for point in points] == pytest.approx([plain.episode(n) for n in range(3)], rel=1e-4)
        learned, _ = unpack_tensors(run.state_bytes())
        for kind, group in (("phi", plain.phi), ("rate", plain.rates)):
            for name, expected in group.items():
                # Adam's first steps are lr times the sign of a gradient: where that is nearly 0 the sign is rounding
                differing = (learned[f"{kind}.{name}"] - expected.detach()).abs().gt(1e-5).float().mean()
                assert differing < 0.01, name

    def test_the_bits_do_not_depend_on_the_number_of_threads(self) -> None:
        threads, states = torch.get_num_threads(), []
        try:
            for num in (1, 2, 3):
                torch.set_num_threads(num)
                run = training()
                next(run), next(run)
                states.append(run.state_bytes())
                assert torch.get_num_threads() == num
        finally:
            torch.set_num_threads(threads)
        assert states[0] == states[1] == states[2]

    def test_equal_seeds_give_equal_bits_whatever_the_global_generator_did(self) -> None:
        first = list(training())
        torch.rand(5)
        assert list(training()) == first
        assert next(training(dataclasses.replace(SHORT, seed=3))) != first[0]

    def test_the_learned_rates_differ_from_the_initial_one(self) -> None:
        run = training(dataclasses.replace(SHORT, unit="task_free"))
        list(run)
        assert any(bool((rate != 0.005).any()) for rate in run.best().rates.values())

    def test_a_task_with_fewer_students_than_queries_gives_what_it_has(self) -> None:
        points = list(training(train_tasks=(*TRAIN, task("few", 65, seed=4, num=3))))
        assert [point.episode for point in points] == [0, 2, 4, 5]
        assert all(point.loss is not None for point in points[1:])

    def test_maps_made_in_inference_mode_are_learned_from_alike(self) -> None:
        with torch.inference_mode():
            tasks = [dataclasses.replace(each, maps=each.maps.clone(), arch=each.arch.clone()) for each in TRAIN]
        assert list(training(train_tasks=tasks)) == list(training())

    def test_rates_of_zero_rank_like_no_guidance(self) -> None:
        configs = [dataclasses.replace(SHORT, rate_init=0.0), dataclasses.replace(SHORT, guided=False)]
        first, second = (next(training(config)).valid_spearman for config in configs)
        assert first == second

    def test_unguided_training_leaves_the_rates_alone_and_resumes(self) -> None:
        config = dataclasses.replace(SHORT, guided=False)
        run, resumed = training(config), training(config)
        next(run), next(run)
        resumed.restore(run.state_bytes())
        assert list(run) == list(resumed)
        assert all(bool((rate == 0.005).all()) for rate in run.best().rates.values())


class TestProgress:
    @pytest.mark.parametrize(("episodes", "expected"), [(4, [0, 2, 4]), (5, [0, 2, 4, 5]), (1, [0, 1])])
    def test_it_yields_before_the_first_episode_then_regularly_and_at_the_end(
        self, episodes: int, expected: list[int]
    ) -> None:
        run = training(dataclasses.replace(SHORT, episodes=episodes))
        assert [point.episode for point in run] == expected
        assert [point.episode for point in run.history] == expected
        assert list(run) == []

    def test_the_best_is_the_first_strictly_highest_evaluation(self) -> None:
        run, kept = training(dataclasses.replace(SHORT, episodes=12)), []
        highest = -math.inf
        for point in run:
            assert point.valid_spearman is not None
            assert point.is_best == (point.valid_spearman > highest)
            highest = max(highest, point.valid_spearman)
            kept.append(run.best())
        best = spearman(ranking(kept[-1], VALID[0]), VALID[0].targets_pct)
        assert best == pytest.approx(highest)
        assert kept[-1].is_selected

    def test_evaluation_is_the_mean_over_tasks_on_all_students_as_a_search_would_rank_them(self) -> None:
        tasks = (*VALID, task("d", 50, seed=5, num=9))
        run = training(valid_tasks=tasks)
        point = next(run)
        expected = [spearman(ranking(run.best(), each), each.targets_pct) for each in tasks]
        assert point.valid_spearman == pytest.approx(sum(expected) / 2)

    def test_a_task_that_cannot_be_ranked_is_left_out_of_the_mean(self) -> None:
        constant = dataclasses.replace(VALID[0], name="flat", targets_pct=torch.full((40,), 70.0))
        assert next(training(valid_tasks=(*VALID, constant))) == next(training())

    def test_without_any_spearman_the_last_weights_are_best_and_flagged(self) -> None:
        constant = dataclasses.replace(VALID[0], name="flat", targets_pct=torch.full((40,), 70.0))
        run = training(valid_tasks=[constant])
        points = list(run)
        assert {(point.valid_spearman, point.is_best) for point in points} == {(None, False)}
        assert not load_predictor(run.best().save()).is_selected
        initial = Predictor(spec(SHORT), SHORT.seed)
        assert not torch.equal(run.best().model.head.weight, initial.head.weight)

    def test_best_is_a_copy_that_further_training_does_not_change(self) -> None:
        run = training()
        next(run)
        best = run.best()
        before = {name: value.clone() for name, value in weights(best).items()}
        list(run)
        assert all(torch.equal(value, before[name]) for name, value in weights(best).items())

    def test_an_episode_of_infinite_loss_moves_no_weight(self) -> None:
        config = dataclasses.replace(SHORT, rate_init=1e30)
        flat = dataclasses.replace(VALID[0], targets_pct=torch.full((40,), 70.0))
        run = training(config, valid_tasks=[flat])
        assert [point.loss for point in run] == [None] * 4
        last, first = weights(run.best()), dict(Predictor(spec(config), config.seed).named_parameters())
        assert all(torch.equal(last[f"phi.{name}"], value) for name, value in first.items())

    def test_inner_steps_of_infinite_loss_are_counted_in_training_and_evaluation(self) -> None:
        # The first Adam step throws the weights so far that no later inner loss is finite: 2 tasks teach, 1 chooses.
        points = list(training(dataclasses.replace(SHORT, lr=1e30)))
        assert [point.skipped_steps for point in points] == [0, 2 * 1 + 1, 2 * 2 + 1, 2 * 1 + 1]


class TestResuming:
    @pytest.mark.parametrize("num_yields", [0, 1, 2, 4])
    def test_a_run_that_is_cut_anywhere_ends_with_the_same_bits(self, num_yields: int) -> None:
        whole, cut, resumed = training(), training(), training()
        points = list(whole)
        for _ in range(num_yields):
            next(cut)
        resumed.restore(cut.state_bytes())
        assert list(resumed) == points[num_yields:]
        assert list(resumed.history) == points
        assert resumed.state_bytes() == whole.state_bytes()
        assert resumed.best().save() == whole.best().save()

    @pytest.mark.parametrize(
        "other",
        [
            {"config": dataclasses.replace(SHORT, lr=1e-3)},
            {"spec": dataclasses.replace(spec(SHORT), noise_sha="n1")},
            {"train_tasks": TRAIN[:1]},
        ],
    )
    def test_a_state_of_another_training_is_refused(self, other: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="resumes only with the"):
            training(**other).restore(training().state_bytes())

    @pytest.mark.parametrize("damage", ["history", "adam.99.step", "best.rate", "phi"])
    def test_a_state_that_does_not_fit_together_is_refused_and_changes_nothing(self, damage: str) -> None:
        donor, run = training(), training()
        next(donor), next(donor)
        tensors, header = unpack_tensors(donor.state_bytes())
        if damage == "history":
            header["history"][0]["episode_number"] = 1
        elif damage == "adam.99.step":
            tensors[damage] = torch.zeros(())
        else:
            name = next(name for name in tensors if name.startswith(damage))
            del tensors[name]
        before = run.state_bytes()
        with pytest.raises(StoreError, match="complete state of a meta-training"):
            run.restore(pack_tensors(tensors, header))
        assert run.state_bytes() == before

    def test_a_damaged_state_is_refused(self) -> None:
        with pytest.raises(StoreError):
            training().restore(training().state_bytes()[:-1])


class TestChecks:
    @pytest.mark.parametrize("part", ["train_tasks", "valid_tasks"])
    def test_training_needs_tasks_to_teach_and_to_choose(self, part: str) -> None:
        with pytest.raises(ConfigError, match=part.split("_")[0]):
            training(SHORT, **{part: ()})

    def test_no_task_both_teaches_and_chooses(self) -> None:
        with pytest.raises(ConfigError, match="'a'"):
            training(valid_tasks=TRAIN[:1])

    def test_spec_and_config_must_agree(self) -> None:
        with pytest.raises(ConfigError, match="hidden_dim, got 64 and 32"):
            training(config=dataclasses.replace(SHORT, hidden_dim=32), spec=spec(SHORT))

    @pytest.mark.parametrize("change", [{"num_channels": 7}, {"arch_dim": 6}])
    def test_tasks_of_another_shape_are_refused(self, change: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="'a'"):
            training(spec=dataclasses.replace(spec(SHORT), **change))

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("episodes", 0),
            ("queries", 0),
            ("eval_every", 0),
            ("tasks_per_episode", 0),
            ("inner_steps", 0),
            ("hidden_dim", 0),
            ("lr", 0.0),
            ("lr", math.nan),
            ("rate_init", math.inf),
            ("order", "third"),
            ("inputs", "TAS"),
            ("unit", "permille"),
            ("support_students", -1),
        ],
    )
    def test_an_illegal_setting_is_named(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            dataclasses.replace(SHORT, **{name: value})

    def test_every_setting_says_what_it_means(self) -> None:
        assert all(field.metadata.get("help") for field in dataclasses.fields(MetaConfig))

    def test_defaults_are_those_of_the_released_code(self) -> None:
        config = MetaConfig()
        assert (config.episodes, config.queries, config.tasks_per_episode, config.eval_every) == (1000, 50, 8, 20)
        assert (config.lr, config.rate_init, config.inner_steps, config.order) == (5e-4, 0.005, 1, "second")
        assert (config.seed, config.unit, config.inputs, config.guided) == (2, "percent", "SAT", True)
        assert (config.learn_rates, config.support_students) == (True, 0)


def test_progress_is_plain_values() -> None:
    assert dataclasses.asdict(MetaProgress(3, None, 0.5, True, 0))["valid_spearman"] == 0.5
