"""How far the predictor can be trusted: found on tasks held out, kept in the store, told by `search`."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.documents import get_document, get_latest, list_documents, put_latest
from dass.embed import Embedder, draw_noise
from dass.meta.calibration_file import from_document
from dass.meta.novelty import sketch
from dass.search.advice import LEVEL, TOP_SHARE
from dass.search.confidence import head_confidence
from dass.spaces import get_space
from dass.zoo import load
from jobs import collect
from jobs.calibrate import known_calibration
from jobs.config import with_settings
from jobs.console import Console
from jobs.evaluation_records import targets_elsewhere
from jobs.job import Job
from jobs.recipes import get_recipe
from jobs.target import find_teacher
from tests.jobs.command import call, tree
from tests.jobs.images import save_weights, write_images
from tests.jobs.prepared import train

MORE = "collect.students_per_task=6"
SMOKE = ("--recipe", "smoke", "--set", MORE)


def open_more(folder: Path) -> Job:
    return Job.open(with_settings(get_recipe("smoke"), [MORE]), str(folder), Console(is_json=True), dry_run=False)


@pytest.fixture(scope="module")
def calibrated(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with six students a task, a predictor and its calibration; not to be written to."""
    store = shutil.copytree(done, tmp_path_factory.mktemp("calibrated") / "store")
    job = open_more(store)
    train(job, collect.plan(job, job.tasks()))
    for verb in ("meta-train", "calibrate", "search"):
        answer = call(verb, *SMOKE, "--store", store)
        assert answer.code == 0, answer.err
    return store


def test_every_task_was_held_out_by_a_predictor_that_never_saw_it(calibrated: Path) -> None:
    job = open_more(calibrated)
    sha = get_latest(job.store, "predictor", predictor=str)["predictor"]
    value = get_latest(job.store, f"calibration-{sha}")
    tasks = {task.name: task for task in job.tasks().meta}
    assert [each["name"] for each in value["held_out"]] == list(tasks)
    for each in value["held_out"]:
        of_task = [record for record in job.database.scan() if record.run.task == tasks[each["name"]].id]
        accuracies = [record.result.best_accuracy_pct or 0.0 for record in of_task if record.run.teacher]
        assert sorted(each["accuracies_pct"]) == pytest.approx(sorted(accuracies), rel=1e-6)
    calibration = known_calibration(job, sha)
    assert calibration is not None
    assert calibration == from_document(value["calibration"])
    assert known_calibration(job, "0" * 64) is None


def test_a_search_tells_what_the_calibration_says_of_its_ranking(calibrated: Path) -> None:
    job = open_more(calibrated)
    target = job.tasks().target
    assert target is not None
    found = get_latest(job.store, f"search-{target.id}")
    calibration = known_calibration(job, found["predictor"])
    assert calibration is not None
    advice, scores = found["advice"], [each["score"] for each in found["candidates"]]
    assert advice["predicted_pct"] == pytest.approx(scores[0], rel=1e-6)
    interval = calibration.interval(scores[0], LEVEL, TOP_SHARE)
    assert advice["interval_pct"] == (None if interval is None else pytest.approx(list(interval)))
    if calibration.unit == "points":
        head = head_confidence(calibration, torch.tensor(scores))
        assert advice["head"]["beats_runner_up"] == pytest.approx(head.beats_runner_up)
    teacher = find_teacher(job, target)
    embedder = Embedder(teacher.state, teacher.student, draw_noise(16))
    assert sketch(embedder.maps([teacher.student])[0], teacher.accuracy_pct).accuracy_pct == teacher.accuracy_pct
    assert len(advice["sentences"]) == 3 + bool(advice["novelty"]["reasons"])
    answer = call("search", *SMOKE, "--store", calibrated, "--json")
    assert json.loads(answer.out)["advice"] == advice


def test_what_was_held_out_is_not_held_out_again(calibrated: Path, tmp_path: Path) -> None:
    store = shutil.copytree(calibrated, tmp_path / "store")
    job = open_more(store)
    sha = get_latest(job.store, "predictor", predictor=str)["predictor"]
    name = f"calibration-{sha}"
    whole = get_latest(job.store, name)
    before = call("calibrate", *SMOKE, "--store", store, "--json")
    assert "hold out" not in before.err
    put_latest(job.store, name, {"predictor": sha, "held_out": whole["held_out"][:1]})
    after = call("calibrate", *SMOKE, "--store", store, "--json")
    assert "hold out 1 of 3" not in after.err
    assert "hold out 3 of 3" in after.err
    assert get_latest(job.store, name) == whole
    assert json.loads(after.out) == json.loads(before.out)


def test_targets_with_students_are_tasks_elsewhere(calibrated: Path, pets: tuple[str, Path], tmp_path: Path) -> None:
    """What the predictor says of them is what `evaluate` finds that it says, and nothing else changes."""
    store = shutil.copytree(calibrated, tmp_path / "store")
    more = [MORE, "collect.target_students=6", f'evaluate.targets=["{pets[0]}"]']
    job = Job.open(with_settings(get_recipe("smoke"), more), str(store), Console(is_json=True), dry_run=False)
    settings = [part for each in more for part in ("--set", each)]
    told = ("--recipe", "smoke", *settings, "--store", str(store))
    options = (*told, "--json")
    assert "Without pets: a target needs at least 6 finished students to rank, got 0" in call("calibrate", *told).out
    train(job, collect.plan(job, job.tasks()))
    sha = get_latest(job.store, "predictor", predictor=str)["predictor"]
    before = known_calibration(job, sha)
    answer = call("calibrate", *options)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["elsewhere"] == ["pets"]
    after = known_calibration(job, sha)
    assert after is not None
    assert replace(after, elsewhere=()) == before
    assert call("evaluate", *options, "--methods", "dass").code == 0
    results = [get_document(job.store, "evaluation", name) for name in list_documents(job.store, "evaluation")]
    seed = job.config.meta.seed
    (scored,) = (each for each in results if (each["target"], each["seed"]) == ("pets", seed))
    (target,) = targets_elsewhere(job)
    errors = np.subtract(target.accuracies_pct, scored["scores"])[np.argsort(scored["scores"], stable=True)[::-1]]
    assert after.elsewhere[0].errors_pct == pytest.approx(errors, abs=1e-3)


def test_a_target_that_cannot_be_read_is_told_before_anything_is_trained(calibrated: Path, tmp_path: Path) -> None:
    store = shutil.copytree(calibrated, tmp_path / "store")
    before = tree(store)
    answer = call("calibrate", *SMOKE, "--set", 'evaluate.targets=["imagefolder:/nowhere"]', "--store", store)
    assert answer.code == 2
    assert "/nowhere" in answer.err
    assert tree(store) == before


@pytest.fixture(scope="module")
def exported(calibrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store's predictor as a file with its calibration beside it."""
    file = tmp_path_factory.mktemp("exported") / "predictor.safetensors"
    answer = call("calibrate", *SMOKE, "--store", calibrated, "--output", file)
    assert (answer.code, answer.out.splitlines()[-1]) == (
        0,
        f"predictor written to {file}, its calibration beside it",
    )
    return file


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Images that no predictor has seen, and a teacher of them."""
    folder = tmp_path_factory.mktemp("pets")
    images = write_images(folder / "pets", {"cat": 12, "dog": 12})
    return images, save_weights(folder / "teacher.safetensors", get_space("smoke").largest, 2)


def test_a_ranking_in_python_says_how_sure_it_is(exported: Path, pets: tuple[str, Path]) -> None:
    ranking = load(exported).rank(*pets, candidates=30)
    assert ranking.advice is not None
    assert ranking.advice.predicted_pct == pytest.approx(ranking.best.score)
    assert all(sentence in repr(ranking) for sentence in ranking.advice.sentences)


def test_a_search_may_ask_the_packages_predictor_in_a_store_that_has_none(
    calibrated: Path, exported: Path, pets: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, weights = pets
    args = ("--data", images, "--teacher", weights, "--json")
    mine = shutil.copytree(calibrated, tmp_path / "mine")
    expected = json.loads(call("search", *SMOKE, "--store", mine, *args).out)

    package = ("--recipe", "smoke", "--set", "predictor=package", "--store", tmp_path / "fresh")
    refused = call("search", *package, *args)
    assert refused.code == 2
    assert "a predictor ranks only what it was made for: its space is 'paper5_w8', got 'smoke'" in refused.error
    assert not (tmp_path / "fresh").exists()
    monkeypatch.setattr("dass.zoo.files.PREDICTOR", exported)
    other = call("search", *package, "--set", "data.resolution=24", *args)
    assert "a predictor ranks only what it was made for: its resolution is 16, got 24" in other.error
    answer = call("search", *package, *args)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["candidates"] == expected["candidates"]
    assert (found["predictor"], found["advice"]) == (expected["predictor"], expected["advice"])
    distilled = call(
        "distil", *package, "--data", images, "--set", "distil.controls=false", "--output", tmp_path / "student"
    )
    assert distilled.code == 0, distilled.err
    assert (tmp_path / "student").is_file()
    assert call("report", *package, "--data", images).code == 0


def test_a_calibration_that_would_take_the_predictors_place_is_refused(calibrated: Path, tmp_path: Path) -> None:
    answer = call("calibrate", *SMOKE, "--store", calibrated, "--output", tmp_path / "predictor.json")
    assert answer.code == 2
    assert "name it predictor.safetensors" in answer.error


def test_a_dry_run_writes_nothing(calibrated: Path, tmp_path: Path) -> None:
    store = shutil.copytree(calibrated, tmp_path / "store")
    before = tree(store)
    answer = call("calibrate", *SMOKE, "--store", store, "--dry-run", "--json")
    assert json.loads(answer.out) == {"groups": 3, "dry_run": True}
    assert tree(store) == before


def test_a_predictor_of_other_records_is_refused(store: Path) -> None:
    answer = call("calibrate", "--recipe", "smoke", "--set", "meta.seed=9", "--store", store)
    assert answer.code == 2
    assert "got another in the store; run `meta-train` first" in answer.error


def test_a_search_without_a_calibration_says_nothing_of_it(store: Path) -> None:
    answer = call("search", "--recipe", "smoke", "--store", store, "--json")
    assert json.loads(answer.out)["advice"] is None
