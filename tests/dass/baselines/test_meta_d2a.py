"""MetaD2A's predictor (algorithms: section 6.2)."""

import dataclasses
from functools import cache
from typing import Any

import pytest
import torch

from dass.baselines.arch_only import maml
from dass.baselines.meta_d2a import (
    MetaD2A,
    MetaD2AConfig,
    MetaD2ASpec,
    SetInputs,
    SetPredictor,
    load_meta_d2a,
)
from dass.errors import ConfigError, PredictorMismatchError, StoreError
from dass.meta.episodes import ImageFeatures, MetaTask, draw_episode
from dass.meta.train import MetaConfig, MetaTraining
from dass.predictor import Predictor, load_predictor, save_predictor
from dass.tensors import pack_tensors, unpack_tensors
from tests.dass.baselines.toy import FALLING, IMAGES, META_D2A, PLACE, RISING, TRAIN, VALID, correlation, scores

SHORT = dataclasses.replace(META_D2A, episodes=4, eval_every=2)
PAPER = MetaD2AConfig().spec(
    space="released",
    resolution=64,
    num_channels=256,
    arch_dim=181,
    noise_sha="n0",
    encoder="resnet18:0",
    num_features=512,
)


def training(config: MetaD2AConfig = SHORT, **changes: Any) -> MetaTraining[MetaD2A]:
    return MetaTraining(
        config.spec(**PLACE, **IMAGES), config, **{"train_tasks": TRAIN, "valid_tasks": VALID, **changes}
    )


@cache  # a trained method is never changed
def trained(config: MetaD2AConfig = SHORT) -> MetaD2A:
    run = training(config)
    list(run)
    return run.best()


def with_images(of: MetaTask, values: torch.Tensor) -> MetaTask:
    return dataclasses.replace(of, images=ImageFeatures(values, "toy:0"))


def of_task(values: MetaTask) -> torch.Tensor:
    assert values.images is not None
    return values.images.values


def test_the_network_is_two_set_encoders_the_architecture_and_a_hidden_layer() -> None:
    model = SetPredictor(PAPER, seed=0)
    square = 56 * 56 + 56

    def pool(num_features: int) -> int:
        return 3 * (num_features * 56 + 56) + 10 * square + 56

    expected = pool(512) + pool(56) + (181 * 64 + 64) + (120 * 64 + 64) + (64 + 1)
    assert sum(value.numel() for value in model.parameters()) == expected


def test_it_is_the_same_layers_of_torch_applied_by_hand_to_the_set_vector() -> None:
    model = SetPredictor(dataclasses.replace(PAPER, arch_dim=6, num_features=8), seed=1)
    params = dict(model.named_parameters())
    task = model.encode_set(params, of_task(RISING))
    embedded = RISING.arch @ params["arch_encoder.weight"].T + params["arch_encoder.bias"]
    both = torch.cat([embedded, task.repeat(RISING.num_students, 1)], 1)
    hidden = (both @ params["fusion.weight"].T + params["fusion.bias"]).tanh()
    expected = (hidden @ params["head.weight"].T + params["head.bias"]).squeeze(1)
    torch.testing.assert_close(model.call(params, SetInputs(of_task(RISING), RISING.arch)), expected)


def test_the_order_of_images_in_a_class_and_of_classes_is_no_matter_but_the_class_of_an_image_is() -> None:
    rng, model = torch.Generator().manual_seed(0), SetPredictor(dataclasses.replace(PAPER, num_features=8), seed=0)
    params = {name: value.detach() for name, value in model.named_parameters()}
    images = torch.randn(3, 5, 8, generator=rng)
    found = model.encode_set(params, images)
    shuffled = torch.stack([images[i, torch.randperm(5, generator=rng)] for i in (2, 0, 1)])
    torch.testing.assert_close(model.encode_set(params, shuffled), found)
    swapped = images.clone()
    swapped[0, 0], swapped[1, 0] = images[1, 0], images[0, 0]
    assert not torch.allclose(model.encode_set(params, swapped), found, atol=1e-5)


def test_an_episodes_loss_is_the_mean_over_tasks_of_the_mean_squared_error_of_standardised_accuracies() -> None:
    config = dataclasses.replace(
        SHORT, episodes=1, eval_every=1, images_per_class=7
    )  # all that there are, in any order
    _, point = training(config)
    model = SetPredictor(config.spec(**PLACE, **IMAGES), config.seed)
    targets = torch.cat([each.targets_pct for each in TRAIN])
    sizes = [each.num_students for each in TRAIN]
    episode = draw_episode(sizes, seed=config.seed, number=0, num_tasks=8, num_queries=20)
    errors = []
    for index, chosen in zip(episode.tasks, episode.queries, strict=True):
        of = TRAIN[index]
        predicted = model.call(dict(model.named_parameters()), SetInputs(of_task(of), of.arch[chosen]))
        wanted = (of.targets_pct[chosen] - targets.mean()) / targets.std(correction=0)
        errors.append((predicted - wanted).square().mean().item())
    assert point.loss == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_it_learns_to_rank_tasks_of_opposite_order_by_their_images_alone() -> None:
    predictor = trained(META_D2A)
    assert min(correlation(predictor, FALLING), correlation(predictor, RISING)) > 0.8
    swapped = with_images(RISING, of_task(FALLING))
    assert correlation(predictor, swapped) < -0.8
    blind = dataclasses.replace(RISING, teacher_accuracy_pct=3.0, teacher_map=FALLING.teacher_map)
    assert torch.equal(scores(predictor, blind)[0], scores(predictor, RISING)[0])


def test_predictions_are_at_the_level_of_the_training_tasks_in_percent() -> None:
    predicted, actual = scores(trained(META_D2A), RISING)
    assert (predicted - actual).abs().mean() < 4


def test_the_target_is_standardised_over_all_students_that_teach() -> None:
    targets = torch.cat([each.targets_pct for each in TRAIN])
    predictor = trained()
    assert predictor.mean_pct == pytest.approx(sum(targets.tolist()) / len(targets))
    assert predictor.std_pct == pytest.approx(targets.double().var(correction=0).sqrt().item())


def test_it_looks_at_the_first_images_of_each_class_and_asks_for_no_map() -> None:
    predictor = trained()
    adapted = predictor.adapt(RISING.support())
    assert (adapted.needs_maps, adapted.num_skipped, predictor.num_support) == (False, 0, 0)
    more = with_images(RISING, torch.cat([of_task(RISING)[:, :5], torch.full((3, 4, 8), 9.0)], dim=1))
    nothing = RISING.arch.new_empty(RISING.num_students, 0, 0, 0)
    assert torch.equal(predictor.adapt(more.support()).score(nothing, RISING.arch), adapted.score(nothing, RISING.arch))


def test_a_training_that_is_cut_ends_with_the_same_bits() -> None:
    whole, cut, resumed = training(), training(), training()
    points = list(whole)
    next(cut), next(cut)
    resumed.restore(cut.state_bytes())
    assert [*cut.history, *resumed] == points
    assert resumed.state_bytes() == whole.state_bytes()


def test_the_state_of_another_method_is_refused() -> None:
    config = maml(MetaConfig(episodes=4, eval_every=2))
    other = MetaTraining(config.spec(**PLACE), config, TRAIN, VALID)
    with pytest.raises(ConfigError, match="resumes only with the spec it began with"):
        training().restore(other.state_bytes())


class TestFile:
    def test_it_scores_alike_after_saving_and_loading(self) -> None:
        predictor = trained()
        loaded = load_meta_d2a(predictor.save(), expect=predictor.spec)
        assert torch.equal(scores(loaded, RISING)[0], scores(predictor, RISING)[0])
        assert (loaded.spec, loaded.is_selected) == (predictor.spec, True)

    def test_a_file_of_another_method_is_refused_by_both(self) -> None:
        predictor = Predictor(MetaConfig().spec(**PLACE), seed=0)
        dass = save_predictor(predictor, dict(predictor.named_parameters()))
        with pytest.raises(PredictorMismatchError, match="its method is 'dass', got 'meta_d2a'"):
            load_meta_d2a(dass)
        with pytest.raises(PredictorMismatchError, match="its method is 'meta_d2a', got 'dass'"):
            load_predictor(trained().save())

    @pytest.mark.parametrize(("name", "wanted"), [("space", "paper5"), ("resolution", 32), ("encoder", "other:1")])
    def test_what_it_was_not_made_for_is_refused(self, name: str, wanted: Any) -> None:
        predictor = trained()
        with pytest.raises(PredictorMismatchError, match=f"its {name} is .* got {wanted!r}"):
            load_meta_d2a(predictor.save(), expect=dataclasses.replace(predictor.spec, **{name: wanted}))

    def test_a_file_that_does_not_fit_together_is_refused(self) -> None:
        tensors, header = unpack_tensors(trained().save())
        lost = {name: value for name, value in tensors.items() if name != "phi.head.bias"}
        wide = {**tensors, "phi.head.weight": torch.zeros(1, 65)}
        scales = {**tensors, "scale": torch.zeros(3)}
        strange = {**tensors, "phi.intra.seed": torch.full_like(tensors["phi.intra.seed"], torch.nan)}
        for broken in (lost, wide, scales, strange):
            with pytest.raises(StoreError):
                load_meta_d2a(pack_tensors(broken, header))
        header["predictor"]["spec"]["set_dim"] = 2**40
        with pytest.raises(StoreError, match="fewer weights"):
            load_meta_d2a(pack_tensors(tensors, header))


class TestChecks:
    @pytest.mark.parametrize("part", ["train_tasks", "valid_tasks"])
    def test_every_task_needs_its_images(self, part: str) -> None:
        tasks = {"train_tasks": TRAIN, "valid_tasks": VALID}[part]
        blind = [*tasks[1:], dataclasses.replace(tasks[0], images=None)]
        with pytest.raises(PredictorMismatchError, match="5 or more images of each class, got none"):
            training(SHORT, **{part: blind})

    @pytest.mark.parametrize(
        "images",
        [
            ImageFeatures(torch.zeros(3, 5, 8), "other:1"),
            ImageFeatures(torch.zeros(3, 5, 9), "toy:0"),
            ImageFeatures(torch.zeros(3, 4, 8), "toy:0"),
        ],
        ids=["encoder", "features", "images"],
    )
    def test_other_images_than_it_learned_from_are_refused(self, images: ImageFeatures) -> None:
        predictor = trained()
        with pytest.raises(PredictorMismatchError, match="8 of an image and 5 or more images of each class"):
            predictor.adapt(dataclasses.replace(RISING, images=images).support())

    @pytest.mark.parametrize(
        ("name", "value"), [("episodes", 0), ("queries", 0), ("lr", -1.0), ("set_dim", 57), ("num_heads", 0)]
    )
    def test_an_illegal_setting_is_named(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            dataclasses.replace(SHORT, **{name: value})

    def test_spec_and_config_must_agree(self) -> None:
        spec: MetaD2ASpec = dataclasses.replace(SHORT, hidden_dim=32).spec(**PLACE, **IMAGES)
        with pytest.raises(ConfigError, match="agree on hidden_dim, got 32 and 64"):
            MetaTraining(spec, SHORT, TRAIN, VALID)
