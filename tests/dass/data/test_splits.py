from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.data.pack import Pack, Part
from dass.data.splits import assign_parts, class_splits, task_id, tiny10, tiny10_disjoint, tiny25, whole_task
from dass.errors import ConfigError, DataError
from tests.dass.data.packs import golden_pack, make_pack

TRAIN, VALID, TEST, UNASSIGNED = Part


def count(pack: Pack, label: int) -> dict[int, int]:
    return dict(Counter(pack.parts[pack.labels == label].tolist()))


def unassigned(num_classes: int = 3, per_class: int = 10) -> Pack:
    return make_pack(num_classes, per_class, parts=(UNASSIGNED,))


def test_both_missing_parts_are_cut_in_every_class() -> None:
    pack = assign_parts(unassigned(), valid_fraction=0.3, test_fraction=0.2)
    assert all(count(pack, label) == {TRAIN: 5, VALID: 3, TEST: 2} for label in range(3))


def test_valid_is_cut_from_train_and_test_stays() -> None:
    before = make_pack(per_class=10, parts=(TRAIN, TRAIN, TRAIN, TRAIN, TEST))
    after = assign_parts(before, valid_fraction=0.25)
    assert all(count(after, label) == {TRAIN: 6, VALID: 2, TEST: 2} for label in range(3))
    assert torch.equal(before.parts == TEST, after.parts == TEST)


def test_test_is_cut_from_train_and_valid_stays() -> None:
    before = make_pack(per_class=10, parts=(TRAIN, TRAIN, TRAIN, TRAIN, VALID))
    after = assign_parts(before, test_fraction=0.5)
    assert all(count(after, label) == {TRAIN: 4, VALID: 2, TEST: 4} for label in range(3))
    assert torch.equal(before.parts == VALID, after.parts == VALID)


def test_a_pack_with_all_parts_stays_as_it_is() -> None:
    assert assign_parts(make_pack()).id == make_pack().id


def test_unassigned_images_beside_given_parts_become_train() -> None:
    after = assign_parts(make_pack(per_class=4, parts=(TRAIN, VALID, TEST, UNASSIGNED)))
    assert count(after, 0) == {TRAIN: 2, VALID: 1, TEST: 1}


def test_cuts_follow_the_seed_and_are_not_the_first_images() -> None:
    pack = unassigned(per_class=50)
    assert torch.equal(assign_parts(pack, seed=3).parts, assign_parts(pack, seed=3).parts)
    assert not torch.equal(assign_parts(pack, seed=3).parts, assign_parts(pack, seed=4).parts)
    assert set(torch.nonzero(assign_parts(pack).parts == TEST).flatten().tolist()) != set(range(10))


@settings(max_examples=60)
@given(
    per_class=st.integers(3, 40),
    fractions=st.tuples(st.floats(0.01, 0.98), st.floats(0.01, 0.98)).filter(lambda pair: sum(pair) < 1),
    seed=st.integers(0, 1000),
)
def test_every_class_has_every_part_in_about_its_share(
    per_class: int, fractions: tuple[float, float], seed: int
) -> None:
    pack = assign_parts(unassigned(2, per_class), seed, *fractions)
    for label in range(2):
        counts = count(pack, label)
        assert set(counts) == {TRAIN, VALID, TEST}
        for part, fraction in ((VALID, fractions[0]), (TEST, fractions[1])):
            assert abs(counts[part] - fraction * per_class) <= 2


@pytest.mark.parametrize(
    ("parts", "num"),
    [((UNASSIGNED,), 2), ((TRAIN, TEST), 2), ((TRAIN, VALID), 2)],
)
def test_too_few_images_to_cut_are_an_error(parts: tuple[Part, ...], num: int) -> None:
    with pytest.raises(DataError, match=r"every class needs at least one image to each of train.*got [12] for class0"):
        assign_parts(make_pack(per_class=num, parts=parts))


def test_a_class_absent_from_a_given_part_is_an_error() -> None:
    pack = make_pack()
    parts = torch.where((pack.labels == 1) & (pack.parts == TEST), 0, pack.parts)
    with pytest.raises(DataError, match="got none in test for class1"):
        assign_parts(replace(pack, parts=parts))


@pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 1.0), (0.5, 0.5), (-0.1, 0.2)])
def test_illegal_fractions_are_an_error(fractions: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="sum to less than 1"):
        assign_parts(unassigned(), 0, *fractions)


def test_class_splits_take_their_classes_and_keep_the_parts() -> None:
    pack = make_pack(num_classes=5)
    first, second = class_splits(pack, [[4, 1], [0, 2, 3]], ["a", "b"])
    assert (first.name, first.classes, first.source_labels) == ("a", ("class4", "class1"), (4, 1))
    assert (second.name, second.num_classes, second.resolution, second.source) == ("b", 3, 8, pack.id)
    assert first.train == (6, 7, 8, 24, 25, 26)
    assert first.valid == (9, 10, 27, 28)
    assert first.test == (11, 29)
    assert [task.name for task in class_splits(pack, [[0, 1], [2, 3]])] == ["synthetic-0", "synthetic-1"]


def test_whole_task_holds_every_image() -> None:
    task = whole_task(make_pack(), "everything")
    assert sorted(task.train + task.valid + task.test) == list(range(18))
    assert (task.name, task.classes) == ("everything", ("class0", "class1", "class2"))


@pytest.mark.parametrize("group", [[0, 0], [0, 3], [-1, 0]])
def test_illegal_labels_in_a_group_are_an_error(group: list[int]) -> None:
    with pytest.raises(DataError, match=r"must be different and lie in 0\.\.2"):
        class_splits(make_pack(), [group])


def test_one_class_is_no_task() -> None:
    with pytest.raises(DataError, match="at least 2 classes, got 1"):
        class_splits(make_pack(), [[1]])


def test_names_must_be_as_many_as_groups() -> None:
    with pytest.raises(DataError, match="got 1 groups and 2 names"):
        class_splits(make_pack(), [[0, 1]], ["a", "b"])


def test_unassigned_images_are_no_task() -> None:
    with pytest.raises(DataError, match="call assign_parts first"):
        whole_task(unassigned(), "all")


@pytest.mark.parametrize("part", [TRAIN, VALID])
def test_a_class_without_images_to_learn_or_choose_from_is_no_task(part: Part) -> None:
    pack = make_pack()
    parts = torch.where((pack.labels == 2) & (pack.parts == part), int(TEST), pack.parts)
    with pytest.raises(DataError, match=f"got none in {part.name.lower()} of all for class2"):
        whole_task(replace(pack, parts=parts), "all")


def test_task_id_ignores_names_and_all_other_images() -> None:
    pack = make_pack(num_classes=4)
    task = class_splits(pack, [[3, 1]], ["a name"])[0]
    members = torch.cat([torch.nonzero(pack.labels == label).flatten() for label in (1, 3)])
    alone = Pack(
        pack.images[members], (pack.labels[members] == 1).long(), pack.parts[members], ("first", "second"), "other pack"
    )
    other = whole_task(alone, "another name")
    assert other.id == task.id
    assert other.source != task.source


def test_task_id_changes_with_pixels_labels_and_split() -> None:
    pack = make_pack()
    pixel = pack.images.clone()
    pixel[-1, 0, 0, 0] += 1  # an image of the test part
    moved = pack.parts.clone()
    moved[[0, 3]] = moved[[3, 0]]
    swapped = pack.labels.clone()
    swapped[[0, 6]] = swapped[[6, 0]]
    packs = [pack, replace(pack, images=pixel), replace(pack, parts=moved), replace(pack, labels=swapped)]
    ids = [whole_task(changed, "all").id for changed in packs] + [class_splits(pack, [[1, 0, 2]])[0].id]
    assert len(set(ids)) == 5


def test_task_id_tells_the_parts_apart() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    three_one = task_id((images[:3], labels[:3]), (images[3:], labels[3:]), (images[:0], labels[:0]))
    two_two = task_id((images[:2], labels[:2]), (images[2:], labels[2:]), (images[:0], labels[:0]))
    assert three_one != two_two
    assert len(three_one) == 32


def test_golden_task_id() -> None:
    assert whole_task(golden_pack(), "golden").id == "5dd4be05b8eb7cf5c9b0cd43bf217cf1"


def test_tiny10_splits_groups_in_halves_that_change_roles() -> None:
    pack = make_pack(num_classes=10, per_class=24, parts=(TRAIN, TRAIN, VALID, TEST))
    tasks = tiny10(pack)
    assert [task.name for task in tasks] == [f"tiny10-{index}" for index in range(10)]
    for index, task in enumerate(tasks):
        twin = tasks[index ^ 1]
        group = {2 * (index // 2), 2 * (index // 2) + 1}
        assert (task.train, task.valid, task.test) == (twin.valid, twin.train, twin.test)
        assert len(task.train) == len(task.valid) == 18
        assert set(task.source_labels) == group
        pool = torch.nonzero(torch.isin(pack.labels, torch.tensor(sorted(group))) & (pack.parts != TEST)).flatten()
        assert sorted(task.train + task.valid) == pool.tolist()
        assert list(task.train) == sorted(task.train)
        assert len(task.test) == 12
        assert task.id != twin.id
    assert set().union(*(task.source_labels for task in tasks)) == set(range(10))
    assert not {c for task in tasks[:8] for c in task.source_labels} & {
        c for task in tasks[8:] for c in task.source_labels
    }


def test_tiny10_does_not_depend_on_whether_valid_was_cut_before() -> None:
    cut = make_pack(num_classes=5 * 2, per_class=20, parts=(TRAIN, TRAIN, TRAIN, VALID, TEST))
    uncut = replace(cut, parts=torch.where(cut.parts == VALID, 0, cut.parts))
    assert [task.id for task in tiny10(cut)] == [task.id for task in tiny10(uncut)]


def test_tiny10_follows_its_seed() -> None:
    pack = make_pack(num_classes=10, per_class=24)
    assert [task.id for task in tiny10(pack, seed=1)] == [task.id for task in tiny10(pack, seed=1)]
    assert all(a.id != b.id for a, b in zip(tiny10(pack, seed=1), tiny10(pack, seed=2), strict=True))


def test_tiny10_refuses_a_half_without_one_of_its_classes() -> None:
    with pytest.raises(DataError, match="every class of a task needs images in train and valid"):
        tiny10(make_pack(num_classes=40, per_class=2, parts=(TRAIN,)))


def test_tiny10_disjoint_shares_no_class_and_validates_on_a_tenth() -> None:
    pack = make_pack(num_classes=20, per_class=24, parts=(TRAIN, TRAIN, TRAIN, TRAIN, TRAIN, TEST))
    tasks = tiny10_disjoint(pack)
    assert [task.source_labels for task in tasks] == [(2 * index, 2 * index + 1) for index in range(10)]
    for task in tasks:
        assert Counter(pack.labels[list(task.train)].tolist()) == dict.fromkeys(task.source_labels, 18)
        assert Counter(pack.labels[list(task.valid)].tolist()) == dict.fromkeys(task.source_labels, 2)
        assert len(task.test) == 8
        assert len({*task.train, *task.valid, *task.test}) == 48


def test_tiny25_follows_each_two_splits_with_small_tasks_of_their_classes() -> None:
    pack = make_pack(num_classes=40, per_class=60, parts=(TRAIN, TRAIN, TRAIN, VALID, VALID, TEST))
    tasks = tiny25(pack, seed=3)
    assert [task for task in tasks if task.name.startswith("tiny10-")] == tiny10(pack, seed=3)
    assert len(tasks) == len({task.id for task in tasks}) == 25
    for index in range(5):
        first, second, *small = tasks[5 * index : 5 * index + 5]
        assert [task.name for task in small] == [f"tiny25-{3 * index + number}" for number in range(3)]
        assert sorted(label for task in small for label in task.source_labels) == list(first.source_labels)
        assert first.source_labels == second.source_labels == tuple(range(8 * index, 8 * index + 8))
        for task, num_classes, images in zip(small, (2, 2, 4), (25, 10, 5), strict=True):
            assert len(task.source_labels) == num_classes
            assert list(task.source_labels) == sorted(task.source_labels)
            for part in (task.train, task.valid):
                assert Counter(pack.labels[list(part)].tolist()) == dict.fromkeys(task.source_labels, images)
            assert Counter(pack.labels[list(task.test)].tolist()) == dict.fromkeys(task.source_labels, 10)
            assert {*task.train, *task.valid} <= {*first.train, *first.valid}
            assert not {*task.train} & {*task.valid}


def test_tiny25_follows_its_seed_in_classes_and_images() -> None:
    pack = make_pack(num_classes=40, per_class=60)
    assert tiny25(pack, seed=1) == tiny25(pack, seed=1)
    a, b = (tiny25(pack, seed=seed) for seed in (1, 2))
    assert all(one.id != other.id for one, other in zip(a, b, strict=True))
    assert [task.source_labels for task in a] != [task.source_labels for task in b]


def test_tiny25_refuses_groups_of_too_few_classes() -> None:
    with pytest.raises(DataError, match="tiny25 needs 40 or more classes, got 20"):
        tiny25(make_pack(num_classes=20, per_class=60))


@pytest.mark.parametrize(("split", "divisor"), [(tiny10, 5), (tiny10_disjoint, 10), (tiny25, 5)])
def test_classes_that_do_not_divide_are_an_error(split: object, divisor: int) -> None:
    assert callable(split)
    with pytest.raises(DataError, match=f"divisible by {divisor}, got 12"):
        split(make_pack(num_classes=12))
