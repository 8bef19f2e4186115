import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dass.errors import ConfigError, PredictorMismatchError
from dass.meta.episodes import Measured, Support
from dass.predictor import Inputs, Predictor, PredictorSpec
from dass.seeding import generator
from dass.spaces import get_space
from tests.dass.small_predictor import PAPER, SMALL, meta_predictor


def inputs(spec: PredictorSpec, num: int = 4, side: int = 8, seed: int = 0) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    return Inputs(
        torch.rand(num, spec.num_channels, side, side, generator=rng),
        torch.rand(num, spec.arch_dim, generator=rng),
        torch.rand(spec.num_channels, side, side, generator=rng),
    )


class TestNetwork:
    def test_the_released_predictor_has_1228289_parameters(self) -> None:
        model = Predictor(PAPER, seed=0)
        convolutions = [*model.student_encoder.parameters(), *model.teacher_encoder.parameters()]
        assert sum(parameter.numel() for parameter in model.parameters()) == 1_228_289
        assert sum(parameter.numel() for parameter in convolutions) == 1_179_648

    @pytest.mark.parametrize("num", [1, 4])
    @pytest.mark.parametrize("side", [1, 2, 8])
    def test_a_prediction_per_student_keeps_the_batch_axis(self, num: int, side: int) -> None:
        assert Predictor(SMALL, seed=0)(*inputs(SMALL, num, side)).shape == (num, 1)

    def test_it_equals_the_same_layers_of_torch_applied_by_hand(self) -> None:
        model, given = Predictor(SMALL, seed=3), inputs(SMALL)
        weights = dict(model.named_parameters())

        def encode(maps: torch.Tensor, name: str) -> torch.Tensor:
            for conv in ("conv1", "conv2"):
                maps = nn.functional.conv2d(maps, weights[f"{name}.{conv}.weight"], stride=2, padding=1).clamp(min=0)
            return nn.functional.adaptive_avg_pool2d(maps, 1).flatten(1)

        parts = [
            encode(given.maps, "student_encoder"),
            given.arch @ weights["arch_encoder.weight"].T + weights["arch_encoder.bias"],
            encode(given.teacher_map[None].repeat(4, 1, 1, 1), "teacher_encoder"),
        ]
        hidden = (torch.cat(parts, 1) @ weights["fusion.weight"].T + weights["fusion.bias"]).tanh()
        expected = hidden @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(model(*given), expected)

    def test_with_convolutions_at_zero_only_the_architecture_counts(self) -> None:
        model, one, other = Predictor(SMALL, seed=0), inputs(SMALL, seed=0), inputs(SMALL, seed=1)
        for encoder in (model.student_encoder, model.teacher_encoder):
            for parameter in encoder.parameters():
                nn.init.zeros_(parameter)
        assert torch.equal(model(one.maps, one.arch, one.teacher_map), model(other.maps, one.arch, other.teacher_map))
        assert not torch.equal(model(*one), model(one.maps, other.arch, one.teacher_map))

    def test_permuted_students_give_permuted_predictions(self) -> None:
        model, given = Predictor(SMALL, seed=0), inputs(SMALL, num=6)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        permuted = model(given.maps[order], given.arch[order], given.teacher_map)
        torch.testing.assert_close(permuted, model(*given)[order])

    def test_a_batch_equals_its_students_one_by_one(self) -> None:
        model, given = Predictor(SMALL, seed=0), inputs(SMALL, num=5)
        single = [model(given.maps[i : i + 1], given.arch[i : i + 1], given.teacher_map) for i in range(5)]
        torch.testing.assert_close(model(*given), torch.cat(single))

    @pytest.mark.parametrize("seen", ["S", "A", "T", "R", "SA", "ST", "AT", "AR", "SAT", "SATR"])
    def test_an_input_that_is_left_out_changes_nothing(self, seen: Any) -> None:
        spec = dataclasses.replace(SMALL, inputs=seen)
        model, one, other = Predictor(spec, seed=0), inputs(spec, seed=0), inputs(spec, seed=1)
        swapped = {
            "S": Inputs(other.maps, one.arch, one.teacher_map),
            "A": Inputs(one.maps, other.arch, one.teacher_map),
            "T": Inputs(one.maps, one.arch, other.teacher_map),
        }
        changed = {name for name, given in swapped.items() if not torch.equal(model(*given), model(*one))}
        assert changed == {name for each in seen for name in ("ST" if each == "R" else each)}

    def test_relations_of_maps_are_cosines_and_the_ratio_of_norms(self) -> None:
        model, given = Predictor(dataclasses.replace(SMALL, inputs="AR"), seed=3), inputs(SMALL)
        maps, teacher = given.maps.numpy(), given.teacher_map.numpy()

        def cosine(one: np.ndarray, other: np.ndarray) -> float:
            return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))

        relations = [
            (
                1 - cosine(each, teacher),
                1 - cosine(each.mean((1, 2)), teacher.mean((1, 2))),
                math.log(np.linalg.norm(each) / np.linalg.norm(teacher)),
            )
            for each in maps
        ]
        torch.testing.assert_close(model.relate(given.maps, given.teacher_map), torch.tensor(relations))
        weights = dict(model.named_parameters())
        parts = [
            given.arch @ weights["arch_encoder.weight"].T + weights["arch_encoder.bias"],
            torch.tensor(relations) @ weights["relation_encoder.weight"].T + weights["relation_encoder.bias"],
        ]
        hidden = (torch.cat(parts, 1) @ weights["fusion.weight"].T + weights["fusion.bias"]).tanh()
        torch.testing.assert_close(model(*given), hidden @ weights["head.weight"].T + weights["head.bias"])

    def test_a_teacher_is_related_to_itself_by_zeros_and_a_dead_map_by_finite_numbers(self) -> None:
        model, given = Predictor(dataclasses.replace(SMALL, inputs="R"), seed=0), inputs(SMALL)
        own = model.relate(given.teacher_map[None], given.teacher_map)
        torch.testing.assert_close(own, torch.zeros(1, 3), rtol=0, atol=1e-6)
        assert model.relate(torch.zeros_like(given.maps), given.teacher_map).isfinite().all()
        assert model.relate(given.maps, torch.zeros_like(given.teacher_map)).isfinite().all()

    def test_what_students_explain_is_read_as_a_logarithm_that_is_zero_for_the_teacher(self) -> None:
        model, given = Predictor(dataclasses.replace(SMALL, inputs="AE"), seed=3), inputs(SMALL)
        shares = torch.tensor([1.0, 0.5, 0.0, -1e-7])
        logs = [0.0, math.log(0.5), math.log(1e-3), math.log(1e-3)]
        assert model.compare(shares, given.arch).flatten().tolist() == pytest.approx(logs, abs=1e-6)
        weights = dict(model.named_parameters())
        parts = [
            given.arch @ weights["arch_encoder.weight"].T + weights["arch_encoder.bias"],
            torch.tensor(logs)[:, None] @ weights["explained_encoder.weight"].T + weights["explained_encoder.bias"],
        ]
        hidden = (torch.cat(parts, 1) @ weights["fusion.weight"].T + weights["fusion.bias"]).tanh()
        found = model.call(weights, model.prepare(given._replace(explained=shares)))
        torch.testing.assert_close(found, (hidden @ weights["head.weight"].T + weights["head.bias"]).squeeze(1))

    def test_without_what_it_compares_it_refuses_and_where_it_does_not_it_needs_none(self) -> None:
        predictor, given = meta_predictor(inputs="AE"), inputs(SMALL)
        adapted = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0))
        assert (predictor.needs_explained, adapted.needs_explained, adapted.needs_maps) == (True, True, False)
        with pytest.raises(PredictorMismatchError, match="input E needs what students explain, got none"):
            adapted.score(given.maps, given.arch)
        shares = torch.tensor([0.9, 0.7, 0.5, 0.3])
        one, other = (
            adapted.score(given.maps, given.arch, shares),
            adapted.score(given.maps, given.arch, shares.flip(0)),
        )
        assert (one != other).all()
        blind = meta_predictor(inputs="A").adapt(Support(given.arch[0], given.teacher_map, 60.0))
        assert not blind.needs_explained
        assert torch.equal(blind.score(given.maps, given.arch, shares), blind.score(given.maps, given.arch))

    def test_it_adapts_to_what_measured_students_explain(self) -> None:
        predictor, given = meta_predictor(inputs="AE", support_students=2), inputs(SMALL)

        def score(explained: torch.Tensor) -> torch.Tensor:
            known = Measured(given.arch[:2], given.maps[:2], torch.tensor([40.0, 70.0]), explained)
            adapted = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0, students=known))
            return adapted.score(given.maps, given.arch, torch.full((4,), 0.5))

        assert (score(torch.tensor([0.2, 0.4])) != score(torch.tensor([0.4, 0.2]))).all()

    @pytest.mark.parametrize(("encoding", "num"), [("summary", 14), ("stages", 12)])
    def test_encoded_as_a_summary_it_reads_that_alone(self, encoding: Any, num: int) -> None:
        space = get_space("smoke")
        spec = dataclasses.replace(SMALL, inputs="A", encoding=encoding, arch_dim=space.encoding_dim)
        model, given = Predictor(spec, seed=0), inputs(SMALL)
        vectors = space.encode_many(space.sample(4, generator("s", 0)))
        weights = dict(model.named_parameters())
        read = space.summarise(vectors)[:, :num]
        encoded = read @ weights["arch_encoder.weight"].T + weights["arch_encoder.bias"]
        hidden = (encoded @ weights["fusion.weight"].T + weights["fusion.bias"]).tanh()
        expected = hidden @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(model(given.maps, vectors, given.teacher_map), expected)

    def test_layer_norm_of_maps_makes_their_scale_meaningless(self) -> None:
        model, given = Predictor(dataclasses.replace(SMALL, map_norm="layer"), seed=0), inputs(SMALL)
        scaled = Inputs(given.maps * 7, given.arch, given.teacher_map * 3)
        torch.testing.assert_close(model(*scaled), model(*given), rtol=1e-3, atol=1e-4)


class TestInitialisation:
    def test_equal_seeds_give_equal_bits_and_others_do_not(self) -> None:
        one, same, other = (Predictor(SMALL, seed).fusion.weight for seed in (0, 0, 1))
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_the_global_generator_is_neither_read_nor_moved(self) -> None:
        before = torch.random.get_rng_state()
        one = Predictor(SMALL, seed=0)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.rand(7)
        assert torch.equal(Predictor(SMALL, seed=0).head.bias, one.head.bias)

    @pytest.mark.parametrize("name", ["student_encoder.conv1.weight", "fusion.weight", "fusion.bias"])
    def test_weights_have_the_spread_of_torchs_own_layers(self, name: str) -> None:
        fan_in = 6 * 9 if "conv1" in name else 2 * 256 + 64
        value = Predictor(SMALL, seed=0).get_parameter(name).detach()
        bound = 1 / math.sqrt(fan_in)
        assert value.abs().max() <= bound
        assert value.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.25)


class TestSpec:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("inputs", ""),
            ("inputs", "TS"),
            ("encoding", "blocks"),
            ("unit", "permille"),
            ("map_norm", "batch"),
            ("remap_mode", "scratch"),
            ("hidden_dim", 0),
            ("inner_steps", 0),
            ("resolution", -8),
            ("rate_init", math.nan),
        ],
    )
    def test_an_illegal_value_is_named(self, name: str, value: Any) -> None:
        with pytest.raises(ConfigError, match=name):
            dataclasses.replace(PAPER, **{name: value})


class TestAdaptation:
    def test_one_step_moves_the_prediction_for_the_teacher_towards_its_accuracy(self) -> None:
        predictor, given = meta_predictor(rate=1e-4), inputs(SMALL)
        before = predictor.model(given.teacher_map[None], given.arch[:1], given.teacher_map).item()
        adapted = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0))
        after = adapted.score(given.teacher_map[None], given.arch[:1]).item()
        assert abs(after - 60) < abs(before - 60)
        assert adapted.num_skipped == 0

    def test_scores_are_those_of_a_gradient_step_taken_by_autograd(self) -> None:
        predictor, given = meta_predictor(rate=0.002), inputs(SMALL)
        scores = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0)).score(given.maps, given.arch)
        twin = Predictor(predictor.spec, seed=1)
        loss = (twin(given.teacher_map[None], given.arch[:1], given.teacher_map) - 60).square().sum()
        loss.backward()
        torch.optim.SGD(twin.parameters(), lr=0.002).step()
        with torch.no_grad():
            torch.testing.assert_close(scores, twin(*given).squeeze(1))
        assert scores.dtype == torch.float32

    def test_rates_of_zero_and_no_guidance_score_alike(self) -> None:
        given = inputs(SMALL)
        scores = [
            predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0)).score(given.maps, given.arch)
            for predictor in (meta_predictor(rate=0.0), meta_predictor(guided=False))
        ]
        assert torch.equal(*scores)

    def test_scores_are_percent_whatever_the_unit(self) -> None:
        given = inputs(SMALL)
        predictor = meta_predictor(unit="task_free", guided=False)
        scores = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0)).score(given.maps, given.arch)
        torch.testing.assert_close(scores, predictor.model(*given).detach().squeeze(1) * 10 + 50)

    def test_against_the_teacher_predictions_keep_their_share_of_its_accuracy(self) -> None:
        """A task with all accuracies doubled is the same task."""
        given, predictor = inputs(SMALL), meta_predictor(unit="teacher", rate=0.01)
        half, whole = (
            predictor.adapt(Support(given.arch[0], given.teacher_map, pct)).score(given.maps, given.arch)
            for pct in (35.0, 70.0)
        )
        torch.testing.assert_close(whole, 2 * half)
        unmoved = meta_predictor(unit="teacher", guided=False).adapt(Support(given.arch[0], given.teacher_map, 70.0))
        assert not torch.equal(unmoved.score(given.maps, given.arch), whole)

    def test_an_update_of_the_last_layer_scales_with_the_unit(self) -> None:
        given, moved = inputs(SMALL), []
        for scale in (1.0, 0.01):
            predictor = meta_predictor(rate=0.0)
            with torch.no_grad():
                for name in ("head.weight", "head.bias"):
                    predictor.model.get_parameter(name).mul_(scale)
                    predictor.rates[name].fill_(0.003)
            before = predictor.model(*given).detach().squeeze(1)
            after = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0 * scale)).score(
                given.maps, given.arch
            )
            moved.append(after - before)
        torch.testing.assert_close(moved[1], moved[0] / 100)

    def test_it_adapts_to_measured_students_as_a_gradient_step_by_autograd_does(self) -> None:
        predictor, given = meta_predictor(rate=0.002, support_students=2), inputs(SMALL)
        known = Measured(given.arch[:2], given.maps[:2], torch.tensor([40.0, 70.0]))
        support = Support(given.arch[0], given.teacher_map, 60.0, students=known)
        twin = Predictor(predictor.spec, seed=1)
        error = twin(given.maps[:2], given.arch[:2], given.teacher_map).squeeze(1) - torch.tensor([40.0, 70.0])
        error.square().mean().backward()
        torch.optim.SGD(twin.parameters(), lr=0.002).step()
        with torch.no_grad():
            expected = twin(*given).squeeze(1)
        torch.testing.assert_close(predictor.adapt(support).score(given.maps, given.arch), expected)

    def test_maps_made_in_inference_mode_are_welcome_inside_and_outside_of_it(self) -> None:
        predictor, given = meta_predictor(), inputs(SMALL)
        expected = predictor.adapt(Support(given.arch[0], given.teacher_map, 60.0)).score(given.maps, given.arch)
        with torch.inference_mode():
            frozen = Inputs(given.maps.clone(), given.arch.clone(), given.teacher_map.clone())
            inside = predictor.adapt(Support(frozen.arch[0], frozen.teacher_map, 60.0)).score(frozen.maps, frozen.arch)
        outside = predictor.adapt(Support(frozen.arch[0], frozen.teacher_map, 60.0)).score(frozen.maps, frozen.arch)
        assert torch.equal(inside, expected)
        assert torch.equal(outside, expected)

    def test_a_step_with_an_infinite_loss_is_left_out_and_counted(self) -> None:
        predictor, given = meta_predictor(), inputs(SMALL)
        adapted = predictor.adapt(Support(given.arch[0], given.teacher_map, math.inf))
        assert adapted.num_skipped == 1
        torch.testing.assert_close(adapted.score(given.maps, given.arch), predictor.model(*given).detach().squeeze(1))
