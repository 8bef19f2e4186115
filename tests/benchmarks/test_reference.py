"""What the benchmarks compare with does the same work: the same maps, the same trainings."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dass.embed import Embedder, draw_noise
from dass.kd.alone import train_alone
from dass.networks import build
from dass.seeding import generator
from dass.spaces import get_space
from dass.threads import one_thread
from tests.benchmarks.reference import EncodedImages, published_distil, published_map, strong_distil, strong_map
from tests.dass.kd.tiny import NUM_CLASSES, RECIPE, make_data, make_runs, make_teacher

LONGER = replace(RECIPE, epochs=12, lr=0.02)  # long enough to learn the colours
CHANCE_PCT = 100 / NUM_CLASSES


@pytest.mark.parametrize("reference", [published_map, strong_map])
def test_maps_are_those_of_the_engine(reference: Callable[..., torch.Tensor]) -> None:
    space = get_space("smoke")
    state = build(space.largest, NUM_CLASSES, generator("teacher")).state_dict()
    noise, students = draw_noise(16), space.sample(5, generator("students"))
    maps = Embedder(state, space.largest, noise).maps(students)
    for student, found in zip(students, maps, strict=True):
        torch.testing.assert_close(reference(state, space.largest, student, NUM_CLASSES, noise)[0], found)


def test_a_student_of_the_strong_reference_comes_out_as_one_of_ours() -> None:
    data, teacher = make_data(num_valid=210), make_teacher()
    (run,) = make_runs(data, teacher, LONGER, num=1)
    with one_thread():
        result = train_alone(run, data, teacher).result
        found_pct = strong_distil(run, teacher, data)
    assert result.final_accuracy_pct is not None
    assert found_pct == pytest.approx(result.final_accuracy_pct, abs=1.0)  # two of 210 images: another order of sums
    assert found_pct > 1.5 * CHANCE_PCT


def test_a_student_of_the_published_reference_learns_as_one_of_ours() -> None:
    """It draws its own order and augmentation, so its accuracy is another, and no worse than that of one that learned."""
    data, teacher = make_data(num_valid=210), make_teacher()
    (run,) = make_runs(data, teacher, LONGER, num=1)
    train, valid = (
        EncodedImages.of(data.parts[part], run.recipe if part == "train" else None) for part in ("train", "valid")
    )
    random.seed(0)
    torch.manual_seed(0)
    with one_thread():
        assert published_distil(run, teacher, train, valid, torch.device("cpu")) > 1.5 * CHANCE_PCT
