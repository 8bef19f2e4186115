"""The Set Transformer of MetaD2A: a set of vectors becomes one vector, whatever the order of the set (section 6.2).

Networks are functions of their parameters (`dass.meta.layers`); the modules here only hold weights.

Shape legend: n elements of a set, d its features, w the width of the attention.
"""

import math

import torch
from torch import nn

from dass.meta.adapt import Params
from dass.meta.layers import apply_linear, linear


class AttentionBlock(nn.Module):
    """The weights of `attend`: w outputs for queries of `num_query` features and keys of `num_key`."""

    def __init__(self, num_query: int, num_key: int, width: int) -> None:
        super().__init__()
        self.query = linear(num_query, width)
        self.key = linear(num_key, width)
        self.value = linear(num_key, width)
        self.output = linear(width, width)


class SetPool(nn.Module):
    """The weights of `pool_set`: sets of d features to vectors of w."""

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.first = AttentionBlock(num_features, num_features, width)
        self.second = AttentionBlock(width, width, width)
        self.seed = nn.Parameter(torch.empty(1, width))
        self.pool = AttentionBlock(width, width, width)
        self.head = linear(width, width)

    def draw_seed(self, rng: torch.Generator) -> None:
        """The vector that asks the set, as the original draws it (Xavier-uniform)."""
        nn.init.xavier_uniform_(self.seed, generator=rng)


def attend(params: Params, block: str, queries: torch.Tensor, keys: torch.Tensor, num_heads: int) -> torch.Tensor:
    """MAB(Q, K): queries (..., n, d_q) and keys (..., m, d_k) to (..., n, w); no layer norm.

        O = Q' + softmax(Q' K'^T / sqrt(w)) V'    in heads that share w out among them;    O + relu(W O)

    The scale is that of the full width, as the original has it, not that of a head.
    """
    width = params[f"{block}.output.weight"].shape[0]
    query, key, value = (
        apply_linear(params, f"{block}.{name}", of).view(*of.shape[:-1], num_heads, -1).transpose(-2, -3)
        for name, of in (("query", queries), ("key", keys), ("value", keys))
    )
    weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(width), dim=-1)
    attended: torch.Tensor = (query + weights @ value).transpose(-2, -3).flatten(-2)
    return attended + torch.relu(apply_linear(params, f"{block}.output", attended))


def pool_set(params: Params, name: str, elements: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Sets (..., n, d) to vectors (..., w): two self-attentions, a pooling with one learned seed, a linear layer."""
    for block in ("first", "second"):
        elements = attend(params, f"{name}.{block}", elements, elements, num_heads)
    seed = params[f"{name}.seed"].expand(*elements.shape[:-2], -1, -1)
    return apply_linear(params, f"{name}.head", attend(params, f"{name}.pool", seed, elements, num_heads).squeeze(-2))
