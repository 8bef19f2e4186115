import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.data.augment import EpochPlan, augment, draw_epoch, normalise, padding_of
from dass.errors import ConfigError
from dass.records import Recipe


def draw(recipe: Recipe, num: int = 64, resolution: int = 16, seed: int = 0) -> EpochPlan:
    return draw_epoch(num, recipe, resolution, torch.Generator().manual_seed(seed))


def noise(num: int, resolution: int = 16) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (num, 3, resolution, resolution), dtype=torch.uint8, generator=rng)


def one_by_one(images: torch.Tensor, plan: EpochPlan, padding: int) -> torch.Tensor:
    """The same for each image alone, written as flip, pad and slice."""
    side = images.shape[-1]
    out = []
    for i, image in enumerate(images):
        flipped = image.flip(2) if plan.flip[i] else image
        flipped = flipped.flip(1) if plan.vflip[i] else flipped
        padded = F.pad(flipped, (padding,) * 4, value=0)
        y, x = int(plan.dy[i]), int(plan.dx[i])
        out.append((padded[:, y : y + side, x : x + side].double() / 255 - 0.5) / 0.5)
    return torch.stack(out).float()


@settings(max_examples=40)
@given(padding=st.integers(0, 7), seed=st.integers(0, 2**32 - 1), flip=st.floats(0, 1), vertical_flip=st.floats(0, 1))
def test_the_batch_equals_its_images_one_by_one(padding: int, seed: int, flip: float, vertical_flip: float) -> None:
    recipe = Recipe(crop_padding=padding, flip=flip, vertical_flip=vertical_flip)
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8, generator=rng)
    plan = draw_epoch(9, recipe, 8, rng)
    result = augment(images, plan, padding)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    torch.testing.assert_close(result, one_by_one(images, plan, padding), rtol=0, atol=2e-7)


def test_without_padding_and_flips_only_normalises() -> None:
    recipe = Recipe(crop_padding=0, flip=0.0)
    images = noise(5)
    assert torch.equal(augment(images, draw(recipe, 5), 0), normalise(images))


def test_normalise_maps_black_grey_white_to_minus_one_zero_one() -> None:
    values = torch.tensor([0, 51, 204, 255], dtype=torch.uint8)
    torch.testing.assert_close(normalise(values), torch.tensor([-1.0, -0.6, 0.6, 1.0]))
    assert normalise(values)[[0, 3]].tolist() == [-1.0, 1.0]


def test_what_lies_outside_the_image_is_black() -> None:
    images = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    still = torch.tensor([False])
    corner = EpochPlan(torch.tensor([0]), torch.tensor([0]), torch.tensor([4]), still, still)
    result = augment(images, corner, 2)  # the crop begins 2 above and ends 2 right of the image
    assert (result[:, :, :2] == -1).all()
    assert (result[:, :, :, 6:] == -1).all()
    assert (result[:, :, 2:, :6] == 1).all()


def test_an_epoch_shows_every_image_once() -> None:
    assert draw(Recipe(), 100).order.sort().values.tolist() == list(range(100))


def test_shifts_cover_their_whole_range_and_flips_follow_their_probability() -> None:
    plan = draw(Recipe(crop_padding=2, flip=0.5, vertical_flip=0.25), 20000)
    assert set(plan.dy.tolist()) == set(plan.dx.tolist()) == {0, 1, 2, 3, 4}
    assert plan.flip.float().mean() == pytest.approx(0.5, abs=0.02)  # 5 standard deviations
    assert plan.vflip.float().mean() == pytest.approx(0.25, abs=0.02)


def test_the_order_does_not_depend_on_what_the_recipe_switches_off() -> None:
    on, off = draw(Recipe(flip=1.0, vertical_flip=1.0)), draw(Recipe(flip=0.0, crop_padding=0))
    assert torch.equal(on.order, off.order)
    assert bool(on.flip.all())
    assert bool(on.vflip.all())
    assert not bool(off.flip.any() | off.vflip.any())


def test_a_span_is_the_same_positions_of_the_whole() -> None:
    plan = draw(Recipe(), 10)
    images = noise(10)
    whole = augment(images, plan, 8)
    assert len(plan.span(4, 7)) == 3
    assert torch.equal(augment(images[4:7], plan.span(4, 7), 8), whole[4:7])


@pytest.mark.parametrize(("resolution", "padding"), [(8, 4), (16, 8), (24, 8), (32, 4), (64, 8), (224, 8)])
def test_default_padding(resolution: int, padding: int) -> None:
    assert padding_of(Recipe(), resolution) == padding


def test_a_given_padding_is_taken_and_must_leave_some_of_the_image() -> None:
    assert padding_of(Recipe(crop_padding=0), 32) == 0
    assert padding_of(Recipe(crop_padding=7), 8) == 7
    with pytest.raises(ConfigError, match=r"less than the resolution of 8 px.*got 8; set recipe.crop_padding"):
        padding_of(Recipe(crop_padding=8), 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_device_gives_the_same_bits() -> None:
    images, plan = noise(64), draw(Recipe(vertical_flip=0.5))
    assert torch.equal(augment(images.cuda(), plan.to("cuda"), 8).cpu(), augment(images, plan, 8))
