import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dass.errors import DataError, PredictorMismatchError
from dass.meta.episodes import ImageFeatures, MetaTask, checked_images, draw_episode, split_support

sizes = st.lists(st.integers(1, 80), min_size=1, max_size=20)


def values(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t0",
        "arch": torch.ones(3, 5),
        "maps": torch.ones(3, 4, 2, 2),
        "targets_pct": torch.tensor([10.0, 50.0, 100.0]),
        "teacher_arch": torch.ones(5),
        "teacher_map": torch.ones(4, 2, 2),
        "teacher_accuracy_pct": 80.0,
    } | changes


class TestMetaTask:
    def test_it_counts_its_students(self) -> None:
        assert MetaTask(**values()).num_students == 3

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("arch", torch.ones(2, 5)),
            ("maps", torch.ones(3, 4)),
            ("maps", torch.ones(0, 4, 2, 2)),
            ("targets_pct", torch.ones(3, 1)),
            ("targets_pct", torch.tensor([10.0, 50.0, 100.5])),
            ("teacher_arch", torch.ones(6)),
            ("teacher_map", torch.ones(4, 2, 1)),
            ("teacher_map", torch.full((4, 2, 2), math.nan)),
            ("maps", torch.full((3, 4, 2, 2), math.inf)),
            ("targets_pct", torch.tensor([10.0, math.nan, 100.0])),
            ("arch", torch.ones(3, 5, dtype=torch.int64)),
            ("maps", torch.ones(3, 4, 2, 2).half()),
            ("teacher_accuracy_pct", 100.5),
            ("teacher_accuracy_pct", math.nan),
        ],
    )
    def test_what_cannot_be_learned_from_is_refused_by_name(self, name: str, wrong: object) -> None:
        with pytest.raises(DataError, match=rf"{name}.*'t0'"):
            MetaTask(**values(**{name: wrong}))

    def test_support_is_the_teacher_and_the_students_that_were_chosen(self) -> None:
        images = ImageFeatures(torch.ones(2, 3, 4), "e")
        task = MetaTask(**values(arch=torch.arange(15.0).view(3, 5), images=images))
        support = task.support(torch.tensor([2, 0]))
        assert support.students is not None
        assert support.students.targets_pct.tolist() == [100, 10]
        assert support.students.arch[:, 0].tolist() == [10, 0]
        assert support.teacher_accuracy_pct == 80
        assert support.images is not None
        assert task.support().students is None
        assert task.support(torch.tensor([], dtype=torch.int64)).students is None


class TestImageFeatures:
    @pytest.mark.parametrize(
        "wrong", [torch.ones(3, 4), torch.ones(0, 3, 4), torch.ones(2, 3, 4).double(), torch.full((1, 1, 1), math.nan)]
    )
    def test_other_values_are_refused(self, wrong: torch.Tensor) -> None:
        with pytest.raises(DataError, match="classes, images, features"):
            ImageFeatures(wrong, "e")

    def test_a_method_gets_a_copy_of_the_features_that_it_learned_from(self) -> None:
        with torch.inference_mode():
            images = ImageFeatures(torch.rand(2, 3, 4), "e")
        found = checked_images(images, "e", 4, 3)
        assert torch.equal(found, images.values)
        assert not found.is_inference()

    @pytest.mark.parametrize(("encoder", "num_features", "num_images"), [("f", 4, 1), ("e", 3, 1), ("e", 4, 4)])
    def test_it_never_gets_others(self, encoder: str, num_features: int, num_images: int) -> None:
        images = ImageFeatures(torch.rand(2, 3, 4), "e")
        with pytest.raises(PredictorMismatchError, match="got 4 and 3 of e"):
            checked_images(images, encoder, num_features, num_images)


class TestSupport:
    @given(st.integers(1, 80), st.data())
    def test_support_and_rest_are_all_students_once(self, num: int, data: st.DataObject) -> None:
        num_support = data.draw(st.integers(0, num - 1))
        shown, rest = split_support(num, num_support, "task", 3)
        assert len(shown) == num_support
        assert sorted([*shown.tolist(), *rest.tolist()]) == list(range(num))
        assert rest.tolist() == sorted(rest.tolist())

    def test_it_depends_on_the_seed_alone(self) -> None:
        one, same, other = (split_support(40, 10, seed)[0].tolist() for seed in ("a", "a", "b"))
        assert one == same != other

    @pytest.mark.parametrize("num_support", [-1, 3, 4])
    def test_somebody_must_be_left(self, num_support: int) -> None:
        with pytest.raises(ValueError, match=r"must be in 0\.\.2"):
            split_support(3, num_support)


class TestEpisode:
    @given(sizes, st.integers(0, 99))
    def test_queries_are_distinct_students_of_their_task(self, num_students: list[int], number: int) -> None:
        episode = draw_episode(num_students, seed=0, number=number)
        for task, queries in zip(episode.tasks, episode.queries, strict=True):
            assert len(queries) == min(50, num_students[task])
            assert set(queries.tolist()) <= set(range(num_students[task]))
            assert len(set(queries.tolist())) == len(queries)

    @given(sizes)
    def test_up_to_8_tasks_take_part_in_order_and_of_more_8_distinct_ones(self, num_students: list[int]) -> None:
        tasks = draw_episode(num_students, seed=0, number=0).tasks
        if len(num_students) <= 8:
            assert tasks == tuple(range(len(num_students)))
        else:
            assert len(set(tasks)) == len(tasks) == 8

    @given(sizes, st.integers(1, 10), st.integers(0, 99))
    def test_nobody_is_support_and_query(self, num_students: list[int], num_support: int, number: int) -> None:
        episode = draw_episode(num_students, seed=0, number=number, num_queries=7, num_support=num_support)
        for task, queries, support in zip(episode.tasks, episode.queries, episode.support, strict=True):
            assert not set(queries.tolist()) & set(support.tolist())
            assert len(support) == min(num_support, num_students[task])
            assert len(queries) == min(7, max(0, num_students[task] - num_support))

    def test_every_task_is_drawn_in_the_long_run(self) -> None:
        drawn = {task for number in range(20) for task in draw_episode([1] * 12, seed=0, number=number).tasks}
        assert drawn == set(range(12))

    def test_an_episode_depends_on_seed_and_number_alone(self) -> None:
        first, again, other_number, other_seed = (
            draw_episode([60, 60], seed=seed, number=number).queries[0].tolist()
            for seed, number in ((2, 7), (2, 7), (2, 8), (3, 7))
        )
        assert first == again
        assert first != other_number
        assert first != other_seed
