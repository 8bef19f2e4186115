"""A distilled student's file can be used without the store that it came from."""

import pytest
import torch

from dass.data.augment import normalise
from dass.errors import DataError, StoreError
from dass.networks import build
from dass.networks.files import load_student, student_bytes
from dass.seeding import generator
from dass.spaces import get_space
from dass.tensors import pack_tensors

STUDENT = get_space("smoke").sample(1, generator("file"))[0]


def test_a_loaded_student_gives_the_logits_of_the_one_that_was_written() -> None:
    network = build(STUDENT, 3, generator("weights")).eval()
    loaded = load_student(student_bytes(STUDENT, 16, ("a", "b", "ç"), network.state_dict()))
    assert (loaded.student, loaded.resolution, loaded.classes) == (STUDENT, 16, ("a", "b", "ç"))
    images = normalise(torch.randint(256, (2, 3, 16, 16), generator=generator("images"), dtype=torch.uint8))
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), network(images))


def test_other_files_are_refused() -> None:
    with pytest.raises(DataError, match="distil --output"):
        load_student(pack_tensors({"weight": torch.zeros(1)}))
    with pytest.raises(StoreError):
        load_student(b"not a file of tensors")
    state = build(STUDENT, 3, generator("weights")).state_dict()
    with pytest.raises(DataError):
        load_student(student_bytes(get_space("smoke").largest, 16, ("a", "b", "c"), state))
