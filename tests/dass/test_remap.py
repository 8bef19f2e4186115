from collections.abc import Mapping
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.errors import ConfigError, SpaceError
from dass.networks import build
from dass.records import Init, Student
from dass.remap import kept_channels, remap, teacher_block
from dass.spaces import PRESETS

MODES: tuple[Init, ...] = tuple(mode for mode in get_args(Init) if mode != "scratch")
SPACE = PRESETS["paper5_w8"]
TEACHER = SPACE.largest


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained_like_state(student: Student) -> dict[str, torch.Tensor]:
    """A state in which no two tensors agree: distinct statistics, and a batch counter for every batch norm."""
    state = build(student, 5, rng()).state_dict()
    generator = rng(1)
    for count, (name, tensor) in enumerate(state.items()):
        if name.endswith("num_batches_tracked"):
            tensor.fill_(count)
        elif ".bn" in name:
            tensor.uniform_(0.5, 2, generator=generator)
    return state


STATE = trained_like_state(TEACHER)


def reference_indices(num_teacher: int, num_student: int, mode: Init) -> list[int]:
    channels = list(range(num_teacher))
    if "uniform" in mode:
        return channels[:: num_teacher // num_student][:num_student]
    return channels[-num_student:] if "last" in mode else channels[:num_student]


def reference_remap(state: Mapping[str, torch.Tensor], student: Student, mode: Init) -> dict[str, np.ndarray]:
    """A second implementation: stages as flat lists of convolutions whose ends are aligned, sliced by numpy."""
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    bn_names = ("weight", "bias", "running_mean", "running_var")
    width = student.widths[0][0]
    expected = {name: array for name, array in arrays.items() if name.startswith("head")}
    expected |= {name: array[:width] for name, array in arrays.items() if name.startswith("stem") and array.ndim}
    expected["stem.bn.num_batches_tracked"] = arrays["stem.bn.num_batches_tracked"]
    entering = width
    for stage, row in enumerate(student.widths):
        teacher_convs = [(block, i) for block in range(TEACHER.depths[stage]) for i in (1, 2)]
        used = teacher_convs[-2 * len(row) :] if mode.endswith("_last") else teacher_convs[: 2 * len(row)]
        for position, (block, i) in enumerate(used):
            width = row[position // 2]
            source, target = f"stages.{stage}.{block}", f"stages.{stage}.{position // 2}"
            weight = arrays[f"{source}.conv{i}.weight"]
            outputs = reference_indices(weight.shape[0], width, mode)
            inputs = reference_indices(weight.shape[1], entering, mode)
            expected[f"{target}.conv{i}.weight"] = weight[np.ix_(outputs, inputs)]
            for name in bn_names:
                expected[f"{target}.bn{i}.{name}"] = arrays[f"{source}.bn{i}.{name}"][outputs]
            counter = "num_batches_tracked"
            expected[f"{target}.bn{i}.{counter}"] = arrays[f"stages.{stage}.0.bn1.{counter}"]
            entering = width
    return expected


class TestIndices:
    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("copy_paste_first", [[0, 1, 2], [4, 5, 6]]),
            ("copy_paste_last", [[9, 10, 11], [13, 14, 15]]),
            ("copy_paste_uniform", [[0, 1, 2], [8, 9, 10]]),
            ("copy_paste_uniform_last", [[0, 1, 2], [8, 9, 10]]),
        ],
    )
    def test_a_small_matrix_is_sliced_as_by_hand(self, mode: Init, expected: list[list[int]]) -> None:
        matrix = torch.arange(16).reshape(4, 4)
        assert matrix[kept_channels(4, 2, mode)][:, kept_channels(4, 3, mode)].tolist() == expected

    @pytest.mark.parametrize(
        ("num_student", "stride", "last"), [(128, 2, 254), (96, 2, 190), (32, 8, 248), (144, 1, 143), (160, 1, 159)]
    )
    def test_uniform_strides_over_256_channels(self, num_student: int, stride: int, last: int) -> None:
        kept = kept_channels(256, num_student, "copy_paste_uniform")
        assert kept.dtype == torch.int64
        assert (int(kept[1] - kept[0]), int(kept[-1]), len(kept)) == (stride, last, num_student)

    @given(st.integers(1, 300), st.integers(1, 300), st.sampled_from(MODES))
    def test_kept_channels_are_ascending_and_inside_the_teacher(self, one: int, other: int, mode: Init) -> None:
        num_student, num_teacher = sorted((one, other))
        kept = kept_channels(num_teacher, num_student, mode).tolist()
        assert kept == sorted(set(kept)) == reference_indices(num_teacher, num_student, mode)
        assert 0 <= kept[0] <= kept[-1] < num_teacher

    def test_last_modes_align_the_ends_of_a_stage(self) -> None:
        blocks = {mode: [teacher_block(5, 2, block, mode) for block in range(2)] for mode in MODES}
        assert blocks == {
            "copy_paste_first": [0, 1],
            "copy_paste_last": [3, 4],
            "copy_paste_uniform": [0, 1],
            "copy_paste_uniform_last": [3, 4],
        }

    def test_a_teacher_narrower_or_shallower_than_its_student_is_refused(self) -> None:
        with pytest.raises(SpaceError, match="all 16 channels of its teacher, got 17"):
            kept_channels(16, 17, "copy_paste_first")
        with pytest.raises(SpaceError, match="got 0"):
            kept_channels(16, 0, "copy_paste_first")
        with pytest.raises(SpaceError, match="at most the teacher's 2 blocks, got block 0 of 3"):
            teacher_block(2, 3, 0, "copy_paste_last")

    def test_scratch_has_no_indices(self) -> None:
        with pytest.raises(ConfigError, match="got 'scratch'"):
            kept_channels(16, 8, "scratch")
        with pytest.raises(ConfigError, match="got 'scratch'"):
            teacher_block(2, 1, 0, "scratch")


class TestRemap:
    @settings(max_examples=20)
    @given(st.integers(0, 2**31), st.sampled_from(MODES))
    def test_random_students_equal_a_second_implementation(self, seed: int, mode: Init) -> None:
        (student,) = SPACE.sample(1, rng(seed))
        state = remap(STATE, TEACHER, student, mode)
        expected = reference_remap(STATE, student, mode)
        assert state.keys() == expected.keys()
        for name, tensor in state.items():
            np.testing.assert_array_equal(tensor.numpy(), expected[name], err_msg=name)
        build(student, 5).load_state_dict(state)

    @pytest.mark.parametrize("mode", MODES)
    def test_a_student_of_the_teachers_shape_is_the_teacher(self, mode: Init) -> None:
        state = remap(STATE, TEACHER, TEACHER, mode)
        counters = [name for name in STATE if name.endswith("num_batches_tracked")]
        assert state.keys() == STATE.keys()
        assert all(torch.equal(state[name], STATE[name]) for name in STATE if name not in counters)
        teacher, student = build(TEACHER, 5).eval(), build(TEACHER, 5).eval()
        teacher.load_state_dict(STATE)
        student.load_state_dict(state)
        images = torch.randn(2, 3, 16, 16, generator=rng(2))
        assert torch.equal(teacher(images), student(images))

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    def test_a_full_width_student_computes_the_teachers_first_stage_up_to_its_depth(self, depth: int) -> None:
        thin = Student(tuple(row[:depth] for row in TEACHER.widths))
        teacher, student = build(TEACHER, 5).eval(), build(thin, 5).eval()
        teacher.load_state_dict(STATE)
        student.load_state_dict(remap(STATE, TEACHER, thin))
        images = torch.randn(2, 3, 16, 16, generator=rng(2))
        maps = teacher.stem(images)
        for block in range(depth):
            maps = teacher.stages[0].get_submodule(str(block))(maps)
        assert torch.equal(student.stages[0](student.stem(images)), maps)

    def test_remapping_twice_along_leading_channels_equals_once(self) -> None:
        middle = Student(((6, 8, 8), (16, 16), (32, 32, 32), (48, 64)))
        small = Student(((4, 8), (16,), (8, 32), (32, 64)))
        via = remap(remap(STATE, TEACHER, middle), middle, small)
        assert all(torch.equal(tensor, via[name]) for name, tensor in remap(STATE, TEACHER, small).items())

    @pytest.mark.parametrize("mode", MODES)
    def test_remapping_a_remapped_state_to_its_own_student_changes_nothing(self, mode: Init) -> None:
        (student,) = SPACE.sample(1, rng(4))
        once = remap(STATE, TEACHER, student, mode)
        twice = remap(once, student, student, mode)
        assert all(torch.equal(once[name], twice[name]) for name in once)

    @pytest.mark.parametrize("student", [TEACHER, SPACE.smallest], ids=["largest", "smallest"])
    def test_writing_to_the_student_leaves_the_teacher_alone(self, student: Student) -> None:
        before = {name: tensor.clone() for name, tensor in STATE.items()}
        for tensor in remap(STATE, TEACHER, student).values():
            tensor.fill_(7)
        assert all(torch.equal(before[name], STATE[name]) for name in STATE)

    def test_a_consistent_stem_follows_the_mode(self) -> None:
        student = Student(((4, 8), (16,), (32,), (64,)))
        default = remap(STATE, TEACHER, student, "copy_paste_last")
        consistent = remap(STATE, TEACHER, student, "copy_paste_last", consistent_stem=True)
        differing = {name for name in default if not torch.equal(default[name], consistent[name])}
        assert differing == {
            f"stem.{name}"
            for name in ("conv.weight", *(f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var")))
        }
        assert torch.equal(default["stem.conv.weight"], STATE["stem.conv.weight"][:4])
        assert torch.equal(consistent["stem.conv.weight"], STATE["stem.conv.weight"][4:])

    def test_scratch_is_a_fresh_network_of_the_generator(self) -> None:
        state = remap(STATE, TEACHER, SPACE.smallest, "scratch", rng=rng(9))
        fresh = build(SPACE.smallest, 5, rng(9)).state_dict()
        assert state.keys() == fresh.keys()
        assert all(torch.equal(state[name], fresh[name]) for name in fresh)
        with pytest.raises(ConfigError, match="rng=None"):
            remap(STATE, TEACHER, SPACE.smallest, "scratch")

    @pytest.mark.parametrize("mode", [*MODES, "scratch"])
    def test_the_dtype_follows_the_teacher(self, mode: Init) -> None:
        doubles = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in STATE.items()}
        state = remap(doubles, TEACHER, SPACE.smallest, mode, rng=rng())
        assert {tensor.dtype for tensor in state.values()} == {torch.float64, torch.int64}
        assert {tensor.dtype for name, tensor in state.items() if name.endswith("tracked")} == {torch.int64}

    def test_students_that_the_teacher_does_not_contain_are_refused(self) -> None:
        with pytest.raises(SpaceError, match="at least as wide"):
            remap(STATE, TEACHER, Student(((9, 8), (16,), (32,), (64,))))
        with pytest.raises(SpaceError, match="at least as deep"):
            remap(STATE, TEACHER, Student(((8,) * 6, (16,), (32,), (64,))))
        with pytest.raises(SpaceError, match="classifier is copied whole"):
            remap(STATE, TEACHER, Student(((8,), (16,), (32,), (48,))))

    @pytest.mark.parametrize("name", ["head.weight", "head.bias", "stem.bn.bias", "stages.1.0.conv2.weight"])
    def test_weights_that_are_not_the_teachers_are_refused_by_name(self, name: str) -> None:
        with pytest.raises(SpaceError, match=f"the teacher's {name} must have shape .* got nothing"):
            remap({key: tensor for key, tensor in STATE.items() if key != name}, TEACHER, TEACHER)
        with pytest.raises(SpaceError, match=r"must have shape .* got shape"):
            remap(STATE | {name: STATE[name][..., 1:]}, TEACHER, TEACHER)
