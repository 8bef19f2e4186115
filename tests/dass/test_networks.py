import math
from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from dass.errors import ConfigError, DataError, SpaceError
from dass.networks import build
from dass.networks.small_resnet import shortcut
from dass.records import Student
from dass.spaces import PRESETS

SMALL = Student(((4, 8), (16,), (24, 8, 32), (32, 64)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(state: Mapping[str, torch.Tensor], student: Student, images: torch.Tensor) -> torch.Tensor:
    """Logits in eval mode, written as plain functions of the state dict."""

    def layer(x: torch.Tensor, conv: str, bn: str, stride: int = 1) -> torch.Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], stride=stride, padding=1)
        statistics = state[f"{bn}.running_mean"], state[f"{bn}.running_var"]
        return F.batch_norm(x, *statistics, state[f"{bn}.weight"], state[f"{bn}.bias"])

    x = layer(images, "stem.conv", "stem.bn").relu()
    for stage, row in enumerate(student.widths):
        for i, width in enumerate(row):
            name, stride = f"stages.{stage}.{i}", 2 if stage and not i else 1
            inner = layer(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            padded = torch.zeros(len(x), width, *x.shape[2:])
            common = min(width, x.shape[1])
            padded[:, :common] = x[:, :common]
            if stride == 2:
                padded = padded.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2))
            x = (layer(inner, f"{name}.conv2", f"{name}.bn2") + padded).relu()
    return x.mean((2, 3)) @ state["head.weight"].T + state["head.bias"]


class TestShortcut:
    ramp = torch.arange(1.0, 13.0).reshape(1, 3, 2, 2)

    def test_missing_channels_are_zeros_at_the_end(self) -> None:
        assert shortcut(self.ramp, 5, 1).sum((0, 2, 3)).tolist() == [10, 26, 42, 0, 0]

    def test_surplus_channels_are_cut_off_the_end(self) -> None:
        assert shortcut(self.ramp, 2, 1).sum((0, 2, 3)).tolist() == [10, 26]

    def test_stride_two_takes_the_maxima(self) -> None:
        assert shortcut(self.ramp, 5, 2).flatten().tolist() == [4, 8, 12, 0, 0]

    def test_padded_channels_stay_zero_where_real_ones_are_negative(self) -> None:
        assert shortcut(-self.ramp, 4, 2).flatten().tolist() == [-1, -5, -9, 0]

    def test_equal_shape_is_the_identity(self) -> None:
        assert shortcut(self.ramp, 3, 1) is self.ramp


class TestNetwork:
    @pytest.mark.parametrize(
        "student", [SMALL, *PRESETS["paper5_w8"].sample(4, rng(5))], ids=lambda student: student.key
    )
    def test_forward_equals_plain_functions_of_the_state(self, student: Student) -> None:
        network = build(student, 5, rng())
        images = torch.randn(3, 3, 16, 24, generator=rng(1))
        network(images)  # one step in train mode moves the running statistics off 0 and 1
        network.eval()
        with torch.no_grad():
            torch.testing.assert_close(network(images), reference(network.state_dict(), student, images))

    def test_features_are_the_last_maps_at_an_eighth_of_the_side(self) -> None:
        network = build(SMALL, 5, rng()).eval()
        images = torch.randn(2, 3, 32, 16, generator=rng(1))
        maps = network.features(images)
        assert maps.shape == (2, 64, 4, 2)
        assert maps.min() >= 0
        torch.testing.assert_close(network.head(maps.mean((2, 3))), network(images))

    def test_state_names_are_the_published_ones(self) -> None:
        bn = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        expected = {"stem.conv.weight", "head.weight", "head.bias", *(f"stem.bn.{name}" for name in bn)}
        for stage, depth in enumerate(SMALL.depths):
            for block in range(depth):
                for i in (1, 2):
                    expected.add(f"stages.{stage}.{block}.conv{i}.weight")
                    expected |= {f"stages.{stage}.{block}.bn{i}.{name}" for name in bn}
        assert set(build(SMALL, 5).state_dict()) == expected

    @pytest.mark.parametrize("shape", [(1, 3, 65, 64), (1, 3, 64, 60), (1, 3, 4, 8)])
    def test_a_side_that_eight_does_not_divide_is_a_data_error(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match="multiple of 8 pixels, got"):
            build(SMALL, 5, rng())(torch.zeros(shape))

    def test_gradients_reach_every_parameter(self) -> None:
        network = build(SMALL, 5, rng())
        network(torch.randn(4, 3, 16, 16, generator=rng(1))).square().sum().backward()
        missing = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
        assert missing == []


class TestInitialise:
    def test_convolutions_have_the_kaiming_fan_out_spread(self) -> None:
        state = build(PRESETS["paper5"].largest, 10, rng()).state_dict()
        for name in ("stages.1.0.conv1.weight", "stages.3.4.conv2.weight"):
            weight = state[name]
            assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * weight.shape[0])), rel=0.02)
            assert abs(weight.mean().item()) < 0.001

    def test_batch_norms_start_at_one_and_zero(self) -> None:
        state = build(SMALL, 10, rng()).state_dict()
        ends = {"bn1.weight": 1, "bn2.weight": 1, "bn2.bias": 0, "bn1.running_mean": 0, "bn2.running_var": 1}
        for end, value in ends.items():
            assert (torch.cat([tensor for name, tensor in state.items() if name.endswith(end)]) == value).all()

    def test_the_classifier_lies_within_torchs_own_bound(self) -> None:
        head = build(SMALL, 1000, rng()).head
        assert head.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.01)
        assert head.bias.abs().max().item() == pytest.approx(1 / 8, rel=0.01)

    def test_the_generator_decides_all_weights_and_the_global_one_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        first, same, other = (build(SMALL, 5, rng(seed)).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], same[name]) for name in first)
        assert not torch.equal(first["stages.3.1.conv2.weight"], other["stages.3.1.conv2.weight"])
        build(SMALL, 5)
        assert torch.equal(before, torch.get_rng_state())

    def test_an_unknown_family_and_no_classes_are_refused(self) -> None:
        with pytest.raises(SpaceError, match="got 'ofa_resnet'"):
            build(Student(SMALL.widths, family="ofa_resnet"), 5)
        with pytest.raises(ConfigError, match="num_classes must be >= 1, got 0"):
            build(SMALL, 0)
