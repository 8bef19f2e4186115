"""DisWOT: how alike an untrained student and its teacher see one minibatch (Dong et al., CVPR 2023; algorithms: 11b).

Both scores are minus a distance, so 0 is the best. `diswot` is their sum.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.baselines.minibatch import Minibatch
from dass.networks import SmallResNet


@dataclass(frozen=True, eq=False)
class View:
    """How a network sees a minibatch of B images and C classes; rows are L2-normalised.

    relations: (B, B), products of the images' flattened feature maps. semantics: (C, C), products of the classes' rows
    of the gradient of the classifier's weight.
    """

    relations: torch.Tensor
    semantics: torch.Tensor

    def to(self, device: torch.device) -> "View":
        """The same on this device."""
        return View(self.relations.to(device), self.semantics.to(device))


def view(network: SmallResNet, batch: Minibatch) -> View:
    """What `network` makes of the minibatch, in the mode that it is in; the network is left as it was."""
    network = copy.deepcopy(network).requires_grad_()
    with torch.no_grad():
        features = network.features(batch.images)
    logits = network.head(features.mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad(batch.loss(logits), network.head.weight)
    return View(correlations(features), correlations(gradient))


def correlations(rows: torch.Tensor) -> torch.Tensor:
    """F Fᵀ of the flattened rows F of (n, ...), each row of it L2-normalised: float64 (n, n)."""
    flat = rows.flatten(1).double()
    return F.normalize(flat @ flat.T, dim=1)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    """The mean squared difference of two matrices of one shape."""
    return float((left - right).square().mean())


def diswot(teacher: View, student: View) -> float:
    """Relation score plus semantic score, at most 0.

    Differs: the repository compares the classes' gradients channel by channel; here classes are compared, which needs no equal
    number of channels.
    """
    return -distance(teacher.relations, student.relations) - distance(teacher.semantics, student.semantics)
