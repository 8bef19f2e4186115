"""DisWOT against the figure worked out by hand and a second implementation in numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dass.baselines.diswot import correlations, distance, diswot, view
from dass.baselines.minibatch import Minibatch
from dass.networks import SmallResNet, build
from dass.records import Student
from dass.seeding import generator

NUM_CLASSES, NUM_IMAGES, SIDE = 5, 12, 16
LARGE = Student(((8, 8), (16, 16), (32, 32), (64, 64)))
SMALL = Student(((4, 8), (16,), (24, 32), (64,)))
BATCH = Minibatch(
    torch.randn(NUM_IMAGES, 3, SIDE, SIDE, generator=generator("diswot images")), torch.arange(NUM_IMAGES) % NUM_CLASSES
)


def make_network(student: Student, seed: int = 0) -> SmallResNet:
    return build(student, NUM_CLASSES, generator("test diswot", seed))


def reference_rows(rows: np.ndarray) -> np.ndarray:
    gram = np.array([[np.dot(left, right) for right in rows] for left in rows])
    return np.stack([row / np.sqrt((row**2).sum()) for row in gram])


def reference(network: SmallResNet) -> tuple[np.ndarray, np.ndarray]:
    """Feature maps seen by a hook; the classifier's gradient from `backward` through the whole network."""
    network = copy.deepcopy(network)
    seen: list[torch.Tensor] = []
    network.stages[-1].register_forward_hook(lambda _, __, output: seen.append(output.detach().clone()))
    F.cross_entropy(network(BATCH.images), BATCH.labels).backward()  # type: ignore[no-untyped-call]
    gradient = network.head.weight.grad
    assert gradient is not None
    return reference_rows(seen[0].double().numpy().reshape(NUM_IMAGES, -1)), reference_rows(gradient.double().numpy())


def test_the_relation_distance_is_that_worked_out_by_hand() -> None:
    teacher, student = torch.eye(2), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    assert distance(correlations(teacher), correlations(student)) == pytest.approx(0.199233, abs=1e-6)


def test_a_positive_scale_of_the_features_does_not_count() -> None:
    features = torch.randn(6, 4, 2, 2, generator=generator("scaled"))
    assert distance(correlations(features), correlations(features * 37)) == pytest.approx(0, abs=1e-12)
    assert distance(correlations(features), correlations(features.flip(0))) > 1e-3


def test_the_score_is_that_of_a_second_implementation() -> None:
    teacher, student = make_network(LARGE), make_network(SMALL)
    (relations_t, semantics_t), (relations_s, semantics_s) = reference(teacher), reference(student)
    expected = -(np.linalg.norm(relations_t - relations_s) ** 2) / NUM_IMAGES**2
    expected -= np.linalg.norm(semantics_t - semantics_s) ** 2 / NUM_CLASSES**2
    assert diswot(view(teacher, BATCH), view(student, BATCH)) == pytest.approx(expected, rel=1e-4)


def test_nothing_is_more_alike_than_the_teacher_itself() -> None:
    teacher = view(make_network(LARGE), BATCH)
    assert diswot(teacher, view(make_network(LARGE), BATCH)) == 0
    assert diswot(teacher, view(make_network(LARGE, seed=1), BATCH)) < 0
    assert diswot(teacher, view(make_network(SMALL), BATCH)) < 0


def test_networks_are_left_as_they_were() -> None:
    network = make_network(SMALL)
    before = copy.deepcopy(network.state_dict())
    view(network, BATCH)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
