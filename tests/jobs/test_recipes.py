from pathlib import Path

import pytest

from cluster.objects import FolderStore
from dass.cost import count_macs
from dass.data.tasks import TaskSet, make_tasks
from dass.errors import ConfigError
from dass.search.budget import check_feasible
from dass.spaces import get_space
from jobs import collect
from jobs.config import Config, with_settings
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import RECIPES, get_recipe
from tests.dass.data.packs import make_pack

ON_DIGITS = ("digits", "smoke")
ON_TINY_IMAGENET = ("tiny10", "tiny25_32px")
PRETRAINED = ("quickstart", "pretrained")  # all images are one target, which the package's predictor ranks students for


def tasks_of(config: Config, folder: Path) -> TaskSet:
    """The recipe's tasks: of the digits, or of forty classes of noise in the place of Tiny-ImageNet's 200."""
    if config.data.split == "whole":
        config = with_settings(config, ["data.source=digits"])
    if config.data.source == "digits":
        return Job(config, FolderStore(folder), Console(is_json=True), dry_run=True).tasks()
    return make_tasks(make_pack(40, 12, resolution=config.data.resolution), config.data)


def plan_of(config: Config, folder: Path) -> tuple[TaskSet, list[str]]:
    """The tasks, and for each planned run its task, with a star where it trains a teacher."""
    tasks = tasks_of(config, folder)
    job = Job(config, FolderStore(folder), Console())
    return tasks, [run.task + "*" * (run.teacher is None) for run in collect.plan(job, tasks).runs]


def test_every_recipe_is_known_to_these_tests() -> None:
    assert set(RECIPES) == {*ON_DIGITS, *ON_TINY_IMAGENET, *PRETRAINED}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_plans_a_teacher_and_its_students_for_every_task(name: str, tmp_path: Path) -> None:
    config = get_recipe(name)
    tasks, planned = plan_of(config, tmp_path / "store")
    is_cut = config.data.split != "whole"
    assert (len(tasks.train), len(tasks.valid)) == (
        (config.data.train_tasks, config.data.valid_tasks) if is_cut else (0, 0)
    )
    for task in tasks.meta:
        assert planned.count(task.id) == config.collect.students_per_task
    if tasks.target is not None:
        assert planned.count(tasks.target.id) == config.collect.target_students
    num_students = len(tasks.meta) * config.collect.students_per_task
    num_students += config.collect.target_students if tasks.target is not None else 0
    assert len(planned) == num_students + len(tasks.all)
    assert sorted(run for run in planned if run.endswith("*")) == sorted(f"{task.id}*" for task in tasks.all)
    assert not (tmp_path / "store").exists()


def test_the_papers_database_has_two_thousand_students_at_64_px(tmp_path: Path) -> None:
    config = get_recipe("tiny10")
    tasks, planned = plan_of(config, tmp_path)
    assert len(planned) == 2000 + 10
    assert (len(tasks.train), len(tasks.valid), tasks.target) == (8, 2, None)
    assert {task.resolution for task in tasks.all} == {64}
    assert (config.space, config.student.epochs, config.student.batch_size, config.teacher.epochs) == (
        "paper5",
        50,
        64,
        180,
    )


@pytest.mark.parametrize("name", [*ON_TINY_IMAGENET, "pretrained"])
def test_recipes_for_images_that_you_bring_name_no_source(name: str) -> None:
    assert get_recipe(name).data.source == ""


@pytest.mark.parametrize("name", ON_DIGITS)
def test_roles_share_no_class(name: str, tmp_path: Path) -> None:
    tasks = tasks_of(get_recipe(name), tmp_path)
    assert tasks.target is not None
    train, valid = ({label for task in group for label in task.classes} for group in (tasks.train, tasks.valid))
    target = set(tasks.target.classes)
    assert not train & valid
    assert not (train | valid) & target
    assert len({task.id for task in tasks.all}) == len(tasks.all)


@pytest.mark.parametrize("name", PRETRAINED)
def test_all_images_are_the_target_trained_as_the_packages_predictor_has_seen_it(name: str, tmp_path: Path) -> None:
    config, made_for = get_recipe(name), get_recipe("tiny25_32px")
    tasks = tasks_of(config, tmp_path)
    assert tasks.target is not None
    assert tasks.target.classes == tuple("0123456789")
    assert (tasks.meta, config.predictor) == ((), "package")
    assert (config.space, config.teacher, config.student, config.final, config.data.resolution) == (
        made_for.space,
        made_for.teacher,
        made_for.student,
        made_for.student,
        made_for.data.resolution,
    )


@pytest.mark.parametrize("name", [*ON_DIGITS, *PRETRAINED])
def test_the_budget_leaves_students_out_and_students_in(name: str) -> None:
    config = get_recipe(name)
    space, resolution, num_classes = get_space(config.space), config.data.resolution, config.data.target_classes or 10
    largest_macs = count_macs(space.largest, resolution, num_classes)
    budget = config.search.budget(largest_macs)
    check_feasible(budget, space, resolution, num_classes)
    assert budget.max_macs is not None
    assert count_macs(space.smallest, resolution, num_classes) < budget.max_macs < largest_macs


@pytest.mark.parametrize(
    ("name", "hint"),
    [("smokey", "did you mean smoke?"), ("tiny1", "did you mean tiny10?"), ("zzz", "choose one of them")],
)
def test_an_unknown_name_lists_the_recipes_and_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        get_recipe(name)
    assert str(caught.value) == (
        f"--recipe must be one of {', '.join(RECIPES)} or a file ending in .toml, got {name!r}; {hint}"
    )
