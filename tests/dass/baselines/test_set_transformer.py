"""The Set Transformer against torch's own attention (algorithms: section 6.2)."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dass.baselines.set_transformer import AttentionBlock, SetPool, attend, pool_set
from dass.meta.layers import initialise

HEADS = 4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    initialise(module, rng())
    if isinstance(module, SetPool):
        module.draw_seed(rng())
    return {name: value.detach() for name, value in module.named_parameters()}


def block(num_query: int = 5, num_key: int = 3) -> dict[str, torch.Tensor]:
    return {f"block.{name}": value for name, value in drawn(AttentionBlock(num_query, num_key, 8)).items()}


def linear(params: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> torch.Tensor:
    return values @ params[f"block.{name}.weight"].T + params[f"block.{name}.bias"]


def test_it_is_torchs_attention_with_the_scale_of_the_full_width_plus_two_residuals() -> None:
    params, queries, keys = block(), torch.randn(2, 6, 5, generator=rng(1)), torch.randn(2, 4, 3, generator=rng(2))
    query, key, value = linear(params, "query", queries), linear(params, "key", keys), linear(params, "value", keys)
    q, k, v = (each.reshape(2, -1, HEADS, 2).transpose(1, 2) for each in (query, key, value))
    mixed = F.scaled_dot_product_attention(q, k, v, scale=8**-0.5).transpose(1, 2).reshape(2, 6, 8)
    expected = query + mixed
    expected = expected + linear(params, "output", expected).relu()
    torch.testing.assert_close(attend(params, "block", queries, keys, HEADS), expected)


def test_with_the_output_projection_at_zero_it_is_the_query_plus_the_attended_values() -> None:
    params, queries, keys = block(), torch.randn(6, 5, generator=rng(1)), torch.randn(1, 3, generator=rng(2))
    params |= {f"block.output.{name}": torch.zeros_like(params[f"block.output.{name}"]) for name in ("weight", "bias")}
    # one key has all the attention: A V' is its value
    expected = linear(params, "query", queries) + linear(params, "value", keys)
    torch.testing.assert_close(attend(params, "block", queries, keys, HEADS), expected)


def test_equal_keys_are_attended_to_alike() -> None:
    params, queries = block(), torch.randn(6, 5, generator=rng(1))
    keys = torch.randn(1, 3, generator=rng(2))
    torch.testing.assert_close(
        attend(params, "block", queries, keys.expand(7, 3), HEADS), attend(params, "block", queries, keys, HEADS)
    )


@pytest.mark.parametrize(("num_features", "width"), [(512, 56), (56, 56)])
def test_the_parameters_are_two_blocks_a_seed_a_pooling_and_a_layer(num_features: int, width: int) -> None:
    def layer(num_in: int) -> int:
        return num_in * width + width

    found = sum(value.numel() for value in SetPool(num_features, width).parameters())
    assert found == 3 * layer(num_features) + layer(width) + 4 * layer(width) + width + 4 * layer(width) + layer(width)


def test_a_set_has_no_order_and_sets_do_not_see_each_other() -> None:
    params = {f"pool.{name}": value for name, value in drawn(SetPool(5, 8)).items()}
    sets = torch.randn(3, 7, 5, generator=rng(1))
    found = pool_set(params, "pool", sets, HEADS)
    assert found.shape == (3, 8)
    torch.testing.assert_close(pool_set(params, "pool", sets[:, torch.randperm(7, generator=rng(2))], HEADS), found)
    alone = torch.stack([pool_set(params, "pool", each, HEADS) for each in sets])
    torch.testing.assert_close(found, alone)
    changed = sets.clone()
    changed[0, 0] += 1
    assert not torch.allclose(pool_set(params, "pool", changed, HEADS)[0], found[0], atol=1e-4)
