"""`evaluate` on a small real store: what it prints and returns, how it goes on, and what it refuses."""

import json
import math
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cluster.documents import get_document, get_latest, put_document
from cluster.objects import FolderStore
from cluster.plan import Plan
from cluster.teachers import load_teacher
from cluster.weights import get_blob
from dass.baselines.catalog import Catalog
from dass.cost import count_macs, count_params
from dass.errors import DataError
from dass.evaluation import METRICS, ceiling
from dass.predictor import load_predictor
from dass.records import Run
from dass.search.select import make_scorer
from dass.seeding import generator
from jobs import evaluate, teachers
from jobs.config import with_settings
from jobs.console import Console
from jobs.evaluation_records import find_targets
from jobs.evaluation_scores import Evaluation
from jobs.job import Job
from jobs.meta_train import learnable
from jobs.recipes import get_recipe
from tests.jobs.command import ROOT, call, tree
from tests.jobs.prepared import open_smoke, train

SMOKE = ("evaluate", "--recipe", "smoke")
METHODS = ("macs", "random", "grad_norm+remap", "maml", "tans", "dass")
SOME = (*SMOKE, "--methods", ",".join(METHODS), "--seeds", "2")


@pytest.fixture(scope="module")
def collected(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a target of many students, five of them run under a second seed; not to be written to."""
    store = shutil.copytree(done, tmp_path_factory.mktemp("collected") / "store")
    job = open_smoke(store)
    train(job, Plan("collect", tuple(target_runs(job, 12))))
    train(job, Plan("repeats", tuple(replace(run, seed=9) for run in target_runs(job, 12)[:5])))
    return store


@pytest.fixture(scope="module")
def evaluated(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The store after an evaluation that nothing disturbed, and its document; not to be written to."""
    store = shutil.copytree(collected, tmp_path_factory.mktemp("evaluated") / "store")
    answer = call(*SOME, "--store", store, "--json")
    assert answer.code == 0, answer.err
    return store, json.loads(answer.out)


@pytest.fixture
def place(collected: Path, tmp_path: Path) -> Path:
    """A copy of the collected store to write to."""
    return shutil.copytree(collected, tmp_path / "place")


def target_runs(job: Job, num: int, *, seed: int = 0) -> list[Run]:
    task = job.tasks().target
    assert task is not None
    students = job.space.sample(num, generator("evaluate test"))
    teacher = teachers.run_of(job, task).id
    return [Run(task.id, teacher, student, job.config.student, seed) for student in students]


def add_copy(job: Job, **changes: Any) -> None:
    """A record that is like that of the target's first student, but of another run."""
    record = next(iter(job.records([target_runs(job, 12)[0].id]).values()))
    job.database.add(replace(record, run=replace(record.run, **changes)))


def results(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / "documents" / "evaluation").glob("*.json")}


def ranked_students(store: Path) -> Any:
    job = open_smoke(store)
    (target,) = find_targets(job, (), (record.run.id for record in learnable(job).records))
    return job, target


def without_times(document: dict[str, Any]) -> dict[str, Any]:
    methods = {
        name: {metric: value for metric, value in of_method.items() if metric not in METRICS[5:]}
        for name, of_method in document["methods"].items()
    }
    return {**{key: document[key] for key in ("records", "ceiling", "groups", "failed")}, "methods": methods}


def test_a_calibrated_predictors_intervals_are_checked_on_the_target(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = 0.7  # three groups vouch for 75 %
    monkeypatch.setattr("jobs.evaluate.LEVEL", level)
    monkeypatch.setattr("jobs.calibrate.LEVEL", level)
    told = json.loads(call("calibrate", "--recipe", "smoke", "--store", place, "--json").out)
    found = json.loads(call(*SMOKE, "--methods", "dass,macs", "--seeds", "2", "--store", place, "--json").out)
    job, target = ranked_students(place)
    pairs = [runs for runs in target.runs_pct if len(runs) > 1]
    assert told["label_noise_pct"] == pytest.approx(math.sqrt(np.mean([np.var(runs, ddof=1) for runs in pairs])))
    held = found["coverage"]["target"]
    assert (held["level"], held["half_width_pct"]) == (level, told["half_width_pct"])
    scores = [get_document(job.store, "evaluation", name.removesuffix(".json")) for name in results(place)]
    errors = [np.abs(np.subtract(each["scores"], target.accuracies_pct)) for each in scores if each["method"] == "dass"]
    assert len(errors) == 2
    assert held["share"] == pytest.approx(np.mean([each <= held["half_width_pct"] for each in errors]))
    alone = json.loads(call(*SMOKE, "--methods", "macs", "--store", place, "--json").out)
    assert alone["coverage"] == {"target": None}


class TestDocument:
    def test_it_has_exactly_the_keys_that_are_promised(self, evaluated: tuple[Path, dict[str, Any]]) -> None:
        found = evaluated[1]
        assert set(found["methods"]) == set(METHODS)
        for of_method in found["methods"].values():
            assert set(of_method) == {
                "spearman", "spearman_in_bands", "kendall", "regret_1", "regret_5", "seconds_per_candidate", "adapt_s"
            }  # fmt: skip
            for of_metric in of_method.values():
                assert [set(value) for value in of_metric.values()] == [{"mean", "low", "high"}]
                assert list(of_metric) == ["target"]
        assert found["groups"]["tans"] == found["groups"]["dass"] == "meta-learned"
        order = [found["overall"][name]["spearman"]["mean"] for name in found["order"]]
        defined = [mean for mean in order if mean is not None]
        assert order == sorted(defined, reverse=True) + [None] * (len(order) - len(defined))

    def test_figures_of_macs_are_those_of_the_records(self, evaluated: tuple[Path, dict[str, Any]]) -> None:
        store, found = evaluated
        _, target = ranked_students(store)
        truth = [record.result.best_accuracy_pct for record in target.ranked]
        macs = [count_macs(record.run.student, 16, 3) for record in target.ranked]
        of_macs = {metric: value["target"] for metric, value in found["methods"]["macs"].items()}
        assert of_macs["spearman"]["mean"] == pytest.approx(stats.spearmanr(macs, truth).statistic)
        assert of_macs["kendall"]["mean"] == pytest.approx(stats.kendalltau(macs, truth).statistic)
        largest = truth[int(np.argmax(macs))]
        assert of_macs["regret_1"]["mean"] == pytest.approx(max(truth) - largest)
        assert of_macs["spearman"]["low"] is None  # it draws nothing
        assert found["records"]["target"]["students"] == len(truth) >= 12

    def test_intervals_are_over_the_seeds_of_the_stored_scores(self, evaluated: tuple[Path, dict[str, Any]]) -> None:
        store, found = evaluated
        _, target = ranked_students(store)
        truth = [record.result.best_accuracy_pct for record in target.ranked]
        kept = [json.loads(data)["value"] for data in results(store).values()]
        by_seed = [value["scores"] for value in kept if value["method"] == "random"]
        correlations = [stats.spearmanr(scores, truth).statistic for scores in by_seed]
        assert len(correlations) == 2
        expected = stats.ttest_1samp(correlations, 0).confidence_interval(0.95)
        shown = found["methods"]["random"]["spearman"]["target"]
        assert (shown["low"], shown["high"]) == pytest.approx((expected.low, expected.high))

    def test_dass_is_the_predictor_that_meta_train_makes(self, evaluated: tuple[Path, dict[str, Any]]) -> None:
        store, _ = evaluated
        copy = shutil.copytree(store, store.parent / "trained")
        assert call("meta-train", "--recipe", "smoke", "--set", "meta.seed=1", "--store", copy).code == 0
        job, target = ranked_students(copy)
        method = load_predictor(get_blob(job.store, get_latest(job.store, "predictor", predictor=str)["predictor"]))
        teacher = load_teacher(job.database, target.teacher, target.task.id)
        expected = make_scorer(method, job.space, teacher).score([record.run.student for record in target.ranked])
        kept = [json.loads(data)["value"] for data in results(store).values()]
        (scores,) = (value["scores"] for value in kept if (value["method"], value["seed"]) == ("dass", 1))
        assert scores == pytest.approx(expected.tolist(), rel=1e-6)

    def test_the_ceiling_is_by_those_that_ran_twice_and_of_all(self, evaluated: tuple[Path, dict[str, Any]]) -> None:
        job, target = ranked_students(evaluated[0])
        runs = [
            record.run for record in job.database.scan() if record.run.task == target.task.id and record.run.teacher
        ]
        students = {run.student for run in runs if run.seed == 0} & {run.student for run in runs if run.seed != 0}
        assert students >= {run.student for run in target_runs(job, 12)[:5]}
        found = evaluated[1]["ceiling"]["target"]
        assert (found["students"], found["runs"]) == (len(students), sum(run.student in students for run in runs))
        assert -1 <= found["between_runs"]["low"] <= found["between_runs"]["high"] <= 1
        assert len(target.runs_pct) == len(target.all) > len(students)
        of_all, of_some = (ceiling(runs) for runs in (target.runs_pct, [r for r in target.runs_pct if len(r) > 1]))
        assert of_all is not None
        assert found == asdict(of_all)
        assert of_all != of_some

    def test_the_runs_of_other_seeds_and_finals_are_not_ranked(self, collected: Path) -> None:
        _, target = ranked_students(collected)
        assert {record.run.seed for record in target.ranked} == {0}
        assert len({record.run.student for record in target.ranked}) == len(target.ranked)


def test_short_kd_is_of_so_many_epochs(place: Path) -> None:
    short = (*SMOKE, "--methods", "short_kd", "--seeds", "1", "--store", place, "--json")
    found = json.loads(call(*short, "--set", "evaluate.short_epochs=1").out)
    assert found["groups"] == {"short_kd": "short training"}
    assert json.loads(call(*short, "--set", "evaluate.short_epochs=1", "--dry-run").out)["pending"] == 0
    assert json.loads(call(*short, "--set", "evaluate.short_epochs=2", "--dry-run").out)["pending"] == 1


class TestTable:
    def test_it_shows_all_methods_best_first_and_says_what_the_times_are(
        self, evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        store, found = evaluated
        before = tree(store)
        page = tmp_path / "page.html"
        answer = call(*SOME, "--store", store, "--output", page)
        assert answer.code == 0
        lines = answer.out.splitlines()
        assert [line.split()[0] for line in lines[2 : 2 + len(METHODS)]] == found["order"]
        assert lines[1].split() == (
            [
                "method",
                "group",
                "target",
                "in",
                "bands",
                "Kendall",
                "regret@1",
                "regret@5",
                "per",
                "candidate",
                "to",
                "adapt",
            ]
        )
        assert "on one thread" in lines[-1]
        assert "label-noise ceiling" in lines[-2]
        assert all(f">{name}<" in page.read_text() for name in METHODS)
        assert tree(store) == before  # nothing was left to score

    def test_a_dry_run_tells_what_is_left_and_changes_nothing(self, place: Path) -> None:
        before = tree(place)
        answer = call(*SOME, "--store", place, "--dry-run", "--json")
        found = json.loads(answer.out)
        assert (found["pending"], found["dry_run"]) == (1 + 5 * 2, True)
        assert tree(place) == before

    def test_ablations_are_there_by_name(self, place: Path) -> None:
        answer = call(
            *SMOKE, "--methods", "dass:first_order", "--methods", "depth", "--seeds", "1", "--store", place, "--json"
        )
        found = json.loads(answer.out)["methods"]
        assert set(found) == {"dass:first_order", "depth"}
        assert found["dass:first_order"]["spearman"]["target"]["low"] is None  # one seed

    def test_students_shown_to_a_method_are_ranked_by_none(self, place: Path, collected: Path) -> None:
        support = ("--set", "meta.support_students=2", "--set", "meta.queries=1")
        answer = call(*SMOKE, *support, "--methods", "maml,macs", "--seeds", "1", "--store", place, "--json")
        found = json.loads(answer.out)["records"]["target"]
        _, target = ranked_students(collected)
        assert (found["students"], found["shown"]) == (len(target.ranked) - 2, 2)
        assert found["hash"] != target.set_id


class TestGoingOn:
    def test_one_left_off_between_methods_goes_on_and_ends_as_undisturbed(
        self, evaluated: tuple[Path, dict[str, Any]], place: Path
    ) -> None:
        job = open_smoke(place)
        found = learnable(job)
        targets = find_targets(job, (), (record.run.id for record in found.records))
        methods = Catalog(job.config.meta, job.config.meta_d2a, job.config.tans).choose(METHODS)
        evaluation = Evaluation(job, methods, 2, targets, found)
        assert len(list(islice(evaluation.measure({}), 6))) == 6  # up to the first seed of maml
        first = results(place)
        assert len(first) == 6
        answer = call(*SOME, "--store", place, "--json")
        after = results(place)
        assert {name: after[name] for name in first} == first
        assert without_times(json.loads(answer.out)) == without_times(evaluated[1])
        assert list((place / "checkpoints").rglob("*-*")) == []

    def test_one_killed_at_any_moment_goes_on(self, evaluated: tuple[Path, dict[str, Any]], place: Path) -> None:
        command = [sys.executable, "-m", "jobs", *SOME, "--store", str(place)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while len(results(place)) < 4 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        process.kill()
        process.wait()
        first = results(place)
        assert first
        answer = call(*SOME, "--store", place, "--json")
        assert {name: results(place)[name] for name in first} == first
        assert without_times(json.loads(answer.out)) == without_times(evaluated[1])

    def test_more_records_are_refused_unless_begun_anew(
        self, evaluated: tuple[Path, dict[str, Any]], tmp_path: Path
    ) -> None:
        store = shutil.copytree(evaluated[0], tmp_path / "more")
        job = open_smoke(store)
        add_copy(job, student=job.space.largest)
        before = tree(store)
        answer = call(*SOME, "--store", store)
        assert answer.code == 2
        assert f"began with records {evaluated[1]['records']['target']['hash']}, got" in answer.error
        assert tree(store) == before
        few = (*SMOKE, "--methods", "macs", "--store", store)
        anew = json.loads(call(*few, "--anew", "--json").out)
        assert anew["records"]["target"]["students"] == evaluated[1]["records"]["target"]["students"] + 1
        assert call(*few).code == 0  # that is what it goes on with

    def test_other_records_of_the_meta_training_concern_what_is_meta_learned_alone(
        self, evaluated: tuple[Path, dict[str, Any]]
    ) -> None:
        fewer = ("--set", "collect.students_per_task=2", "--anew", "--dry-run", "--json", "--store", evaluated[0])
        assert json.loads(call(*SOME, *fewer).out)["pending"] == 2 * len(("maml", "tans", "dass"))

    def test_a_result_of_other_records_is_refused(self, evaluated: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
        store = shutil.copytree(evaluated[0], tmp_path / "mixed")
        name, data = next(iter(results(store).items()))
        value = json.loads(data)["value"]
        (store / "documents" / "evaluation" / name).unlink()
        put_document(FolderStore(store), "evaluation", name.removesuffix(".json"), {**value, "records": "0" * 32})
        answer = call(*SOME, "--store", store)
        assert answer.code == 1
        assert f"scores of the records {'0' * 32} instead of {value['records']}" in answer.error


class TestBadInput:
    @pytest.mark.parametrize(
        ("args", "part"),
        [
            (("--methods", "snipe"), "a method must be one of params, macs, depth, random, grad_norm,"),
            (("--seeds", "0"), "--seeds must be >= 1, got 0"),
            (("--records", "mine"), "'mine' is not one of 'store', 'shipped'"),
            (("--output", "page.txt"), "--output must be a file ending in .html in a folder that exists, got page.txt"),
            (("--set", "collect.sample_seed=3"), "meta-training needs records, got none of 9 planned"),
            (("--set", "student.lr=0.5"), "meta-training needs records"),
            (("--set", "evaluate.bands=0"), "evaluate.bands must be >= 1, got 0"),
        ],
    )
    def test_it_is_one_error_and_nothing_changes(self, args: tuple[str, ...], part: str, collected: Path) -> None:
        before = tree(collected)
        answer = call(*SMOKE, *args, "--store", collected)
        assert (answer.code, answer.out) == (2, "")
        assert part in answer.error
        assert tree(collected) == before

    def test_a_method_that_the_recipe_rules_out_is_refused_at_once(self, collected: Path) -> None:
        answer = call(*SMOKE, "--methods", "macs,snip+remap", "--set", "student.init=scratch", "--store", collected)
        assert (answer.code, answer.error) == (
            2,
            "error: snip+remap cannot be computed with student.init='scratch'; set it to a copy_paste mode, or choose other "
            "methods",
        )

    def test_a_target_of_too_few_students_is_refused(self, done: Path) -> None:
        before = tree(done)
        answer = call(*SMOKE, "--store", done)
        assert answer.code == 2
        assert "a target needs at least 6 finished students to rank, got 2 of task target" in answer.error
        assert tree(done) == before

    def test_a_source_without_records_is_refused(self, collected: Path) -> None:
        before = tree(collected)
        answer = call(*SMOKE, "--data", "digits", "--store", collected)
        assert answer.code == 2
        assert "a target needs at least 6 finished students to rank, got 0 of task digits" in answer.error
        assert tree(collected) == before

    def test_a_recipe_without_a_target_is_refused(self, collected: Path) -> None:
        job = replace(open_smoke(collected), dry_run=True)
        config = with_settings(get_recipe("smoke"), ["data.target_classes=0", "data.train_tasks=3"])
        with pytest.raises(DataError):  # other tasks, so there are no records of them either
            evaluate.run(replace(job, config=config, console=Console(is_json=True)))

    def test_students_of_two_teachers_are_refused(self, place: Path) -> None:
        job = open_smoke(place)
        add_copy(job, teacher="f" * 32)
        changed = with_settings(job.config, ["teacher.epochs=2"])  # none is this recipe's teacher
        with pytest.raises(DataError, match="the students of a target must come from one teacher, got 2"):
            find_targets(replace(job, config=changed), (), ())


def test_a_recipe_may_name_more_targets_and_data_replaces_them_all(place: Path) -> None:
    """The second target's students are those of the first, made over to other images, with accuracies turned round."""
    job, first = ranked_students(place)
    whole = job.whole_source("digits")
    for record in first.ranked:
        result = replace(record.result, best_accuracy_pct=100 - record.result.best_accuracy_pct)
        job.database.add(replace(record, run=replace(record.run, task=whole.id), result=result))
    some = (*SMOKE, "--methods", "macs,depth,random", "--seeds", "2", "--store", place, "--json")
    answer = call(*some, "--set", 'evaluate.targets=["digits"]')
    assert answer.code == 0, answer.err
    both = json.loads(answer.out)
    for name in ("macs", "depth"):
        found = both["methods"][name]["spearman"]
        assert found["digits"]["mean"] == pytest.approx(-found["target"]["mean"])
        assert both["overall"][name]["spearman"]["mean"] == pytest.approx(0, abs=1e-9)
    assert both["records"]["digits"]["hash"] != both["records"]["target"]["hash"]
    answer = call(*some, "--data", "digits")
    assert answer.code == 0, answer.err
    alone = json.loads(answer.out)
    assert set(alone["records"]) == {"digits"}
    assert alone["methods"]["random"]["spearman"]["digits"] == both["methods"]["random"]["spearman"]["digits"]


def test_sizes_of_students_are_what_their_scorers_say(evaluated: tuple[Path, dict[str, Any]], place: Path) -> None:
    """The trivial group, from the command line to the stored scores."""
    assert call(*SMOKE, "--methods", "params", "--store", place).code == 0
    _, target = ranked_students(place)
    (value,) = (json.loads(data)["value"] for data in results(place).values())
    assert value["scores"] == [float(np.float32(count_params(record.run.student, 3))) for record in target.ranked]
