"""Zero-cost proxies: what one minibatch shows of a network that was never trained (algorithms: section 6.4).

Each is a function of a network and a minibatch, and higher is better. Sums go over the weights W of all convolutions
and linear layers, biases and batch norms left out; g is the gradient of the minibatch's loss. The network is used in
the mode that it is in - the sources take train mode, in which batch norm reads the minibatch's own statistics - and is
left as it was, its statistics and gradients included. Results are NaN or infinite where a proxy is not defined.

After "Zero-Cost Proxies for Lightweight NAS" (Abdelfattah et al., ICLR 2021) and "Neural Architecture Search without
Training" (Mellor et al., 2020 and ICML 2021).
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dass.baselines.minibatch import Minibatch

Proxy = Callable[[nn.Module, Minibatch], float]

JACOB_COV_K = 1e-5  # keeps the logarithm and the quotient of jacob_cov finite
_RELUS = (torch.ops.aten.relu.default, torch.ops.aten.relu_.default)


def grad_norm(network: nn.Module, batch: Minibatch) -> float:
    """The sum over layers of the Frobenius norm of g."""
    network = _copied(network)
    gradients = torch.autograd.grad(batch.loss(network(batch.images)), _weights(network))
    return float(sum(torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradients))


def snip(network: nn.Module, batch: Minibatch) -> float:
    """The sum of |W g|: what the loss would change by if weights were cut, to first order."""
    network = _copied(network)
    weights = _weights(network)
    gradients = torch.autograd.grad(batch.loss(network(batch.images)), weights)
    return _total((w * g).abs() for w, g in zip(weights, gradients, strict=True))


def grasp(network: nn.Module, batch: Minibatch) -> float:
    """The sum of -W (H g), H the Hessian of the loss: one iteration at temperature 1."""
    network = _copied(network)
    weights = _weights(network)
    gradients = torch.autograd.grad(batch.loss(network(batch.images)), weights, create_graph=True)
    inner = torch.stack([(g * g.detach()).sum() for g in gradients]).sum()
    products = torch.autograd.grad(inner, weights, materialize_grads=True)
    return -_total(w * product for w, product in zip(weights, products, strict=True))


def synflow(network: nn.Module, batch: Minibatch) -> float:
    """The sum of |W dR/dW|: R sums the outputs of the network for one image of ones, in double precision.

    All parameters are replaced by their absolute values and batch norms by identities. Reads the minibatch's
    resolution alone. Values grow exponentially with depth, see `log_synflow`.
    """
    network = _without_batch_norm(_copied(network)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    weights = _weights(network)
    ones = torch.ones_like(batch.images[:1], dtype=torch.float64)
    gradients = torch.autograd.grad(network(ones).sum(), weights)
    return _total((w * g).abs() for w, g in zip(weights, gradients, strict=True))


def log_synflow(network: nn.Module, batch: Minibatch) -> float:
    """The natural logarithm of `synflow`, which ranks alike and fits into float32."""
    score = synflow(network, batch)
    return math.log(score) if score > 0 else -math.inf


def fisher(network: nn.Module, batch: Minibatch, *, per_channel: bool = False) -> float:
    """The sum over all output channels of `fisher_channels`, each counted once per weight of it (its fan-in).

    per_channel: each is counted once.
    """
    return _total(
        saliency if per_channel else saliency * layer.weight[0].numel()
        for saliency, layer in zip(fisher_channels(network, batch), _layers(network), strict=True)
    )


def fisher_channels(network: nn.Module, batch: Minibatch) -> list[torch.Tensor]:
    """Of each layer float64 (C,): half the batch's mean of (sum over space of a da)², a the output, da its gradient.

    Outputs have their channels on axis 1.
    """
    network = _copied(network)
    outputs: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        outputs.append(output)
        return output.clone()  # what follows may work in place

    for layer in _layers(network):
        layer.register_forward_hook(keep)
    gradients = torch.autograd.grad(batch.loss(network(batch.images)), outputs)
    products = [(a * da).detach() for a, da in zip(outputs, gradients, strict=True)]
    return [each.reshape(*each.shape[:2], -1).sum(2).double().square().mean(0) / 2 for each in products]


def jacob_cov(network: nn.Module, batch: Minibatch) -> float:
    """-sum(log(v + k) + 1 / (v + k)) over the eigenvalues v of the correlations of the images' Jacobians; k = 1e-5.

    The Jacobian of an image is d(sum of all logits) / d(image). Needs no labels.
    """
    images = batch.images.detach().clone().requires_grad_()
    (jacobians,) = torch.autograd.grad(_copied(network)(images).sum(), images)
    correlations = torch.corrcoef(jacobians.flatten(1).double())
    if not torch.isfinite(correlations).all():
        return math.nan
    values = torch.linalg.eigvalsh(correlations) + JACOB_COV_K
    return -float((values.log() + 1 / values).sum())


def naswot(network: nn.Module, batch: Minibatch) -> float:
    """The logarithm of |det K|, K from `relu_agreement`: high where ReLUs tell the images apart. Needs no labels."""
    return float(torch.linalg.slogdet(relu_agreement(network, batch.images)).logabsdet)


def relu_agreement(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """K, float64 (B, B): in how many ReLU units two images are both active or both not."""
    seen = _ReLUAgreement(len(images), images.device)
    with torch.no_grad(), seen:
        _copied(network)(images)
    return seen.agreement


class _ReLUAgreement(TorchDispatchMode):  # type: ignore[no-untyped-call]  # missing in its stubs
    """Sees every ReLU of the thread while it is active, however it is called, and adds up its agreement."""

    def __init__(self, num_images: int, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.agreement = torch.zeros(num_images, num_images, dtype=torch.float64, device=device)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own types are not typed
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Note what goes into a ReLU, and do as asked."""
        if func in _RELUS:
            signs = (args[0].flatten(1) > 0).float() * 2 - 1
            # a product of signs is agreements less disagreements; float32 counts exactly to 2**24 units
            self.agreement += (signs @ signs.T + signs.shape[1]) / 2
        return func(*args, **(kwargs or {}))


PROXIES: Mapping[str, Proxy] = MappingProxyType(
    {
        "grad_norm": grad_norm,
        "snip": snip,
        "grasp": grasp,
        "synflow": log_synflow,
        "fisher": fisher,
        "jacob_cov": jacob_cov,
        "naswot": naswot,
    }
)
"""The proxies as they rank students."""

LOSS_PROXIES = frozenset({"grad_norm", "snip", "grasp", "fisher"})
"""Those that read labels, so that another loss is another proxy."""


def _copied(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).requires_grad_()


def _layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def _weights(network: nn.Module) -> list[torch.Tensor]:
    return [layer.weight for layer in _layers(network)]


def _without_batch_norm(network: nn.Module) -> nn.Module:
    """The same module with identities where batch norms were."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return network


def _total(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.stack([tensor.detach().sum(dtype=torch.float64) for tensor in tensors]).sum())
