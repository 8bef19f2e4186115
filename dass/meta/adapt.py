"""Learning to adapt, for any model written as a function of its parameters (DaSS, Eq. 7 and 8; Meta-SGD).

inner:  phi' = phi - alpha * grad_phi (f(support; phi) - y)^2          alpha: one learned rate per parameter
outer:  the mean over tasks of the mean over queries of (f(query; phi') - y)^2, minimised over phi and alpha

Outer loss `correlation` (ours): what is used of a predictor is its ranking, so one less the correlation of predictions and
values over a task's queries, which counts every task alike however far its values lie apart, and LEVEL of the squared error.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.threads import Each

Order = Literal["second", "first"]
OuterLoss = Literal["squared", "correlation"]
LEVEL = 0.05  # share of the squared error that keeps predictions at the level of the values
_LEAST_NORM = 1e-6
Params = Mapping[str, torch.Tensor]
ModelInput = Any  # a tensor, or a named tuple of tensors; the model knows which
Model = Callable[[Params, ModelInput], torch.Tensor]


@dataclass(frozen=True)
class InnerLoop:
    """How to adapt: `steps` chained gradient steps, or none when not guided.

    order: `first` takes the inner gradient as a constant, so the outer one has no second derivatives; the rates still
    receive theirs.
    """

    steps: int = 1
    order: Order = "second"
    guided: bool = True

    @property
    def num_steps(self) -> int:
        """Steps really taken."""
        return self.steps if self.guided else 0


class Example(NamedTuple):
    """One task in one episode: adapt to `support` with value `target`, then predict `queries` with values `targets`."""

    support: ModelInput
    target: torch.Tensor
    queries: ModelInput
    targets: torch.Tensor


@dataclass(frozen=True)
class Adaptation:
    """Parameters after the inner steps, and how many of those were skipped because their loss was not finite."""

    params: Params
    num_skipped: int = 0


class _Step(NamedTuple):
    """An inner step that was taken: from these leaves, by these gradients, which keep their graph in second order."""

    leaves: Params
    gradients: Sequence[torch.Tensor]


class _Outer(NamedTuple):
    """The outer loss of one task, its gradients by parameters and, negated, by rates, and the inner steps left out."""

    loss: torch.Tensor
    by_params: Sequence[torch.Tensor]
    by_rates: Sequence[torch.Tensor] | None
    num_skipped: int


def adapt(
    model: Model,
    params: Params,
    rates: Params,
    support: ModelInput,
    target: torch.Tensor,
    loop: InnerLoop,
) -> Adaptation:
    """The chained inner steps from `params`; one whose loss is not finite is left out and counted.

    target: of the shape of `model(params, support)`, or a scalar. The result knows nothing of where it came from:
    `outer_backward` is what differentiates through the steps.

    Differs: the released code computes every step from the initial parameters, which is the same only for one step.
    """
    leaves, steps = _walk(model, params, rates, support, target, loop, keep_graph=False)
    return Adaptation({name: leaf.detach() for name, leaf in leaves.items()}, loop.num_steps - len(steps))


def outer_backward(
    model: Model,
    params: Params,
    rates: Params,
    examples: Sequence[Callable[[], Example]],
    loop: InnerLoop,
    each: Each = map,
    loss: OuterLoss = "squared",
) -> tuple[float, int]:
    """Add the gradient of the outer loss to `params` and `rates`; the loss, and the number of inner steps left out.

    examples: one per task, made by those who work on it. each: works on the tasks, perhaps several at a time; the
    gradients are added in the order of the tasks, so that their bits do not depend on it.
    """
    total, num_skipped = 0.0, 0
    for outer in each(lambda make: _outer_gradient(model, params, rates, make(), loop, loss), examples):
        total += outer.loss.item() / len(examples)
        num_skipped += outer.num_skipped
        _accumulate(params.values(), outer.by_params, 1 / len(examples))
        if outer.by_rates is not None:
            _accumulate(rates.values(), outer.by_rates, -1 / len(examples))
    return total, num_skipped


def outer_loss(predicted: torch.Tensor, values: torch.Tensor, kind: OuterLoss) -> torch.Tensor:
    """The loss of a task's queries (n_q,), see the module; without correlation, it counts as 0."""
    squared: torch.Tensor = F.mse_loss(predicted, values)
    if kind == "squared":
        return squared
    ours, theirs = predicted - predicted.mean(), values - values.mean()
    correlation: torch.Tensor = (ours * theirs).sum() / (ours.norm() * theirs.norm()).clamp_min(_LEAST_NORM)
    return 1 - correlation + LEVEL * squared


def _outer_gradient(
    model: Model, params: Params, rates: Params, example: Example, loop: InnerLoop, kind: OuterLoss
) -> _Outer:
    """The chain rule through the inner steps, the last first.

    With g the gradient of a step, H its Hessian and d the gradient by the parameters that the step led to: the gradient
    by the rates is -g d, that by the parameters it came from d - H (alpha d). Written out, this passes less often than
    autograd over the parameters, which are more than a core's cache holds.
    """
    adapted, steps = _walk(
        model, params, rates, example.support, example.target, loop, keep_graph=loop.order == "second"
    )
    loss = outer_loss(model(adapted, example.queries), example.targets, kind)
    by_params: Sequence[torch.Tensor] = torch.autograd.grad(loss, list(adapted.values()))
    by_rates: Sequence[torch.Tensor] | None = None
    for step in reversed(steps):  # nothing in place: gradients of two parameters may be one tensor
        products = [g.detach() * d for g, d in zip(step.gradients, by_params, strict=True)]
        by_rates = products if by_rates is None else [a + b for a, b in zip(by_rates, products, strict=True)]
        if loop.order == "second":
            moved = [rate.detach() * d for rate, d in zip(rates.values(), by_params, strict=True)]
            curved = torch.autograd.grad(step.gradients, list(step.leaves.values()), moved)
            by_params = [d - c for d, c in zip(by_params, curved, strict=True)]
    return _Outer(loss.detach(), by_params, by_rates, loop.num_steps - len(steps))


def _walk(
    model: Model,
    params: Params,
    rates: Params,
    support: ModelInput,
    target: torch.Tensor,
    loop: InnerLoop,
    *,
    keep_graph: bool,
) -> tuple[Params, list[_Step]]:
    """Leaves after the inner steps, and the steps taken."""
    leaves, steps = _leaves(params), []
    for _ in range(loop.num_steps):
        with torch.enable_grad():
            loss = (model(leaves, support) - target).square().mean()
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=keep_graph)
        if torch.isfinite(loss):
            steps.append(_Step(leaves, gradients))
            with torch.no_grad():
                moved = [
                    torch.addcmul(value, rates[name], gradient, value=-1)
                    for (name, value), gradient in zip(leaves.items(), gradients, strict=True)
                ]
            leaves = _leaves(dict(zip(leaves, moved, strict=True)))
    return leaves, steps


def _leaves(params: Params) -> Params:
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def _accumulate(leaves: Iterable[torch.Tensor], gradients: Iterable[torch.Tensor], share: float) -> None:
    """Add to each `grad`, which lies in memory as its leaf does: a fused optimizer takes that for granted.

    A leaf that wants no gradient, such as a rate that is not learned, gets none.
    """
    for leaf, gradient in zip(leaves, gradients, strict=True):
        if not leaf.requires_grad:
            continue
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        leaf.grad.add_(gradient, alpha=share)
