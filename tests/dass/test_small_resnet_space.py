import dataclasses
import pickle
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.cost import count_macs
from dass.errors import ConfigError, SpaceError
from dass.records import Student
from dass.spaces import PRESETS, SmallResNetSpace, get_space
from dass.spaces.space import Sampler

STUDENT_A = Student(((16, 32), (64,), (64, 96, 128), (128, 192, 160, 256)))
names = st.sampled_from(sorted(PRESETS))
seeds = st.integers(0, 2**31)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(name: str, seed: int) -> tuple[SmallResNetSpace, Student]:
    space = PRESETS[name]
    (student,) = space.sample(1, rng(seed))
    return space, student


def all_of(space: SmallResNetSpace) -> list[Student]:
    """Every student of a small space, written down without the space's own machinery."""
    stages = [
        [
            (*(int(base * ratio) for ratio in ratios), base)
            for depth in space.depths
            for ratios in product(space.ratios, repeat=depth - 1)
        ]
        for base in space.base_widths
    ]
    return [Student(rows) for rows in product(*stages)]


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "size", "dim"),
        [
            ("paper", 117_117_950_625, 161),
            ("paper5", 480_125_270_121_121, 161),
            ("released", 2_967_978_983_263_921, 181),
            ("paper5_w8", 480_125_270_121_121, 161),
            ("smoke", 256, 25),
        ],
    )
    def test_size_and_encoding_dim_are_those_of_the_closed_form(self, name: str, size: int, dim: int) -> None:
        assert (get_space(name).size, get_space(name).encoding_dim) == (size, dim)

    def test_an_unknown_name_lists_all_names_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"paper5_w8, smoke, got 'relesed'; did you mean released\?"):
            get_space("relesed")

    @pytest.mark.parametrize("name", ["paper", "paper5", "released"])
    def test_the_teacher_has_five_full_blocks_per_stage(self, name: str) -> None:
        assert get_space(name).largest == Student(((32,) * 5, (64,) * 5, (128,) * 5, (256,) * 5))

    def test_the_teacher_is_a_student_except_in_the_literal_paper_space(self) -> None:
        for name in ("paper5", "released", "paper5_w8", "smoke"):
            get_space(name).check(get_space(name).largest)
        with pytest.raises(SpaceError, match=r"stage 0 .* got 5 blocks"):
            get_space("paper").check(get_space("paper").largest)

    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_a_space_survives_pickling_and_equals_its_copy(self, name: str) -> None:
        assert pickle.loads(pickle.dumps(PRESETS[name])) == PRESETS[name]  # noqa: S301 - our own bytes

    @pytest.mark.parametrize(
        ("change", "rule"),
        [
            ({"depths": ()}, "ascending depths"),
            ({"depths": (2, 1)}, "ascending depths"),
            ({"depths": (0, 1)}, "ascending depths"),
            ({"teacher_depth": 1}, "a teacher as deep"),
            ({"base_widths": (8, 16, 32)}, "4 base widths"),
            ({"ratios": (0.5, 0.75)}, "ascending ratios up to 1"),
            ({"ratios": (0.0, 1.0)}, "ascending ratios"),
            ({"ratios": (0.0625, 1.0)}, "whole widths"),
        ],
    )
    def test_an_impossible_definition_is_refused(self, change: dict[str, Any], rule: str) -> None:
        with pytest.raises(SpaceError, match=rule):
            dataclasses.replace(PRESETS["smoke"], **change)

    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_no_student_has_fewer_macs_than_the_smallest(self, name: str) -> None:
        space = PRESETS[name]
        space.check(space.smallest)
        fewest = count_macs(space.smallest, 64, 10)
        others = all_of(space) if space.size < 1000 else space.sample(500, rng(), "macs_stratified")
        assert all(count_macs(other, 64, 10) >= fewest for other in [*others, *space.neighbours(space.smallest)])


class TestCheck:
    @pytest.mark.parametrize(
        ("widths", "message"),
        [
            (((32,), (64,), (128,), (200, 256)), r"stage 3, slot 0 .*\(32, 64, 96, 128, 160, 192, 224, 256\), got 200"),
            (((32, 16), (64,), (128,), (256,)), r"stage 0, last slot 1 .*\(32,\), got 16"),
            (((32,), (), (128,), (256,)), r"stage 1 .*\(1, 2, 3, 4, 5\), got 0 blocks"),
            (((32,), (64,), (128,) * 6, (256,)), r"stage 2 .* got 6 blocks"),
            (((32,), (0, 64), (128,), (256,)), r"stage 1, slot 0 .* got 0"),
            (((32,), (64,), (128,)), "4 stages, got 'small_resnet' and 3"),
        ],
    )
    def test_the_message_names_the_place_the_width_and_the_legal_ones(
        self, widths: tuple[tuple[int, ...], ...], message: str
    ) -> None:
        with pytest.raises(SpaceError, match=message):
            PRESETS["paper5"].check(Student(widths))

    def test_another_family_is_refused(self) -> None:
        with pytest.raises(SpaceError, match="got 'ofa_resnet' and 4"):
            PRESETS["paper5"].check(Student(STUDENT_A.widths, family="ofa_resnet"))

    def test_unused_widths_beyond_the_depth_make_no_second_student(self) -> None:
        rows = tuple((*row, *(7,) * (5 - len(row))) for row in STUDENT_A.widths)
        assert Student.from_rows(STUDENT_A.depths, rows) == STUDENT_A


class TestEncoding:
    @pytest.mark.parametrize(
        ("name", "nonzeros"),
        [
            ("released", [0, 1, 18, 54, 91, 104, 117, 136, 149, 156, 171]),
            ("paper", [0, 4, 16, 48, 84, 94, 104, 124, 134, 141, 152]),
            ("paper5", [0, 4, 16, 48, 84, 94, 104, 124, 134, 141, 152]),
        ],
    )
    def test_the_ones_of_a_known_student_lie_where_expected(self, name: str, nonzeros: list[int]) -> None:
        vector = get_space(name).encode(STUDENT_A)
        assert vector.dtype == torch.float32
        assert vector.nonzero().flatten().tolist() == nonzeros
        assert vector.sum() == len(nonzeros)

    def test_the_teacher_sets_the_top_ratio_of_all_slots(self) -> None:
        vector = PRESETS["released"].encode(PRESETS["released"].largest)
        assert vector.nonzero().flatten().tolist() == list(range(0, 181, 9))
        assert vector.sum() == 21

    @given(names, seeds)
    def test_decode_inverts_encode_and_the_sum_counts_the_blocks(self, name: str, seed: int) -> None:
        space, student = draw(name, seed)
        vector = space.encode(student)
        assert vector.sum() == 1 + sum(student.depths)
        assert space.decode(vector) == student
        assert space.decode(vector.to(torch.int64)) == student

    def test_encode_many_stacks_what_encode_gives(self) -> None:
        space = PRESETS["paper5"]
        students = space.sample(50, rng())
        assert torch.equal(space.encode_many(students), torch.stack([space.encode(student) for student in students]))
        assert space.encode_many([]).shape == (0, 161)

    def test_distinct_students_have_distinct_vectors(self) -> None:
        space = PRESETS["smoke"]
        assert len({tuple(code) for code in space.encode_many(all_of(space)).tolist()}) == space.size == 256

    def test_a_student_outside_the_space_is_not_encoded(self) -> None:
        with pytest.raises(SpaceError, match="stage 0, slot 0"):
            PRESETS["released"].encode(Student(((8, 32), (64,), (128,), (256,))))

    @pytest.mark.parametrize(
        ("flips", "rule"),
        [
            ([0], "its resolution entry set"),
            ([5], "at most one ratio in each slot of stage 0"),
            ([4, 16], "depth of"),  # an empty stage
            ([4], "no gap before a block in each slot of stage 0"),
            ([16, 12], "stage 0, last slot 1"),
            ([16], "stage 0, last slot 0"),
        ],
    )
    def test_a_malformed_vector_is_refused(self, flips: list[int], rule: str) -> None:
        vector = PRESETS["paper5"].encode(STUDENT_A)
        vector[flips] = 1 - vector[flips]
        with pytest.raises(SpaceError, match=rule):
            PRESETS["paper5"].decode(vector)

    def test_a_student_deeper_than_the_space_is_not_decoded(self) -> None:
        deep = Student(((28, 32, 32, 32, 32), (64,), (128,), (256,)))
        with pytest.raises(SpaceError, match="got 5 blocks"):
            PRESETS["paper"].decode(PRESETS["paper5"].encode(deep))

    def test_the_teacher_has_a_vector_where_it_is_no_student(self) -> None:
        vector = PRESETS["paper"].encode(PRESETS["paper"].largest)
        assert torch.equal(vector, PRESETS["paper5"].encode(PRESETS["paper5"].largest))
        assert PRESETS["paper"].decode(vector) == PRESETS["paper"].largest

    @pytest.mark.parametrize("entry", [float("nan"), 0.5, -1.0, 2.0])
    def test_entries_other_than_zero_and_one_are_refused(self, entry: float) -> None:
        vector = PRESETS["paper5"].encode(STUDENT_A)
        vector[20] = entry
        with pytest.raises(SpaceError, match="only zeros and ones"):
            PRESETS["paper5"].decode(vector)

    @pytest.mark.parametrize("shape", [(181,), (160,), (1, 161)])
    def test_a_vector_of_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(SpaceError, match="161 entries"):
            PRESETS["paper5"].decode(torch.zeros(shape))

    @given(st.sets(st.integers(0, 24), max_size=9))
    def test_decode_takes_exactly_what_encode_gives(self, ones: set[int]) -> None:
        space = PRESETS["smoke"]
        vector = torch.zeros(25)
        vector[list(ones)] = 1
        legal = {tuple(code) for code in space.encode_many(all_of(space)).tolist()}
        if tuple(vector.tolist()) in legal:
            assert torch.equal(space.encode(space.decode(vector)), vector)
        else:
            with pytest.raises(SpaceError):
                space.decode(vector)


class TestSample:
    @settings(max_examples=20)
    @given(names, seeds, st.sampled_from(["uniform", "macs_stratified"]))
    def test_students_are_distinct_members_that_the_seed_decides(self, name: str, seed: int, sampler: Sampler) -> None:
        space = PRESETS[name]
        students = space.sample(40, rng(seed), sampler)
        assert len(set(students)) == 40
        for student in students:
            space.check(student)
        assert students == space.sample(40, rng(seed), sampler)

    @pytest.mark.parametrize("sampler", ["uniform", "macs_stratified"])
    @pytest.mark.parametrize("name", ["paper5", "smoke"])
    def test_a_larger_sample_begins_as_a_smaller_one(self, name: str, sampler: Sampler) -> None:
        largest = PRESETS[name].sample(256, rng(4), sampler)
        for num in (1, 30, 200, 255):
            assert PRESETS[name].sample(num, rng(4), sampler) == largest[:num]

    @pytest.mark.parametrize("sampler", ["uniform", "macs_stratified"])
    def test_the_whole_of_a_small_space_can_be_drawn(self, sampler: Sampler) -> None:
        space = PRESETS["smoke"]
        assert set(space.sample(256, rng(), sampler)) == set(all_of(space))

    def test_a_space_of_one_student_gives_it(self) -> None:
        space = SmallResNetSpace("one", (2,), (8, 16, 32, 64), (1.0,))
        assert (
            space.sample(1, rng(), "macs_stratified") == space.sample(1, rng()) == [space.largest] == [space.smallest]
        )

    def test_more_students_than_there_are_is_an_error(self) -> None:
        with pytest.raises(SpaceError, match="at most 256"):
            PRESETS["smoke"].sample(257, rng())

    def test_an_empty_pool_and_an_unknown_sampler_are_errors(self) -> None:
        with pytest.raises(ConfigError, match="num must be >= 1, got 0"):
            PRESETS["smoke"].sample(0, rng())
        with pytest.raises(ConfigError, match="sampler must be"):
            PRESETS["smoke"].sample(1, rng(), "sobol")  # type: ignore[arg-type]

    def test_the_global_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        PRESETS["smoke"].sample(20, rng(), "macs_stratified")
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize(
        ("name", "mean", "sd", "p1", "median", "p99"),
        [
            ("paper", 402, 90, 236, 394, 638),
            ("paper5", 455, 107, 249, 447, 732),
            ("released", 593, 134, 307, 590, 916),
        ],
    )
    def test_uniform_macs_have_the_known_distribution(
        self, name: str, mean: float, sd: float, p1: float, median: float, p99: float
    ) -> None:
        students = PRESETS[name].sample(4000, rng(1))
        macs = torch.tensor([count_macs(student, 64, 40) for student in students], dtype=torch.float64) / 1e6
        assert macs.mean().item() == pytest.approx(mean, abs=4 * sd / 4000**0.5 + 0.5)
        assert macs.std().item() == pytest.approx(sd, rel=0.06)
        assert macs.quantile(0.01).item() == pytest.approx(p1, rel=0.06)
        assert macs.median().item() == pytest.approx(median, rel=0.03)
        assert macs.quantile(0.99).item() == pytest.approx(p99, rel=0.06)

    def test_uniform_depths_and_ratios_are_equally_likely(self) -> None:
        students = PRESETS["paper5"].sample(4000, rng(2))
        depths = torch.tensor([student.depths for student in students]).flatten()
        assert (depths.bincount(minlength=6)[1:] / 16000 - 0.2).abs().max() < 0.02
        first = torch.tensor([row[0] for student in students if len(row := student.widths[0]) > 1])
        assert ((first // 4).bincount(minlength=9)[1:] / len(first) - 1 / 8).abs().max() < 0.03

    @pytest.mark.parametrize("name", ["paper5", "paper", "released"])
    def test_stratified_students_fill_every_tenth_of_the_macs_range_alike(self, name: str) -> None:
        space = PRESETS[name]
        deepest = Student(tuple((base,) * max(space.depths) for base in space.base_widths))
        fewest, most = (count_macs(student, 64, 0) for student in (space.smallest, deepest))
        macs = torch.tensor([count_macs(student, 64, 0) for student in space.sample(2000, rng(), "macs_stratified")])
        tenths = ((macs - fewest) / (most - fewest)).histc(10, 0, 1)
        assert tenths.sum() == 2000
        assert (tenths - 200).abs().max() < 60  # a binomial's sd is 13

    def test_stratified_pools_are_in_random_order(self) -> None:
        macs = [count_macs(student, 64, 0) for student in PRESETS["paper5"].sample(400, rng(), "macs_stratified")]
        assert abs(torch.corrcoef(torch.tensor([range(400), macs], dtype=torch.float64))[0, 1]) < 0.2


class TestMoves:
    @given(names, seeds)
    def test_neighbours_are_distinct_members_other_than_the_student(self, name: str, seed: int) -> None:
        space, student = draw(name, seed)
        near = space.neighbours(student)
        for other in near:
            space.check(other)
        assert len({*near, student}) == len(near) + 1

    @settings(max_examples=30)
    @given(names, seeds)
    def test_every_move_can_be_undone(self, name: str, seed: int) -> None:
        space, student = draw(name, seed)
        assert all(student in space.neighbours(other) for other in space.neighbours(student))

    def test_neighbours_of_a_known_student_are_those_written_by_hand(self) -> None:
        student = Student(((6, 8), (16, 16), (32,), (64,)))
        assert set(PRESETS["smoke"].neighbours(student)) == {
            Student(((4, 8), (16, 16), (32,), (64,))),
            Student(((8, 8), (16, 16), (32,), (64,))),
            Student(((6, 8), (12, 16), (32,), (64,))),
            Student(((6, 8), (16,), (32,), (64,))),
            Student(((6, 8), (16, 16), (32, 32), (64,))),
            Student(((6, 8), (16, 16), (32,), (64, 64))),
        }

    def test_moves_lead_from_any_student_to_every_other(self) -> None:
        space = PRESETS["smoke"]
        reached, frontier = {space.largest}, [space.largest]
        while frontier:
            frontier = [other for other in space.neighbours(frontier.pop()) if other not in reached] + frontier
            reached.update(frontier)
        assert reached == set(all_of(space))

    @given(names, seeds, st.floats(0, 1))
    def test_mutants_are_members_that_the_seed_decides(self, name: str, seed: int, rate: float) -> None:
        space, student = draw(name, seed)
        mutant = space.mutate(student, rng(seed), rate)
        space.check(mutant)
        assert mutant == space.mutate(student, rng(seed), rate)

    @given(names, seeds)
    def test_rate_zero_changes_nothing(self, name: str, seed: int) -> None:
        space, student = draw(name, seed)
        assert space.mutate(student, rng(seed), 0.0) == student

    def test_rate_one_forgets_the_student_and_draws_uniformly(self) -> None:
        space, generator = PRESETS["paper5"], rng()
        mutants = [space.mutate(space.largest, generator, 1.0) for _ in range(2000)]
        depths = torch.tensor([mutant.depths for mutant in mutants]).flatten()
        assert (depths.bincount(minlength=6)[1:] / 8000 - 0.2).abs().max() < 0.03
        macs = torch.tensor([count_macs(mutant, 64, 40) for mutant in mutants], dtype=torch.float64) / 1e6
        assert macs.mean().item() == pytest.approx(455, abs=10)

    def test_a_low_rate_redraws_about_that_share_of_the_decisions(self) -> None:
        space, generator = SmallResNetSpace("flat", (5,), (32, 64, 128, 256), (0.5, 1.0)), rng()
        mutants = [space.mutate(space.largest, generator, 0.2) for _ in range(500)]
        narrow = [width != row[-1] for mutant in mutants for row in mutant.widths for width in row[:-1]]
        assert sum(narrow) / len(narrow) == pytest.approx(0.1, abs=0.015)  # half of the draws give the same ratio

    @pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
    def test_a_rate_that_is_no_probability_is_refused(self, rate: float) -> None:
        with pytest.raises(ConfigError, match="rate must be in"):
            PRESETS["smoke"].mutate(PRESETS["smoke"].largest, rng(), rate)

    @given(names, seeds)
    def test_a_cross_takes_each_stage_from_one_parent(self, name: str, seed: int) -> None:
        space = PRESETS[name]
        left, right = space.sample(2, rng(seed))
        child = space.cross(left, right, rng(seed))
        space.check(child)
        assert all(row in pair for row, *pair in zip(child.widths, left.widths, right.widths, strict=True))

    def test_a_cross_gives_all_combinations_of_stages(self) -> None:
        space, generator = PRESETS["smoke"], rng()
        children = {space.cross(space.largest, space.smallest, generator) for _ in range(300)}
        assert children == {
            Student(rows) for rows in product(*zip(space.largest.widths, space.smallest.widths, strict=True))
        }

    def test_a_stranger_is_neither_moved_nor_crossed(self) -> None:
        space, stranger = PRESETS["smoke"], PRESETS["paper5"].largest
        with pytest.raises(SpaceError):
            space.neighbours(stranger)
        with pytest.raises(SpaceError):
            space.mutate(stranger, rng())
        with pytest.raises(SpaceError):
            space.cross(space.largest, stranger, rng())
