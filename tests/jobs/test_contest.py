"""`contest` on a small real store: who picks whom, what the comparison says, how it goes on, and what it refuses."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from scipy import stats

from cluster.database import RunDatabase
from cluster.objects import FolderStore
from dass.cost import count_macs, count_params
from dass.records import Student
from dass.search.budget import Budget
from jobs.job import Job
from tests.jobs.command import call, refusal, spawn, tree
from tests.jobs.images import write_images
from tests.jobs.prepared import open_smoke

RATIO = 0.6
METHODS = ("macs", "params", "random", "dass")
CONTEST = (
    *("contest", "--recipe", "smoke", "--methods", ",".join(METHODS)),
    *("--set", f"search.max_macs_ratio={RATIO}", "--set", "distil.seeds=[4,5]"),
)


@pytest.fixture(scope="module")
def contested(done: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The store after a contest, and its document; not to be written to."""
    store = shutil.copytree(done, tmp_path_factory.mktemp("contested") / "store")
    answer = spawn(*CONTEST, "--store", store, "--json")
    assert answer.code == 0, answer.err
    return store, json.loads(answer.out)


def candidates(job: Job, budget: Budget) -> list[Student]:
    """What every method ranks, drawn as the search of the recipe draws them."""
    task = job.tasks().target
    assert task is not None
    strategy = job.config.search.begin(job.space, budget, task.resolution, task.num_classes)
    drawn: Sequence[Student] = strategy.ask(job.config.search.candidates)
    return list(drawn)


def test_each_method_picks_its_own_first_student_in_the_budget(contested: tuple[Path, dict[str, Any]]) -> None:
    store, found = contested
    job = open_smoke(store)
    task = job.tasks().target
    assert task is not None
    limit = found["targets"]["target"]["max_macs"]
    assert limit == int(RATIO * count_macs(job.space.largest, task.resolution, task.num_classes))
    drawn = candidates(job, Budget(limit))
    macs = {student.key: count_macs(student, task.resolution, task.num_classes) for student in drawn}
    params = {student.key: count_params(student, task.num_classes) for student in drawn}
    picks = {name: of_method["target"]["picks"] for name, of_method in found["methods"].items()}
    assert all(pick["macs"] == macs[pick["student"]] <= limit for each in picks.values() for pick in each)
    assert [pick["macs"] for pick in picks["macs"]] == [max(macs.values())] * 2
    assert [pick["params"] for pick in picks["params"]] == [max(params.values())] * 2
    assert {pick["score"] for pick in picks["dass"]} != {None}
    assert picks["random"][0]["student"] != picks["random"][1]["student"]


def test_the_figures_are_those_of_the_records(contested: tuple[Path, dict[str, Any]]) -> None:
    store, found = contested
    by_id = {record.run.id: record for record in RunDatabase(FolderStore(store)).scan()}
    means = {}
    for name, of_method in found["methods"].items():
        picks, seen = of_method["target"]["picks"], of_method["target"]["accuracy_pct"]
        records = [by_id[pick["run"]] for pick in picks]
        assert [(each.run.student.key, each.run.seed) for each in records] == [
            (pick["student"], seed) for pick, seed in zip(picks, (4, 5), strict=True)
        ]
        accuracies = [float(each.result.best_accuracy_pct or "nan") for each in records]
        assert [pick["accuracy_pct"] for pick in picks] == accuracies
        assert [pick["test_accuracy_pct"] for pick in picks] == [each.result.test_accuracy_pct for each in records]
        assert None not in [pick["test_accuracy_pct"] for pick in picks]
        means[name] = fmean(accuracies)
        reach = stats.t.ppf(0.975, 1) * stats.sem(accuracies)
        ends = [means[name], means[name] - reach, means[name] + reach]
        assert [seen["mean"], seen["low"], seen["high"]] == pytest.approx(ends)
        assert found["overall"][name]["accuracy_pct"] == pytest.approx(seen)  # one target
    assert found["order"] == sorted(means, key=lambda name: (-means[name], name))
    teacher = by_id[found["targets"]["target"]["teacher"]]
    assert found["targets"]["target"]["teacher_accuracy_pct"] == teacher.result.best_accuracy_pct


def test_what_is_done_is_not_done_again(contested: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    store = shutil.copytree(contested[0], tmp_path / "store")
    before = tree(store)
    again = json.loads(spawn(*CONTEST, "--store", store, "--json").out)  # as many threads as the first had
    assert again.pop("pending") == 0
    assert again == {key: value for key, value in contested[1].items() if key != "pending"}
    assert tree(store) == before
    searches = sorted((store / "documents" / "contest").iterdir())
    assert len(searches) == 1 + 1 + 2 + 2  # what draws nothing searches once
    searches[0].unlink()
    rest = json.loads(spawn(*CONTEST, "--store", store, "--json").out)
    assert (rest["pending"], rest["searches"]) == (1, 6)
    picks = {name: [each["student"] for each in of["target"]["picks"]] for name, of in rest["methods"].items()}
    assert picks == {
        name: [each["student"] for each in of["target"]["picks"]] for name, of in contested[1]["methods"].items()
    }


def test_a_dry_run_says_what_is_left_and_changes_nothing(contested: tuple[Path, dict[str, Any]], done: Path) -> None:
    for store, left in ((contested[0], 0), (done, 6)):
        before = tree(store)
        told = json.loads(call(*CONTEST, "--store", store, "--dry-run", "--json").out)
        assert told == {"searches": 6, "pending": left, "dry_run": True}
        assert tree(store) == before


def test_a_target_of_ones_own_images_needs_nothing_but_them(store: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "pets", {"cat": 20, "dog": 20})
    options = ("contest", "--recipe", "smoke", "--methods", "macs", "--set", "distil.seeds=[4]", "--data", source)
    answer = spawn(*options, "--store", store, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    (pick,) = found["methods"]["macs"]["pets"]["picks"]
    (record,) = RunDatabase(FolderStore(store)).scan({pick["run"]})
    assert record.run.task == found["targets"]["pets"]["task"]
    assert record.run.teacher == found["targets"]["pets"]["teacher"]
    assert record.result.best_accuracy_pct == pick["accuracy_pct"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--methods", "das"), "did you mean dass?"),
        (("--set", "search.max_macs_ratio=1e-6"), "the budget must admit the smallest student"),
        (("--set", "meta.support_students=2"), "a contest is on targets without any distilled student"),
        (("--data", "imagefolder:/nowhere"), "/nowhere"),
    ],
)
def test_it_refuses_before_it_searches(store: Path, options: tuple[str, ...], told: str) -> None:
    assert told in refusal(store, "contest", "--recipe", "smoke", *options)
