import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch

from dass.meta.adapt import LEVEL, Example, InnerLoop, Order, Params, adapt, outer_backward, outer_loss


def line(params: Params, x: torch.Tensor) -> torch.Tensor:
    return params["w"] * x + params["b"]


def leaves(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in values.items()}


def point(x: float, y: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([x], dtype=torch.float64), torch.tensor(y, dtype=torch.float64)


def example(support: tuple[float, float], query: tuple[float, float]) -> Example:
    queries, target = point(*query)
    return Example(*point(*support), queries, target[None])


def made(examples: Sequence[Example]) -> list[Callable[[], Example]]:
    return [partial(lambda each: each, each) for each in examples]


def gradients(*groups: Params) -> list[float]:
    return [value.grad.item() for group in groups for value in group.values() if value.grad is not None]


class TestInnerStep:
    def test_it_is_the_hand_calculation_for_a_line(self) -> None:
        adapted = adapt(line, leaves(w=1, b=0), leaves(w=0.1, b=0.1), *point(2, 3), InnerLoop())
        assert adapted.params["w"].item() == pytest.approx(1.4)
        assert adapted.params["b"].item() == pytest.approx(0.2)

    def test_no_error_at_the_support_moves_nothing(self) -> None:
        adapted = adapt(line, leaves(w=1, b=1), leaves(w=0.1, b=0.1), *point(2, 3), InnerLoop())
        assert (adapted.params["w"].item(), adapted.params["b"].item()) == (1, 1)

    def test_steps_are_chained(self) -> None:
        adapted = adapt(line, leaves(w=1, b=0), leaves(w=0.1, b=0.1), *point(2, 3), InnerLoop(steps=2))
        # second step from w=1.4, b=0.2: the error is 0, where a step from the beginning would repeat the first
        assert adapted.params["w"].item() == pytest.approx(1.4)
        adapted = adapt(line, leaves(w=1, b=0), leaves(w=0.01, b=0.01), *point(2, 3), InnerLoop(steps=2))
        assert adapted.params["w"].item() == pytest.approx(1 + 0.04 + 0.02 * 2 * (3 - 2.1))

    def test_unguided_takes_no_step(self) -> None:
        params = leaves(w=1, b=0)
        assert adapt(line, params, leaves(w=1, b=1), *point(2, 3), InnerLoop(guided=False)).params == params

    def test_a_step_of_infinite_loss_is_left_out_and_counted(self) -> None:
        adapted = adapt(line, leaves(w=1, b=0), leaves(w=1, b=1), *point(2, math.inf), InnerLoop(steps=3))
        assert adapted.num_skipped == 3
        assert adapted.params["w"].item() == 1


class TestOuterLoss:
    def test_squared_is_the_mean_squared_error(self) -> None:
        predicted, values = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 4.0, 1.0])
        assert outer_loss(predicted, values, "squared").item() == pytest.approx(13 / 3)

    def test_correlation_is_one_less_pearsons_and_a_share_of_the_squared_error(self) -> None:
        predicted, values = torch.tensor([1.0, 2.0, 4.0, 3.5]), torch.tensor([10.0, 40.0, 10.0, 50.0])
        expected = 1 - np.corrcoef(predicted, values)[0, 1] + LEVEL * float(((predicted - values) ** 2).mean())
        assert outer_loss(predicted, values, "correlation").item() == pytest.approx(expected, rel=1e-5)

    def test_however_far_apart_values_lie_the_order_counts_alike(self) -> None:
        values = torch.tensor([1.0, 2.0, 3.0])
        near, far = (outer_loss(scale * values, scale * values, "correlation") for scale in (0.01, 100.0))
        assert near.item() == pytest.approx(0, abs=1e-5)
        assert far.item() == pytest.approx(0, abs=1e-5)

    def test_equal_predictions_or_values_have_a_finite_loss_and_gradient(self) -> None:
        equal, rising = torch.ones(3), torch.arange(3.0)
        for predicted, values in ((equal, rising), (rising, equal), (torch.ones(1), torch.zeros(1))):
            asked = predicted.clone().requires_grad_()
            loss = outer_loss(asked, values, "correlation")
            (gradient,) = torch.autograd.grad(loss, asked)
            assert loss.isfinite()
            assert gradient.isfinite().all()


class TestOuterGradient:
    @pytest.mark.parametrize(
        ("order", "expected"), [("first", [-0.8, -0.8, -3.2, -1.6]), ("second", [0.16, -0.32, -3.2, -1.6])]
    )
    def test_both_orders_are_the_hand_calculation_for_a_line(self, order: Order, expected: list[float]) -> None:
        params, rates = leaves(w=1, b=0), leaves(w=0.1, b=0.1)
        loss, num_skipped = outer_backward(
            line, params, rates, [lambda: example((2, 3), (1, 2))], InnerLoop(order=order)
        )
        assert loss == pytest.approx(0.16)
        assert num_skipped == 0
        assert gradients(params, rates) == pytest.approx(expected)

    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_second_order_is_the_slope_of_the_loss_by_finite_differences(self, steps: int) -> None:
        examples = [example((2, 3), (1, 2)), example((-1, 0.5), (0.3, 1))]
        start = {"w": 1.0, "b": 0.0, "rate_w": 0.1, "rate_b": 0.05}

        def outer(values: dict[str, float]) -> tuple[float, list[float]]:
            params = leaves(w=values["w"], b=values["b"])
            rates = leaves(w=values["rate_w"], b=values["rate_b"])
            loss, _ = outer_backward(line, params, rates, made(examples), InnerLoop(steps))
            return loss, gradients(params, rates)

        slopes = [
            (outer({**start, name: value + 1e-6})[0] - outer({**start, name: value - 1e-6})[0]) / 2e-6
            for name, value in start.items()
        ]
        assert outer(start)[1] == pytest.approx(slopes, abs=1e-7)

    def test_unguided_rates_receive_no_gradient(self) -> None:
        params, rates = leaves(w=1, b=0), leaves(w=0.1, b=0.1)
        loss, _ = outer_backward(line, params, rates, [lambda: example((2, 3), (1, 2))], InnerLoop(guided=False))
        assert loss == 1
        assert gradients(params, rates) == [-2, -2]


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


def bilinear(params: Params, pair: Pair) -> torch.Tensor:
    return torch.tanh(pair.left @ params["u"]) + pair.right @ params["v"]


def pairs(num: int, rng: torch.Generator) -> Pair:
    return Pair(*(torch.randn(num, 3, generator=rng, dtype=torch.float64) for _ in range(2)))


def bilinear_examples(nums: list[int]) -> list[Example]:
    rng = torch.Generator().manual_seed(0)
    return [
        Example(pairs(1, rng), torch.tensor(2.0 + num, dtype=torch.float64), pairs(num, rng), torch.ones(num).double())
        for num in nums
    ]


class TestTasks:
    def run(self, examples: list[Example], loop: InnerLoop) -> tuple[float, int, list[torch.Tensor]]:
        params = {name: torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True) for name in "uv"}
        rates = {name: torch.full((3,), 0.1, dtype=torch.float64, requires_grad=True) for name in "uv"}
        loss, num_skipped = outer_backward(bilinear, params, rates, made(examples), loop)
        found = [value.grad for group in (params, rates) for value in group.values()]
        return loss, num_skipped, [value for value in found if value is not None]

    @pytest.mark.parametrize("nums", [[4, 4, 4], [2, 4, 3]])
    @pytest.mark.parametrize("order", ["first", "second"])
    def test_tasks_weigh_alike_whatever_their_numbers_of_queries(self, nums: list[int], order: Order) -> None:
        loop, examples = InnerLoop(2, order), bilinear_examples(nums)
        loss, _, found = self.run(examples, loop)
        alone = [self.run([example], loop) for example in examples]
        assert loss == pytest.approx(sum(each[0] for each in alone) / 3)
        for index, gradient in enumerate(found):
            torch.testing.assert_close(gradient, sum(each[2][index] for each in alone) / 3)

    def test_a_task_with_an_infinite_inner_loss_skips_its_step_and_spoils_no_gradient(self) -> None:
        good, bad = bilinear_examples([4, 4])
        loss, num_skipped, found = self.run([good, bad._replace(target=torch.tensor(math.inf).double())], InnerLoop())
        guided, unguided = self.run([good], InnerLoop()), self.run([bad], InnerLoop(guided=False))
        assert num_skipped == 1
        assert loss == pytest.approx((guided[0] + unguided[0]) / 2)
        torch.testing.assert_close(found[0], (guided[2][0] + unguided[2][0]) / 2)
        torch.testing.assert_close(found[2], guided[2][2] / 2)


def test_parameters_whose_gradients_are_one_tensor_do_not_disturb_each_other() -> None:
    def total(params: Params, x: torch.Tensor) -> torch.Tensor:
        return (params["v"] + params["w"]) * x

    params, rates = leaves(v=0.25, w=0.75), leaves(v=0.1, w=0.1)
    outer_backward(total, params, rates, made([example((2, 3), (1, 2))]), InnerLoop())
    # by hand: g = -4 for both, v + w = 1.8 after the step, d = -0.4, H = 8 everywhere: d - 8 (0.1 + 0.1) d = 0.24
    assert gradients(params, rates) == pytest.approx([0.24, 0.24, -1.6, -1.6])
