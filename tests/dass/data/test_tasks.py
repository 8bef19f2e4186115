from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.data.pack import Pack, Part
from dass.data.splits import class_splits, tiny10, tiny10_disjoint, tiny25
from dass.data.tasks import DataConfig, TaskSet, make_tasks
from dass.errors import ConfigError, DataError
from dass.records import Task
from tests.dass.data.packs import make_pack

PACK = make_pack(num_classes=10, per_class=3, parts=(Part.TRAIN, Part.VALID, Part.TEST))
CONFIG = DataConfig(classes_per_task=2, train_tasks=3, valid_tasks=1, target_classes=3)


def classes(*tasks: Task) -> set[int]:
    return {label for task in tasks for label in task.source_labels}


def ids(tasks: TaskSet) -> list[str]:
    return [task.id for task in tasks.all]


def with_(**changes: Any) -> DataConfig:
    return DataConfig(**(vars(CONFIG) | changes))


class TestClassTasks:
    def test_roles_have_as_many_tasks_and_classes_as_asked_for(self) -> None:
        tasks = make_tasks(PACK, CONFIG)
        assert [task.name for task in tasks.train] == ["train0", "train1", "train2"]
        assert [task.name for task in tasks.valid] == ["valid0"]
        assert {task.num_classes for task in tasks.meta} == {2}
        assert tasks.target is not None
        assert (tasks.target.name, tasks.target.num_classes) == ("target", 3)
        assert tasks.meta == tasks.train + tasks.valid
        assert tasks.all == (*tasks.meta, tasks.target)

    def test_without_target_classes_there_is_no_target(self) -> None:
        tasks = make_tasks(PACK, with_(target_classes=0))
        assert tasks.target is None
        assert tasks.all == tasks.meta

    def test_a_task_is_the_split_of_its_classes(self) -> None:
        for task in make_tasks(PACK, CONFIG).all:
            assert class_splits(PACK, [task.source_labels], [task.name]) == [task]

    @settings(max_examples=60)
    @given(
        per_task=st.integers(2, 4),
        num_train=st.integers(1, 8),
        num_valid=st.integers(1, 4),
        num_target=st.sampled_from([0, 2, 3]),
        seed=st.integers(0, 99),
    )
    def test_roles_share_no_class_and_tasks_of_a_role_differ(
        self, per_task: int, num_train: int, num_valid: int, num_target: int, seed: int
    ) -> None:
        config = with_(
            classes_per_task=per_task,
            train_tasks=num_train,
            valid_tasks=num_valid,
            target_classes=num_target,
            seed=seed,
        )
        if fewest(per_task, num_train) + fewest(per_task, num_valid) + num_target > 10:
            with pytest.raises(DataError, match="got 10; lower"):
                make_tasks(PACK, config)
            return
        tasks = make_tasks(PACK, config)
        target = () if tasks.target is None else (tasks.target,)
        roles = [classes(*role) for role in (tasks.train, tasks.valid, target)]
        assert sum(map(len, roles)) == len(set().union(*roles))
        assert len(roles[2]) == num_target
        assert (len(tasks.train), len(tasks.valid)) == (num_train, num_valid)
        assert {len(set(task.source_labels)) for task in tasks.meta} == {per_task}
        assert len({task.id for task in tasks.all}) == len(tasks.all)

    def test_equal_configs_make_equal_tasks_and_the_seed_decides(self) -> None:
        assert make_tasks(PACK, CONFIG) == make_tasks(PACK, CONFIG)
        assert ids(make_tasks(PACK, CONFIG)) != ids(make_tasks(PACK, with_(seed=1)))

    def test_every_class_is_a_target_sometimes(self) -> None:
        targets = [make_tasks(PACK, with_(seed=seed)).target for seed in range(20)]
        assert classes(*(target for target in targets if target is not None)) == set(range(10))

    def test_more_tasks_leave_the_target_as_it_is(self) -> None:
        assert make_tasks(PACK, with_(train_tasks=6)).target == make_tasks(PACK, CONFIG).target

    def test_too_few_classes_are_counted_in_the_message(self) -> None:
        with pytest.raises(DataError, match=r"3 \+ 1 tasks of 2 classes and a target of 6.*need 11 classes, got 10"):
            make_tasks(PACK, with_(target_classes=6))


def fewest(taken: int, num: int) -> int:
    return next(size for size in range(taken, 100) if comb(size, taken) >= num)


class TestTinySplits:
    @pytest.mark.parametrize(("split", "cut"), [("tiny10", tiny10), ("tiny10_disjoint", tiny10_disjoint)])
    def test_the_last_two_of_ten_choose_and_the_others_teach(self, split: str, cut: Any) -> None:
        pack = many_images()
        tasks = make_tasks(pack, with_(split=split, target_classes=0, train_tasks=8, valid_tasks=2, seed=5))
        assert list(tasks.all) == cut(pack, seed=5)
        assert (len(tasks.train), len(tasks.valid), tasks.target) == (8, 2, None)
        assert not classes(*tasks.train) & classes(*tasks.valid)

    def test_the_last_five_of_25_choose_and_share_no_class_with_those_that_teach(self) -> None:
        pack = make_pack(num_classes=40, per_class=60)
        tasks = make_tasks(pack, with_(split="tiny25", target_classes=0, train_tasks=20, valid_tasks=5, seed=5))
        assert list(tasks.all) == tiny25(pack, seed=5)
        assert (len(tasks.train), len(tasks.valid), tasks.target) == (20, 5, None)
        assert not classes(*tasks.train) & classes(*tasks.valid)

    def test_a_target_must_be_brought(self) -> None:
        with pytest.raises(ConfigError, match="give the target with --data"):
            with_(split="tiny10")

    def test_fewer_tasks_are_the_first_of_each_role(self) -> None:
        tasks = make_tasks(many_images(), with_(split="tiny10", target_classes=0, train_tasks=3, valid_tasks=1))
        assert [task.name for task in tasks.all] == ["tiny10-0", "tiny10-1", "tiny10-2", "tiny10-8"]

    @pytest.mark.parametrize("changes", [{"train_tasks": 9}, {"train_tasks": 8, "valid_tasks": 3}])
    def test_more_tasks_than_splits_are_refused(self, changes: dict[str, int]) -> None:
        with pytest.raises(DataError, match="tiny10 has 8 meta-training and 2 meta-validation tasks, got"):
            make_tasks(many_images(), with_(split="tiny10", target_classes=0, **changes))


def many_images() -> Pack:
    return make_pack(num_classes=20, per_class=24)


class TestConfig:
    @pytest.mark.parametrize("resolution", [0, 4, 12, -8])
    def test_resolutions_that_the_networks_cannot_halve_are_refused(self, resolution: int) -> None:
        with pytest.raises(ConfigError, match=f"data.resolution must be a positive multiple of 8, got {resolution}"):
            DataConfig(resolution=resolution)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("classes_per_task", 1),
            ("train_tasks", 0),
            ("valid_tasks", 0),
            ("target_classes", -1),
            ("target_classes", 1),
        ],
    )
    def test_numbers_too_small_are_refused_by_name(self, name: str, value: int) -> None:
        with pytest.raises(ConfigError, match=rf"data\.{name} must be .*got {value}"):
            with_(**{name: value})

    @pytest.mark.parametrize("fractions", [(0.0, 0.2), (0.2, 0.0), (0.5, 0.5), (1.0, 0.2), (float("nan"), 0.2)])
    def test_fractions_that_leave_nothing_to_train_on_are_refused(self, fractions: tuple[float, float]) -> None:
        with pytest.raises(ConfigError, match="must be positive and sum to less than 1"):
            with_(valid_fraction=fractions[0], test_fraction=fractions[1])
