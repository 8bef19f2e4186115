import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dass.errors import DataError
from dass.meta.episodes import MetaTask, draw_episode

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
