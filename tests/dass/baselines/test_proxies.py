"""Proxies against figures worked out by hand and against second ways to the same number, on toys and on students."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from dass.baselines.minibatch import Minibatch
from dass.baselines.proxies import (
    PROXIES,
    Proxy,
    fisher,
    fisher_channels,
    grad_norm,
    grasp,
    jacob_cov,
    log_synflow,
    naswot,
    relu_agreement,
    snip,
    synflow,
)
from dass.baselines.scorers import FAILED, to_scores
from dass.networks import SmallResNet, build
from dass.records import Recipe, Student
from dass.seeding import generator
from dass.spaces import get_space

STUDENT = Student(((8, 16), (24,), (16, 32), (32, 64)))  # widths that shrink and grow, strides, identity shortcuts
NUM_CLASSES, NUM_IMAGES, SIDE = 5, 12, 16


def mlp(first: torch.Tensor, second: torch.Tensor) -> nn.Sequential:
    """Two linear layers without bias around a ReLU."""
    layers = [nn.Linear(weight.shape[1], weight.shape[0], bias=False) for weight in (first, second)]
    for layer, weight in zip(layers, (first, second), strict=True):
        layer.weight.data = weight.clone()
    return nn.Sequential(layers[0], nn.ReLU(), layers[1])


TOY_WEIGHTS = (torch.tensor([[1.0, -1.0], [0.5, 2.0]]), torch.tensor([[1.0, 2.0], [-1.0, 0.5]]))
TOY = mlp(*TOY_WEIGHTS)
TOY_BATCH = Minibatch(torch.eye(2), torch.tensor([0, 1]))


def make_network(seed: int = 0) -> SmallResNet:
    """A student with batch norms that are not at 0 and 1, so that leaving one out shows."""
    rng = generator("test proxies", seed)
    network = build(STUDENT, NUM_CLASSES, rng)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=rng)
            module.bias.data.uniform_(-0.5, 0.5, generator=rng)
    return network


def make_batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> Minibatch:
    rng = generator("test batch", seed)
    images = torch.randn(NUM_IMAGES, 3, SIDE, SIDE, generator=rng).to(dtype)
    return Minibatch(images, torch.randint(NUM_CLASSES, (NUM_IMAGES,), generator=rng))


def layers_of(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    return {name: each for name, each in network.named_modules() if isinstance(each, nn.Conv2d | nn.Linear)}


def gradients_of(network: nn.Module, batch: Minibatch) -> dict[str, torch.Tensor]:
    """The gradient of the plain cross-entropy, the usual way: `backward` and `.grad`."""
    network = copy.deepcopy(network)
    F.cross_entropy(network(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
    return {name: layer.weight.grad for name, layer in layers_of(network).items()}  # type: ignore[misc]


class Shift(nn.Module):
    """Adds 1, to what it was given or to a copy of it."""

    def __init__(self, *, in_place: bool = False) -> None:
        super().__init__()
        self.in_place = in_place

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.add_(1) if self.in_place else maps + 1


class TestTheToy:
    def test_it_is_the_specifications(self) -> None:
        logits = TOY(TOY_BATCH.images)
        assert logits.tolist() == [[2, -0.75], [4, 1]]
        assert TOY_BATCH.loss(logits).item() == pytest.approx(1.555277, abs=1e-6)
        weights = dict(zip(("0", "2"), TOY_WEIGHTS, strict=True))
        total = sum(float((weights[name] * g).sum()) for name, g in gradients_of(TOY, TOY_BATCH).items())
        assert total == pytest.approx(2.692484, abs=1e-6)

    @pytest.mark.parametrize(
        ("proxy", "expected"),
        [
            (grad_norm, 2.044948),
            (snip, 3.915448),
            (grasp, -3.036489),
            (synflow, 20.5),
            (log_synflow, math.log(20.5)),
            (fisher, 2.953160),
            (jacob_cov, -99989.68),
            (naswot, 1.098612),
        ],
    )
    def test_scores_are_those_worked_out_by_hand(self, proxy: Proxy, expected: float) -> None:
        assert proxy(TOY, TOY_BATCH) == pytest.approx(expected, rel=1e-6, abs=2e-6)

    def test_fisher_sums_channels_by_layer(self) -> None:
        layers = [float(channels.sum()) for channels in fisher_channels(TOY, TOY_BATCH)]
        assert layers == pytest.approx([0.511441, 0.965139], abs=1e-6)
        assert fisher(TOY, TOY_BATCH, per_channel=True) == pytest.approx(1.476580, abs=1e-6)

    @pytest.mark.parametrize("proxy", [grad_norm, snip, grasp, fisher, naswot])
    def test_layers_that_work_in_place_change_nothing(self, proxy: Proxy) -> None:
        in_place = nn.Sequential(TOY[0], nn.ReLU(inplace=True), TOY[2])
        assert proxy(in_place, TOY_BATCH) == proxy(TOY, TOY_BATCH)
        shifted = nn.Sequential(TOY[0], Shift(in_place=True), TOY[1], TOY[2])
        assert proxy(shifted, TOY_BATCH) == proxy(nn.Sequential(TOY[0], Shift(), TOY[1], TOY[2]), TOY_BATCH)

    def test_a_unit_at_zero_is_not_active(self) -> None:
        assert relu_agreement(nn.ReLU(), torch.tensor([[0.0, 1.0], [-1.0, 1.0]])).tolist() == [[2, 2], [2, 2]]

    def test_agreement_counts_units_that_treat_two_images_alike(self) -> None:
        assert relu_agreement(TOY, TOY_BATCH.images).tolist() == [[2, 1], [1, 2]]
        codes = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
        batch = Minibatch(codes * 3.0 - 1, torch.zeros(3, dtype=torch.int64))
        assert relu_agreement(nn.ReLU(), batch.images).tolist() == [[4, 2, 0], [2, 4, 2], [0, 2, 4]]
        assert naswot(nn.ReLU(), batch) == pytest.approx(3.465736, abs=1e-6)


class HalfSquare(nn.Module):
    """The Jacobian of the sum of its outputs is the image itself."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) ** 2 / 2


class TestJacobCov:
    def test_uncorrelated_images_give_minus_their_number(self) -> None:
        hadamard = torch.ones(1, 1)
        for _ in range(7):
            hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
        rows = Minibatch(hadamard[1:65], torch.zeros(64, dtype=torch.int64))  # orthogonal, each of mean 0
        assert jacob_cov(HalfSquare(), rows) == pytest.approx(-64.0, abs=1e-4)

    def test_it_is_that_of_the_full_jacobian_in_numpy(self) -> None:
        network, batch = make_network(), make_batch()
        full = torch.autograd.functional.jacobian(lambda x: network(x).sum(0), batch.images)  # type: ignore[no-untyped-call]
        rows = full.sum(0).reshape(NUM_IMAGES, -1).double().numpy()
        values = np.linalg.eigvals(np.corrcoef(rows)).real
        expected = -np.sum(np.log(values + 1e-5) + 1 / (values + 1e-5))
        assert jacob_cov(network, batch) == pytest.approx(expected, rel=1e-4)


class TestOnStudents:
    def test_grad_norm_is_that_of_backward(self) -> None:
        network, batch = make_network(), make_batch()
        expected = sum(np.linalg.norm(g.double().numpy()) for g in gradients_of(network, batch).values())
        assert grad_norm(network, batch) == pytest.approx(expected, rel=1e-5)

    def test_snip_is_the_gradient_of_a_mask_of_ones(self) -> None:
        network, batch = make_network(), make_batch()
        masks = {f"{name}.weight": torch.ones_like(layer.weight) for name, layer in layers_of(network).items()}

        def loss(masks: dict[str, torch.Tensor]) -> torch.Tensor:
            masked = {name: network.get_parameter(name).detach() * mask for name, mask in masks.items()}
            buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
            logits = torch.func.functional_call(network, masked | buffers, (batch.images,))
            return F.cross_entropy(logits, batch.labels)

        expected = sum(float(g.detach().abs().sum()) for g in torch.func.grad(loss)(masks).values())
        assert snip(network, batch) == pytest.approx(expected, rel=1e-5)

    def test_grasp_is_the_change_of_the_gradient_along_itself(self) -> None:
        """H g by central differences, in double precision."""
        network, batch = make_network().double(), make_batch(dtype=torch.float64)
        base = gradients_of(network, batch)
        moved = []
        for step in (1e-5, -1e-5):
            other = copy.deepcopy(network)
            for name, layer in layers_of(other).items():
                layer.weight.data += step * base[name]
            moved.append(gradients_of(other, batch))
        expected = -sum(
            float((layer.weight.detach() * (moved[0][name] - moved[1][name]) / 2e-5).sum())
            for name, layer in layers_of(network).items()
        )
        assert grasp(network, batch) == pytest.approx(expected, rel=1e-4)
        assert grasp(network.float(), make_batch()) == pytest.approx(expected, rel=1e-3)

    def test_synflow_is_the_change_of_the_output_as_all_weights_grow(self) -> None:
        """W >= 0 makes the sum of |W dR/dW| a derivative along W; eval mode with mean 0 and variance 1 is the identity."""
        network = make_network().double()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.fill_(1 - module.eps)  # type: ignore[union-attr]
                module.weight.data.fill_(1)
                module.bias.data.fill_(0)
        network.eval().head.bias.data.abs_()

        def output(factor: float) -> float:
            grown = copy.deepcopy(network)
            for layer in layers_of(grown).values():
                layer.weight.data = factor * layer.weight.data.abs()
            return float(grown(torch.ones(1, 3, SIDE, SIDE, dtype=torch.float64)).sum().detach())

        expected = (output(1 + 1e-5) - output(1 - 1e-5)) / 2e-5
        assert synflow(make_network(), make_batch()) == pytest.approx(expected, rel=1e-6)
        assert log_synflow(make_network(), make_batch()) == pytest.approx(math.log(expected), rel=1e-6)

    def test_fisher_is_the_gradient_of_a_mask_on_every_channel_of_every_image(self) -> None:
        network, batch = make_network(), make_batch()
        masked = copy.deepcopy(network)
        masks = []
        for layer in layers_of(masked).values():
            num_channels = layer.weight.shape[0]
            shape = (NUM_IMAGES, num_channels, 1, 1) if isinstance(layer, nn.Conv2d) else (NUM_IMAGES, num_channels)
            masks.append(torch.ones(shape, requires_grad=True))
            layer.register_forward_hook(lambda _, __, output, mask=masks[-1]: output * mask)
        gradients = torch.autograd.grad(F.cross_entropy(masked(batch.images), batch.labels), masks)
        channels = [0.5 * g.flatten(1).double().square().mean(0) for g in gradients]
        fan_ins = [layer.weight[0].numel() for layer in layers_of(network).values()]
        expected = sum(float(c.sum()) * fan_in for c, fan_in in zip(channels, fan_ins, strict=True))
        assert fisher(network, batch) == pytest.approx(expected, rel=1e-4)
        assert fisher(network, batch, per_channel=True) == pytest.approx(
            float(sum(c.sum() for c in channels)), rel=1e-4
        )

    def test_agreement_is_counted_over_every_relu_of_the_student(self) -> None:
        """The forward pass written out, with pre-activations as codes, compared unit by unit."""
        network, batch = make_network(), make_batch()
        codes: list[np.ndarray] = []

        def relu(pre: torch.Tensor) -> torch.Tensor:
            codes.append((pre > 0).flatten(1).numpy())
            return pre.clamp(min=0)

        walked = copy.deepcopy(network)
        with torch.no_grad():
            maps = relu(walked.stem.bn(walked.stem.conv(batch.images)))
            for stage in walked.stages:
                for block in stage:  # type: ignore[attr-defined]
                    inner = block.bn2(block.conv2(relu(block.bn1(block.conv1(maps)))))
                    kept = maps[:, : block.width]
                    kept = F.max_pool2d(kept, 2) if block.stride == 2 else kept
                    inner[:, : kept.shape[1]] += kept
                    maps = relu(inner)
        units = np.concatenate(codes, axis=1)
        expected = (units[:, None] == units[None]).sum(axis=2)
        agreement = relu_agreement(network, batch.images).numpy()
        assert agreement[0, 0] == units.shape[1]
        np.testing.assert_allclose(agreement, expected, atol=2)  # a unit at 0 may fall on either side
        assert naswot(network, batch) == pytest.approx(np.linalg.slogdet(expected.astype(float)).logabsdet, rel=1e-4)

    @pytest.mark.parametrize("name", PROXIES)
    def test_the_network_is_left_as_it_was(self, name: str) -> None:
        network, batch = make_network(), make_batch()
        before = copy.deepcopy(network.state_dict())
        first = PROXIES[name](network, batch)
        assert network.training
        assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
        assert all(parameter.grad is None for parameter in network.parameters())
        assert PROXIES[name](network.requires_grad_(requires_grad=False), batch) == first
        assert math.isfinite(first)

    @pytest.mark.parametrize("name", PROXIES)
    def test_other_weights_give_another_score(self, name: str) -> None:
        assert PROXIES[name](make_network(1), make_batch()) != PROXIES[name](make_network(), make_batch())

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    @pytest.mark.parametrize("name", PROXIES)
    def test_a_gpu_gives_the_same_score(self, name: str) -> None:
        device = torch.device("cuda")
        expected = PROXIES[name](make_network(), make_batch())
        found = PROXIES[name](make_network().to(device), make_batch().to(device))
        assert found == pytest.approx(expected, rel=2e-2)


def test_synflow_of_a_deep_student_fits_into_float32_as_a_logarithm_alone() -> None:
    largest = get_space("paper5").largest
    network, batch = build(largest, 10, generator("deep")), Minibatch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    assert synflow(network, batch) > torch.finfo(torch.float32).max
    assert to_scores([synflow(network, batch)]) == FAILED
    assert torch.isfinite(to_scores([log_synflow(network, batch)]))
    for layer in layers_of(network).values():
        layer.weight.data *= 1e10  # beyond double precision as well
    assert to_scores([log_synflow(network, batch)]) == FAILED


class TestInvariants:
    @pytest.mark.parametrize("proxy", [snip, synflow])
    def test_what_one_layer_gains_and_the_next_loses_does_not_count(self, proxy: Proxy) -> None:
        rng = generator("test scaling")
        first, second = torch.randn(7, 4, generator=rng), torch.randn(3, 7, generator=rng)
        batch = Minibatch(torch.randn(9, 4, generator=rng), torch.arange(9) % 3)
        expected = proxy(mlp(first, second), batch)
        assert proxy(mlp(first * 8, second / 8), batch) == pytest.approx(expected, rel=1e-5)
        assert proxy(mlp(first * 8, second), batch) != pytest.approx(expected, rel=1e-2)

    def test_synflow_of_a_plain_chain_is_its_layers_times_its_output(self) -> None:
        rng = generator("test chain")
        weights = [torch.randn(6, 5, generator=rng), torch.randn(4, 6, generator=rng), torch.randn(3, 4, generator=rng)]
        chain = nn.Sequential()
        for weight in weights:
            chain += nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False), nn.ReLU())
            chain[-2].weight.data = weight
        output = weights[2].abs() @ weights[1].abs() @ weights[0].abs() @ torch.ones(5)
        batch = Minibatch(torch.zeros(2, 5), torch.tensor([0, 1]))
        assert synflow(chain, batch) == pytest.approx(3 * float(output.sum()), rel=1e-5)

    def test_naswot_does_not_see_the_scale_of_a_unit(self) -> None:
        rng = generator("test units")
        first, second = torch.randn(7, 4, generator=rng), torch.randn(3, 7, generator=rng)
        batch = Minibatch(torch.randn(5, 4, generator=rng), torch.zeros(5, dtype=torch.int64))
        scaled = first * (0.1 + 9 * torch.rand(7, 1, generator=rng))
        assert naswot(mlp(scaled, second), batch) == naswot(mlp(first, second), batch)

    def test_images_that_are_all_alike_are_told_apart_by_nothing(self) -> None:
        batch = make_batch()
        alike = Minibatch(batch.images[:1].expand_as(batch.images).contiguous(), batch.labels)
        assert naswot(make_network(), alike) == -math.inf

    def test_a_dead_network_has_no_jacobian_to_correlate(self) -> None:
        network = make_network()
        network.head.weight.data.zero_()
        assert math.isnan(jacob_cov(network, make_batch()))

    def test_distillation_with_all_weight_on_labels_is_plain_cross_entropy(self) -> None:
        network, batch = make_network(), make_batch()
        logits = torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator("test logits"))
        hard = Minibatch(batch.images, batch.labels, Recipe(alpha=1.0), logits)
        soft = Minibatch(batch.images, batch.labels, Recipe(alpha=0.0), logits)
        for proxy in (grad_norm, snip, grasp, fisher):
            assert proxy(network, hard) == pytest.approx(proxy(network, batch), rel=1e-5)
            assert proxy(network, soft) != pytest.approx(proxy(network, batch), rel=1e-2)
