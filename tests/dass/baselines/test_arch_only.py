"""MAML and Meta-SGD on the architecture alone, and DaSS's variants (algorithms: sections 4 and 6.1)."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from dass.baselines.arch_only import ablations, maml, meta_sgd, unguided
from dass.errors import DataError, PredictorMismatchError
from dass.meta.episodes import MetaTask, Support, split_support
from dass.meta.train import MetaConfig, MetaPredictor, MetaTraining
from dass.metrics import spearman
from dass.predictor import Predictor, PredictorSpec, load_predictor
from dass.seeding import generator
from dass.spaces import get_space
from tests.dass.baselines.toy import ADAPTING, FALLING, PLACE, RISING, TRAIN, VALID, correlation, scores

SPACE = get_space("smoke")


@cache  # a trained method is never changed
def trained(config: MetaConfig) -> MetaPredictor:
    training = MetaTraining(config.spec(**PLACE), config, TRAIN, VALID)
    list(training)
    return training.best()


def of_space(task: MetaTask) -> MetaTask:
    """The same students by other architectures: those of a space that there is."""
    students = SPACE.sample(task.num_students, generator("arch", task.name))
    return replace(task, arch=SPACE.encode_many(students), teacher_arch=SPACE.encode(SPACE.largest))


def short(config: MetaConfig) -> MetaConfig:
    return replace(config, episodes=4, eval_every=2)


@pytest.mark.parametrize("config", [maml(MetaConfig()), meta_sgd(MetaConfig())])
def test_the_network_has_15873_parameters(config: MetaConfig) -> None:
    spec = config.spec(space="released", resolution=64, num_channels=256, arch_dim=181, noise_sha="n0")
    sizes = {name: value.numel() for name, value in Predictor(spec, seed=0).named_parameters()}
    assert sum(sizes.values()) == 15_873
    assert sizes["arch_encoder.weight"] + sizes["arch_encoder.bias"] == 11_648
    assert sizes["fusion.weight"] + sizes["fusion.bias"] == 4_160
    assert sizes["head.weight"] + sizes["head.bias"] == 65


@pytest.mark.parametrize("unit", ["percent", "task_free", "fraction"])
def test_without_adaptation_every_task_is_ranked_alike(unit: str) -> None:
    config = unguided(meta_sgd(replace(short(ADAPTING), unit=unit)))  # type: ignore[arg-type]
    predictor = trained(config)
    adapted = [predictor.adapt(each.support()).score(FALLING.maps, FALLING.arch) for each in (FALLING, RISING)]
    assert torch.equal(*adapted)
    assert adapted[0].std() > 0


@pytest.mark.parametrize(
    "config",
    [
        maml(ADAPTING),
        meta_sgd(ADAPTING),
        meta_sgd(replace(ADAPTING, support_students=5)),
        meta_sgd(replace(ADAPTING, order="first", inner_steps=2)),
    ],
    ids=["maml", "meta_sgd", "meta_sgd on 5 students", "first order, 2 steps"],
)
def test_after_adaptation_it_ranks_tasks_of_opposite_order_that_it_never_saw(config: MetaConfig) -> None:
    predictor = trained(config)
    assert min(correlation(predictor, FALLING), correlation(predictor, RISING)) > 0.8


def test_without_adaptation_it_cannot() -> None:
    predictor = trained(unguided(meta_sgd(ADAPTING)))
    assert min(correlation(predictor, FALLING), correlation(predictor, RISING)) < 0.3


def test_scores_are_those_of_a_gradient_step_by_autograd_on_the_support_students() -> None:
    config = replace(short(meta_sgd(ADAPTING)), support_students=3)
    predictor, chosen = trained(config), torch.tensor([4, 0, 7])
    found = predictor.adapt(RISING.support(chosen)).score(RISING.maps, RISING.arch)
    weights = {name: value.detach().clone().requires_grad_() for name, value in predictor.model.named_parameters()}

    def predict(params: dict[str, torch.Tensor], arch: torch.Tensor) -> torch.Tensor:
        hidden = arch
        for layer in ("arch_encoder", "fusion"):
            hidden = hidden @ params[f"{layer}.weight"].T + params[f"{layer}.bias"]
        return (hidden.tanh() @ params["head.weight"].T + params["head.bias"]).squeeze(1)

    error = predict(weights, RISING.arch[chosen]) - (RISING.targets_pct[chosen] - 50) / 10
    slopes = torch.autograd.grad(error.square().mean(), list(weights.values()))
    moved = {
        name: value - predictor.rates[name] * slope
        for (name, value), slope in zip(weights.items(), slopes, strict=True)
    }
    torch.testing.assert_close(found, predict(moved, RISING.arch).detach() * 10 + 50, rtol=1e-4, atol=1e-3)


def test_maps_play_no_part() -> None:
    predictor = trained(short(maml(ADAPTING)))
    adapted = predictor.adapt(RISING.support())
    assert not adapted.needs_maps
    nothing = RISING.arch.new_empty(RISING.num_students, 0, 0, 0)
    assert torch.equal(adapted.score(nothing, RISING.arch), adapted.score(RISING.maps, RISING.arch))
    other = Support(RISING.teacher_arch, FALLING.teacher_map, RISING.teacher_accuracy_pct)
    assert torch.equal(predictor.adapt(other).score(nothing, RISING.arch), adapted.score(nothing, RISING.arch))


def test_maml_keeps_its_one_rate_and_meta_sgd_learns_one_for_each_weight() -> None:
    fixed, learned = trained(short(maml(ADAPTING))), trained(short(meta_sgd(ADAPTING)))
    assert all(bool((rate == ADAPTING.rate_init).all()) for rate in fixed.rates.values())
    assert len({value for rate in learned.rates.values() for value in rate.flatten().tolist()}) > 100


def test_a_fixed_rate_is_no_part_of_the_training_state_and_it_resumes() -> None:
    config = short(maml(ADAPTING))
    whole, cut, resumed = (MetaTraining(config.spec(**PLACE), config, TRAIN, VALID) for _ in range(3))
    list(whole)
    next(cut), next(cut)
    resumed.restore(cut.state_bytes())
    list(resumed)
    assert resumed.best().save() == whole.best().save()


@pytest.mark.parametrize("config", [maml(ADAPTING), replace(meta_sgd(ADAPTING), support_students=2, unit="fraction")])
def test_it_ranks_alike_after_saving_and_loading(config: MetaConfig) -> None:
    predictor = trained(short(config))
    loaded = load_predictor(predictor.save())
    assert torch.equal(scores(loaded, RISING)[0], scores(predictor, RISING)[0])
    assert loaded.num_support == config.support_students


def test_trained_against_the_teacher_predictions_keep_their_share_of_its_accuracy() -> None:
    """The toy tasks have one level; with another one, and a teacher to match, they are the same to it."""
    config = meta_sgd(replace(ADAPTING, unit="teacher"))
    predictor = trained(config)
    for task in (FALLING, RISING):
        low = replace(task, targets_pct=task.targets_pct / 2, teacher_accuracy_pct=task.teacher_accuracy_pct / 2)
        scores = [predictor.adapt(each.support()).score(each.maps, each.arch) for each in (task, low)]
        torch.testing.assert_close(scores[1], scores[0] / 2)


def test_fractions_are_trained_on_and_percents_come_out() -> None:
    predictor = trained(meta_sgd(replace(ADAPTING, unit="fraction")))
    predicted, actual = scores(predictor, RISING)
    assert abs(predicted.mean() - actual.mean()) < 15
    with torch.no_grad():
        raw = predictor.model(RISING.maps, RISING.arch, RISING.teacher_map)
    assert raw.abs().max() < 5


class TestAblations:
    def test_each_changes_one_thing_and_none_repeats_the_base(self) -> None:
        base = MetaConfig()
        assert ablations(replace(base, unit="teacher", inputs="AR"))["paper"] == base
        found = ablations(base)
        assert {"inputs A", "inputs SA", "inputs ST", "unguided", "first order", "3 inner steps"} <= found.keys()
        assert {"inputs STA", "second order", "1 inner steps", "unit percent"} & found.keys() == set()
        for config in found.values():
            assert sum(getattr(config, name) != getattr(base, name) for name in vars(base)) == 1

    def test_every_one_can_be_trained(self) -> None:
        place = PLACE | {"space": "smoke", "arch_dim": SPACE.encoding_dim}
        train, valid = [of_space(task) for task in TRAIN[:2]], [of_space(task) for task in VALID]
        for name, config in ablations(short(ADAPTING)).items():
            run = MetaTraining(config.spec(**place), short(config), train, valid)
            assert all(point.loss is not None for point in list(run)[1:]), name

    def test_the_inputs_decide_the_network(self) -> None:
        sizes = {
            name: sum(value.numel() for value in Predictor(spec_of(config), seed=0).parameters())
            for name, config in {**ablations(MetaConfig()), "base": MetaConfig()}.items()
        }
        encoder, arch, hidden = 9 * 128 * (256 + 256), 181 * 64 + 64, 64 + 64 + 1
        assert sizes["base"] == 2 * encoder + arch + 576 * 64 + hidden
        assert sizes["inputs SA"] == encoder + arch + 320 * 64 + hidden
        assert sizes["inputs ST"] == 2 * encoder + 512 * 64 + hidden
        assert sizes["inputs A"] == arch + 64 * 64 + hidden


def spec_of(config: MetaConfig) -> PredictorSpec:
    return config.spec(space="released", resolution=64, num_channels=256, arch_dim=181, noise_sha="n0")


def test_the_students_that_it_adapts_to_do_not_choose_it() -> None:
    config = replace(short(meta_sgd(ADAPTING)), support_students=10)
    run = MetaTraining(config.spec(**PLACE), config, TRAIN, VALID)
    found, expected = next(run), []
    for of in VALID:
        shown, rest = split_support(of.num_students, 10, of.name)
        ranked = run.best().adapt(of.support(shown)).score(of.maps, of.arch)
        expected.append(spearman(ranked[rest], of.targets_pct[rest]))
    assert found.valid_spearman == pytest.approx(sum(expected) / 2)


def test_a_task_with_nobody_left_to_rank_is_refused() -> None:
    config = replace(meta_sgd(ADAPTING), support_students=40)
    with pytest.raises(DataError, match="'train0' must have more than 40 students, those to adapt to, got 40"):
        MetaTraining(config.spec(**PLACE), config, TRAIN, VALID)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_another_number_of_support_students_than_it_was_trained_with_is_refused(num: int) -> None:
    predictor = trained(short(replace(meta_sgd(ADAPTING), support_students=2)))
    with pytest.raises(PredictorMismatchError, match=f"trained with, 2, got {num}"):
        predictor.adapt(RISING.support(torch.arange(num)))
