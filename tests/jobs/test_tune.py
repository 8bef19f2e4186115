"""`meta-train --tune N` as a person calls it, killed in the middle with SIGKILL, and run again."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.documents import put_latest
from cluster.objects import FolderStore
from cluster.weights import get_blob
from dass.meta.held_out import held_out
from dass.predictor import load_predictor
from jobs.config import with_settings
from jobs.console import Console
from jobs.job import Job
from jobs.meta_train import current, features, learnable, spec_of
from jobs.recipes import get_recipe
from tests.jobs.command import ROOT, Answer, call, tree
from tests.jobs.prepared import prepare

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations

LENGTH = ("--set", "meta.episodes=6", "--set", "meta.eval_every=1")
TUNE = ("meta-train", "--recipe", "smoke", "--tune", "4", *LENGTH, "--set", "tune.finalists=2", "--set", "tune.seeds=2")
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the smoke recipe's records and its predictor of one seed; not to be written to."""
    return prepare(tmp_path_factory.mktemp("smoke") / "store")


@pytest.fixture(scope="module")
def tuned(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The store after a tuning that nothing disturbed, and what the command said."""
    store = shutil.copytree(collected, tmp_path_factory.mktemp("tuned") / "store")
    return store, call(*TUNE, "--store", store)


def latest(store: Path, name: str) -> dict[str, Any]:
    value = json.loads((store / f"documents/latest/{name}.json").read_text())["value"]
    assert isinstance(value, dict)
    return value


def entries(store: Path) -> dict[str, dict[str, Any]]:
    """The trials of the ledger by number."""
    paths = store.glob("tuning/*/trials/*.json")
    return {path.stem: json.loads(path.read_text())["value"] for path in paths}


def test_the_winner_has_the_highest_mean_over_seeds_and_becomes_the_stores_predictor(
    tuned: tuple[Path, Answer],
) -> None:
    store, answer = tuned
    assert answer.code == 0, answer.err
    report, pointer = latest(store, "tuning"), latest(store, "predictor")
    assert [trial["number"] for trial in report["trials"]] == [0, 1, 2, 3]
    finals = {trial["number"]: trial["seed_spearmans"] for trial in report["trials"] if trial["seed_spearmans"]}
    assert [len(values) for values in finals.values()] == [2, 2]
    means = {number: sum(values) / 2 for number, values in finals.items()}
    assert means[report["winner"]] == max(means.values())
    assert pointer["tuning"]["winner"] == report["winner"]
    assert pointer["valid_spearman"] == max(finals[report["winner"]])
    assert pointer["valid_spearman"] == max(point["valid_spearman"] or -2 for point in pointer["curve"])
    predictor = load_predictor(get_blob(FolderStore(store), pointer["predictor"]))
    assert predictor.spec.hidden_dim == pointer["tuning"]["config"]["hidden_dim"]
    assert list(FolderStore(store).list("checkpoints/")) == []


def test_the_table_has_the_winner_first_and_every_trial_once(tuned: tuple[Path, Answer]) -> None:
    store, answer = tuned
    report = latest(store, "tuning")
    title, header, *rows = answer.out.splitlines()
    assert (title.strip(), header.split()[0]) == ("Settings tried", "number")
    numbers = [int(row.split()[0]) for row in rows[:4]]
    assert numbers[0] == report["winner"]
    assert sorted(numbers) == [0, 1, 2, 3]
    names = report["trials"][0]["settings"]
    assert set(header.split()[1 : 1 + len(names)]) == set(names)
    assert rows[4].startswith(f"Predictor {latest(store, 'predictor')['predictor'][:12]}")


def test_a_tuning_is_done_once_and_an_untuned_predictor_takes_its_place_with_a_word(
    tuned: tuple[Path, Answer], tmp_path: Path
) -> None:
    store = shutil.copytree(tuned[0], tmp_path / "store")
    before = tree(store)
    again = call(*TUNE, "--store", store)
    assert "was tuned from these records already" in again.err
    assert tree(store) == before
    untuned = call("meta-train", "--recipe", "smoke", "--store", store)
    assert "`meta-train --tune 4` brings it back" in untuned.err
    assert "tuning" not in latest(store, "predictor")
    back = call(*TUNE, "--store", store)  # from the ledger alone
    assert back.code == 0
    assert latest(store, "predictor") == latest(tuned[0], "predictor")
    assert tree(store / "tuning") == tree(tuned[0] / "tuning")


def test_a_tuned_predictor_is_calibrated_with_the_settings_that_it_was_found_with(
    tuned: tuple[Path, Answer], tmp_path: Path
) -> None:
    store = shutil.copytree(tuned[0], tmp_path / "store")
    pointer = latest(store, "predictor")
    pointer["tuning"]["config"]["lr"] = 0.003  # as if a trial with this rate had won
    put_latest(FolderStore(store), "predictor", pointer)
    answer = call("calibrate", "--recipe", "smoke", *LENGTH, "--store", store)
    assert answer.code == 0, answer.err
    job = Job.open(with_settings(get_recipe("smoke"), LENGTH[1::2]), str(store), Console(is_json=True), dry_run=True)
    config = current(job)["tuning"].config
    assert config.lr != job.config.meta.lr
    train, valid = features(job, learnable(job))
    expected = [
        found
        for group in held_out(spec_of(job, 16, config), config, [[t] for t in (*train, *valid)])
        for found in group
    ]
    found = latest(store, f"calibration-{latest(store, 'predictor')['predictor']}")["held_out"]
    assert [tuple(each["predicted_pct"]) for each in found] == [each.predicted_pct for each in expected]
    other = call("calibrate", "--recipe", "smoke", *LENGTH, "--set", "collect.students_per_task=2", "--store", store)
    assert "error: only a predictor that was made from the records of today by this recipe" in other.error


def test_a_killed_tuning_goes_on_and_trains_nothing_twice(
    collected: Path, tuned: tuple[Path, Answer], tmp_path: Path
) -> None:
    store = shutil.copytree(collected, tmp_path / "store")
    command = [sys.executable, "-m", "jobs", *TUNE, "--store", str(store)]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    deadline = time.monotonic() + PATIENCE_S
    while not settled(store) and time.monotonic() < deadline:
        assert driver.poll() is None, "the command ended before it could be killed"
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    before = settled(store)
    assert 1 <= len(before) < 4

    assert call(*TUNE, "--store", store).code == 0
    after = settled(store)
    assert {name: after[name] for name in before} == before
    undisturbed, resumed = entries(tuned[0]), entries(store)
    finished = [name for name in resumed if {undisturbed[name]["status"], resumed[name]["status"]} == {"finished"}]
    assert finished
    for name in finished:
        assert resumed[name]["curve"] == undisturbed[name]["curve"]
        assert resumed[name]["predictor"] == undisturbed[name]["predictor"]


def settled(store: Path) -> dict[str, dict[str, Any]]:
    return {name: entry for name, entry in entries(store).items() if entry["status"] in ("finished", "stopped")}


def test_a_dry_run_counts_and_changes_nothing(collected: Path) -> None:
    before = tree(collected)
    answer = call(*TUNE, "--dry-run", "--store", collected)
    told = "would try 4 settings for at most 6 episodes each, then train the best 2 with 2 seeds each"
    assert answer.out.strip() == told
    value = json.loads(call(*TUNE, "--dry-run", "--json", "--store", collected).out)
    expected = {"trials": 4, "episodes": 6, "finalists": 2, "seeds": 2, "dry_run": True}
    assert {name: value[name] for name in expected} == expected
    assert tree(collected) == before


def test_what_failed_is_tried_again_by_the_same_command(collected: Path, tmp_path: Path) -> None:
    store = shutil.copytree(collected, tmp_path / "store")
    few = ("--set", "tune.seed=3", "--set", "tune.finalists=1", "--set", "tune.seeds=1", "--set", "meta.episodes=1")
    command = ("meta-train", "--recipe", "smoke", "--tune", "2", *few, "--set", f"meta.hidden_dim={2**50}")
    first = call(*command, "--store", store)  # the second trial has another hidden_dim
    assert first.code == 0, first.err
    assert {name: entry["status"] for name, entry in entries(store).items()} == {"0": "failed", "1": "finished"}
    ledger = next(store.glob("tuning/*/trials/0.json"))
    ledger.unlink()
    again = call(*command, "--store", store)
    assert again.code == 0, again.err
    assert ledger.exists()
    assert "already" not in again.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--tune", "0"), "error: --tune must be >= 1, got 0; give the number of settings to try"),
        (("--tune", "2", "--set", "tune.rungs=0"), "tune.rungs must be >= 1, got 0; set tune.rungs"),
        (("--tune", "2", "--set", "tune.trials=3"), "unknown key 'tune.trials'"),
        (("--tune", "x"), "Invalid value for '--tune': "),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_trained(
    args: tuple[str, ...], message: str, collected: Path
) -> None:
    answer = call("meta-train", "--recipe", "smoke", *args, "--store", collected)
    assert answer.code == 2
    assert message in answer.error
