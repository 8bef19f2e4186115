import pytest
import torch
from torch import nn

from dass.cost import count_macs, count_params
from dass.errors import ConfigError, DataError, SpaceError
from dass.networks import build
from dass.records import Student
from dass.spaces import PRESETS

BASE = (32, 64, 128, 256)
TEACHER = PRESETS["paper5"].largest
STUDENT_A = Student(((16, 32), (64,), (64, 96, 128), (128, 192, 160, 256)))
STUDENT_B = Student(((32,), (48, 64), (128,), (144, 256)))


def full(depth: int) -> Student:
    return Student(tuple((base,) * depth for base in BASE))


def measured_macs(network: nn.Module, resolution: int) -> int:
    """MACs of one image as counted by hooks while the network runs on shapes alone."""
    total = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output.numel() * module.weight[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network.to("meta")(torch.empty(1, 3, resolution, resolution, device="meta"))
    return total


@pytest.mark.parametrize(
    ("student", "num_classes", "params", "macs"),
    [
        (TEACHER, 10, 7_459_626, 1_456_867_840),
        (TEACHER, 20, 7_462_196, 1_456_870_400),
        (TEACHER, 40, 7_467_336, 1_456_875_520),
        (TEACHER, 47, 7_469_135, 1_456_865_280 + 256 * 47),
        (TEACHER, 196, 7_507_428, 1_456_865_280 + 256 * 196),
        (TEACHER, 200, 7_508_456, 1_456_865_280 + 256 * 200),
        (TEACHER, 345, 7_545_721, 1_456_865_280 + 256 * 345),
        (TEACHER, 0, 7_457_056, 1_456_865_280),
        (full(4), 20, 5_893_556, 1_154_880_512),
        (full(2), 40, 2_761_416, 550_905_856),
        (full(1), 40, 1_192_776, 248_915_968),
        (STUDENT_A, 40, 2_872_248, 402_270_208),
        (STUDENT_B, 10, 1_618_986, 318_654_976),
    ],
)
def test_known_architectures_cost_what_the_table_says(
    student: Student, num_classes: int, params: int, macs: int
) -> None:
    assert (count_params(student, num_classes), count_macs(student, 64, num_classes)) == (params, macs)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_closed_form_equals_hooks_and_parameters_of_real_networks(name: str) -> None:
    for student in PRESETS[name].sample(20, torch.Generator().manual_seed(3)):
        network = build(student, 7)
        assert count_params(student, 7) == sum(parameter.numel() for parameter in network.parameters())
        assert count_macs(student, 32, 7) == measured_macs(network, 32)


def test_doubling_the_resolution_quadruples_the_trunk() -> None:
    assert count_macs(STUDENT_A, 128, 0) == 4 * count_macs(STUDENT_A, 64, 0)


@pytest.mark.parametrize("resolution", [0, -8, 4, 60, 65])
def test_a_resolution_that_cannot_be_halved_three_times_is_refused(resolution: int) -> None:
    with pytest.raises(DataError, match=f"multiple of 8 pixels, got {resolution}"):
        count_macs(TEACHER, resolution, 10)


def test_negative_classes_and_foreign_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_classes must be >= 0, got -1"):
        count_params(TEACHER, -1)
    with pytest.raises(SpaceError, match="got 'ofa_resnet'"):
        count_macs(Student(TEACHER.widths, family="ofa_resnet"), 64, 10)
