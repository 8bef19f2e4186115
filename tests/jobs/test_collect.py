"""Which runs a collection plans."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.objects import FolderStore
from dass.data.tasks import TaskSet
from dass.records import Run
from jobs import collect
from jobs.config import Config, with_values
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import get_recipe
from tests.jobs.command import call
from tests.jobs.images import write_images


def smoke(**changes: Any) -> Config:
    """The smoke recipe with other settings of its collection."""
    return with_values(get_recipe("smoke"), {"collect": changes}, "test")


def planned(config: Config, store: Path) -> tuple[TaskSet, tuple[Run, ...]]:
    job = Job(config, FolderStore(store), Console(is_json=True))
    cut = job.tasks()
    return cut, collect.plan(job, cut).runs


@pytest.mark.parametrize("sampler", ["uniform", "macs_stratified"])
def test_more_students_are_those_of_before_and_others(sampler: str, tmp_path: Path) -> None:
    sizes = ({"students_per_task": 3, "target_students": 2}, {"students_per_task": 9, "target_students": 8})
    (_, few), (_, many) = (planned(smoke(sampler=sampler, **each), tmp_path) for each in sizes)
    assert len(set(many)) == len(many) == len(few) + 3 * 6 + 6
    assert set(few) < set(many)


def test_more_tasks_leave_the_students_of_the_others(tmp_path: Path) -> None:
    config = smoke()
    few = with_values(config, {"data": {"train_tasks": 1}}, "test")
    (cut, runs), (_, other_runs) = planned(config, tmp_path), planned(few, tmp_path)
    names = {task.id: task.name for task in cut.meta}
    by_name = {(names[run.task], run.student) for run in runs if run.task in names and run.teacher}
    assert by_name >= {(names[run.task], run.student) for run in other_runs if run.task in names and run.teacher}


@pytest.mark.parametrize("draw", ["shared", "own"])
def test_targets_share_their_students_or_have_their_own_and_the_first_run_again(draw: str, tmp_path: Path) -> None:
    source = write_images(tmp_path / "mine", {"a": 30, "b": 30})
    config = smoke(target_students=6, target_repeats=2, target_draw=draw)
    config = replace(config, evaluate=replace(config.evaluate, targets=(source,)))
    cut, runs = planned(config, tmp_path / "store")
    assert cut.target is not None
    targets = list(dict.fromkeys(run.task for run in runs if run.task not in {task.id for task in cut.meta}))
    assert targets[0] == cut.target.id
    assert len(targets) == 2
    drawn = []
    for target in targets:
        teacher, *of_target = (run for run in runs if run.task == target)
        assert teacher.teacher is None
        assert {run.teacher for run in of_target} == {teacher.id}
        first, again = (tuple(run.student for run in of_target if run.seed == seed) for seed in (0, 1))
        assert len(first) == 6
        assert again == first[:2]
        drawn.append(first)
    assert (drawn[0] == drawn[1]) is (draw == "shared")


def test_images_of_targets_are_read_only_where_students_are_distilled_on_them(tmp_path: Path) -> None:
    config = smoke(target_students=0)
    config = replace(config, evaluate=replace(config.evaluate, targets=("imagefolder:/nowhere",)))
    _, runs = planned(config, tmp_path)
    assert len(runs) == 4 + 3 * 3


def test_a_target_of_the_recipe_is_shown_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    source = write_images(tmp_path / "mine", {"a": 30, "b": 30})
    options = ("collect", "--recipe", "smoke", "--store", tmp_path / "store", "--dry-run")
    answer = call(*options, "--set", f'evaluate.targets=["{source}"]')
    assert answer.code == 0, answer.err
    assert "mine" in answer.out
    answer = call(*options, "--set", 'evaluate.targets=["imagefolder:/nowhere"]')
    assert answer.code == 2
    assert "/nowhere" in answer.error
