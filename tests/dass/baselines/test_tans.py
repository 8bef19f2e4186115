"""TANS (algorithms: section 6.3)."""

import dataclasses
import itertools
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dass.baselines.tans import Tans, TansConfig, TansNetwork, contrastive_loss, load_tans, student_features
from dass.errors import ConfigError, PredictorMismatchError, StoreError
from dass.meta.episodes import MetaTask, draw_episode
from dass.meta.train import MetaTraining
from dass.tensors import pack_tensors, unpack_tensors
from tests.dass.baselines.toy import IMAGES, PLACE, TANS, TRAIN, VALID, correlation, scores, task

SHORT = dataclasses.replace(TANS, episodes=4, eval_every=2)
GROWING = [task(f"train{i}", 1.0, seed=i, level=40 + 5 * i) for i in range(8)]
CHOOSING = [task("valid0", 1.0, seed=20, level=50), task("valid1", 1.0, seed=21, level=70)]
UNSEEN = [task("unseen0", 1.0, seed=30, level=45), task("unseen1", 1.0, seed=31, level=75)]


def training(config: TansConfig = SHORT, **changes: Any) -> MetaTraining[Tans]:
    values = {"train_tasks": GROWING, "valid_tasks": CHOOSING, **changes}
    return MetaTraining(config.spec(**PLACE, **IMAGES), config, **values)


@cache  # a trained method is never changed
def trained(config: TansConfig = SHORT) -> Tans:
    run = training(config)
    list(run)
    return run.best()


def without_sizes(of: MetaTask) -> MetaTask:
    """The sizes of its students show in their maps alone."""
    return dataclasses.replace(of, arch=torch.ones_like(of.arch))


class TestContrastiveLoss:
    def test_it_is_the_hand_calculation(self) -> None:
        scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6], [0.3, 0.4, 0.5]])
        assert contrastive_loss(scores, 0.2).item() == pytest.approx(0.9)  # columns 0.6, rows 0.3

    @pytest.mark.parametrize("num_negatives", [1, 2, 4])
    def test_it_is_the_sum_over_the_hardest_negatives_written_out(self, num_negatives: int) -> None:
        scores = 2 * torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) - 1
        rows = scores.tolist()
        total = 0.0
        for i in range(4):
            for line in ([rows[i][j] for j in range(4)], [rows[j][i] for j in range(4)]):
                others = [0.0 if j == i else value for j, value in enumerate(line)]
                hardest = sorted(others, reverse=True)[:num_negatives]
                total += sum(max(0.0, 0.3 + value - rows[i][i]) for value in hardest)
        assert contrastive_loss(scores, 0.3, num_negatives).item() == pytest.approx(total)

    def test_it_is_zero_where_the_diagonal_leads_by_the_margin_and_not_below(self) -> None:
        scores = torch.eye(5) * 0.2
        assert contrastive_loss(scores, 0.2).item() == 0
        assert contrastive_loss(scores, 0.21).item() == pytest.approx(2 * 5 * 5 * 0.01)  # the diagonal's 0 counts too

    def test_its_slope_is_that_of_finite_differences(self) -> None:
        start = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(lambda each: contrastive_loss(each, 0.2), (start,))


class TestNetwork:
    def test_the_parameters_are_three_linear_layers(self) -> None:
        spec = TansConfig().spec(
            space="released",
            resolution=64,
            num_channels=256,
            arch_dim=181,
            noise_sha="n",
            encoder="e",
            num_features=512,
        )
        found = sum(value.numel() for value in TansNetwork(spec, seed=0).parameters())
        assert found == (512 * 128 + 128) + ((181 + 256) * 128 + 128) + (256 + 1)

    def test_datasets_and_students_lie_on_the_unit_sphere(self) -> None:
        network, of = trained().network, UNSEEN[0]
        assert of.images is not None
        students = network.encode_students(student_features(of.arch, of.maps))
        query = network.encode_images(of.images.values.mean(dim=(0, 1))[None])
        torch.testing.assert_close(students.norm(dim=1), torch.ones(of.num_students))
        torch.testing.assert_close(query.norm(dim=1), torch.ones(1))

    def test_a_dataset_is_the_normalised_mean_of_its_embedded_images_in_any_order(self) -> None:
        predictor, of = trained(), UNSEEN[0]
        assert of.images is not None
        each = predictor.network.query_encoder(of.images.values.flatten(0, 1))
        adapted = predictor.adapt(of.support())
        torch.testing.assert_close(adapted.query, F.normalize(each.mean(0, keepdim=True), dim=1))

    def test_a_student_is_its_architecture_and_its_pooled_map_at_length_one(self) -> None:
        of = UNSEEN[0]
        pooled = F.adaptive_avg_pool2d(of.maps, 1).flatten(1)
        joined = torch.cat([of.arch, pooled], 1)
        torch.testing.assert_close(student_features(of.arch, of.maps), joined / joined.norm(dim=1, keepdim=True))

    def test_the_score_is_the_sigmoid_of_one_layer_on_both_vectors_in_percent(self) -> None:
        predictor, of = trained(), UNSEEN[0]
        network, adapted = predictor.network, predictor.adapt(of.support())
        students = network.encode_students(student_features(of.arch, of.maps))
        both = torch.cat([adapted.query.repeat(of.num_students, 1), students], dim=1)
        expected = 100 * torch.sigmoid(both @ network.head.weight.T + network.head.bias).squeeze(1)
        torch.testing.assert_close(adapted.score(of.maps, of.arch), expected.detach())

    def test_images_move_all_students_of_a_task_alike(self) -> None:
        predictor, of = trained(TANS), UNSEEN[0]
        other = dataclasses.replace(of, images=task("other", -1.0, seed=50).images)
        one, two = (scores(predictor, each)[0] for each in (of, other))
        assert not torch.allclose(one, two)
        logits = torch.logit(one.double() / 100) - torch.logit(two.double() / 100)
        torch.testing.assert_close(logits, logits.mean().expand_as(logits), rtol=0, atol=1e-4)


def test_an_episodes_loss_is_that_of_one_student_of_every_task() -> None:
    run = training(dataclasses.replace(SHORT, episodes=1, eval_every=1))
    network = TansNetwork(SHORT.spec(**PLACE, **IMAGES), SHORT.seed)
    _, point = run
    images = torch.stack([of.images.values.mean(dim=(0, 1)) for of in GROWING if of.images is not None])
    queries = network.encode_images(images)
    losses = []
    episode = draw_episode([of.num_students for of in GROWING], seed=SHORT.seed, number=0, num_tasks=8, num_queries=1)
    chosen = [int(query) for query in episode.queries]
    features = [student_features(of.arch, of.maps)[i] for of, i in zip(GROWING, chosen, strict=True)]
    models = network.encode_students(torch.stack(features))
    similar = (models @ queries.T).tolist()
    for i, j in itertools.permutations(range(8), 2):
        losses += [max(0.0, 0.2 + similar[i][j] - similar[i][i]), max(0.0, 0.2 + similar[j][i] - similar[i][i])]
    losses += [2 * max(0.0, 0.2 - similar[i][i]) for i in range(8)]
    targets = torch.stack([of.targets_pct[i] for of, i in zip(GROWING, chosen, strict=True)]) / 100
    error = (network.predict(queries, models) - targets).square().mean().item()
    assert point.loss == pytest.approx(sum(losses) + error, rel=1e-4)


def test_it_learns_to_rank_students_of_teachers_that_it_never_saw() -> None:
    predictor = trained(TANS)
    assert min(correlation(predictor, of) for of in UNSEEN) > 0.8


def test_it_learns_it_from_maps_alone() -> None:
    run = training(
        TANS, train_tasks=[without_sizes(of) for of in GROWING], valid_tasks=[without_sizes(of) for of in CHOOSING]
    )
    list(run)
    assert min(correlation(run.best(), without_sizes(of)) for of in UNSEEN) > 0.8


def test_training_brings_students_nearer_to_their_own_dataset_than_to_others() -> None:
    config = dataclasses.replace(TANS, episodes=600)
    run = MetaTraining(config.spec(**PLACE, **IMAGES), config, TRAIN, VALID)
    first, *_, last = (point.loss for point in run if point.loss is not None)
    assert last < first / 2


def test_a_training_that_is_cut_ends_with_the_same_bits() -> None:
    whole, cut, resumed = training(), training(), training()
    points = list(whole)
    next(cut), next(cut)
    resumed.restore(cut.state_bytes())
    assert [*cut.history, *resumed] == points
    assert resumed.best().save() == whole.best().save()


def test_an_adapted_one_is_not_moved_by_further_training() -> None:
    run = training()
    next(run)
    adapted = run.best().adapt(UNSEEN[0].support())
    before = adapted.score(UNSEEN[0].maps, UNSEEN[0].arch)
    list(run)
    assert torch.equal(adapted.score(UNSEEN[0].maps, UNSEEN[0].arch), before)


class TestFile:
    def test_it_scores_alike_after_saving_and_loading(self) -> None:
        predictor = trained()
        loaded = load_tans(predictor.save(), expect=predictor.spec)
        assert torch.equal(scores(loaded, UNSEEN[0])[0], scores(predictor, UNSEEN[0])[0])

    @pytest.mark.parametrize(
        ("name", "wanted"),
        [("space", "paper5"), ("noise_sha", "n1"), ("remap_mode", "copy_paste_last"), ("encoder", "e")],
    )
    def test_what_it_was_not_made_for_is_refused(self, name: str, wanted: Any) -> None:
        predictor = trained()
        with pytest.raises(PredictorMismatchError, match=f"its {name} is .* got {wanted!r}"):
            load_tans(predictor.save(), expect=dataclasses.replace(predictor.spec, **{name: wanted}))

    def test_a_file_of_another_method_or_shape_is_refused(self) -> None:
        tensors, header = unpack_tensors(trained().save())
        with pytest.raises(StoreError):
            load_tans(pack_tensors({**tensors, "phi.head.weight": torch.zeros(1, 3)}, header))
        header["predictor"]["method"] = "meta_d2a"
        with pytest.raises(PredictorMismatchError, match="its method is 'meta_d2a', got 'tans'"):
            load_tans(pack_tensors(tensors, header))


@pytest.mark.parametrize(("name", "value"), [("episodes", 0), ("embed_dim", 0), ("margin", -0.1), ("lr", 0.0)])
def test_an_illegal_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(SHORT, **{name: value})


def test_a_task_without_images_is_refused_before_training() -> None:
    with pytest.raises(PredictorMismatchError, match="got none"):
        training(train_tasks=[dataclasses.replace(GROWING[0], images=None)])
