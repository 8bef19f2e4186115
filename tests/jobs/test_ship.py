"""A benchmark in a folder: methods are compared again from it, without images and without a teacher's weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import dass.zoo
from cluster.objects import FolderStore
from cluster.plan import Plan
from jobs import shipped
from tests.jobs.command import call, tree
from tests.jobs.prepared import open_smoke, train
from tests.jobs.test_evaluate import target_runs

METHODS = ("macs", "random", "grad_norm+remap", "meta_d2a", "maml", "dass")
OPTIONS = ("--methods", ",".join(METHODS), "--seeds", "2")


@pytest.fixture(scope="module")
def original(done: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A store with an evaluation, and its document; not to be written to."""
    store = shutil.copytree(done, tmp_path_factory.mktemp("original") / "store")
    job = open_smoke(store)
    runs = target_runs(job, 8)
    train(job, Plan("collect", tuple(runs)))
    train(job, Plan("repeats", tuple(replace(run, seed=9) for run in runs[:3])))
    answer = call("evaluate", "--recipe", "smoke", *OPTIONS, "--store", store, "--json")
    assert answer.code == 0, answer.err
    return store, json.loads(answer.out)


@pytest.fixture(scope="module")
def folder(original: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `ship` wrote of it."""
    output = tmp_path_factory.mktemp("shipped") / "records"
    answer = call("ship", "--recipe", "smoke", *OPTIONS, "--store", original[0], "--output", output, "--json")
    assert answer.code == 0, answer.err
    return output


@pytest.fixture
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package with this folder as its records."""
    monkeypatch.setattr(dass.zoo, "RECORDS", folder)
    return folder


def evaluated(store: Path, *options: str) -> dict[str, Any]:
    answer = call("evaluate", "--records", "shipped", "--seeds", "2", "--store", store, "--json", *options)
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def test_the_folder_has_no_image_and_no_weights(original: tuple[Path, dict[str, Any]], folder: Path) -> None:
    job = open_smoke(original[0])
    weights = {record.weights for record in job.database.scan() if record.weights}
    assert weights
    kept = {Path(key).name for key in FolderStore(folder).list()}
    assert not weights & kept
    assert not any(key.startswith(("data/", "checkpoints/", "events/")) for key in tree(folder))
    assert (len(weights), len(list(FolderStore(folder).list("records/loose")))) == (len(weights), 0)


def test_its_results_are_those_of_the_original(
    original: tuple[Path, dict[str, Any]], installed: Path, tmp_path: Path
) -> None:
    before = tree(installed)
    found = evaluated(tmp_path)
    for name in ("methods", "order", "records", "ceiling", "failed"):
        assert found[name] == original[1][name]
    assert tree(installed) == before


def test_meta_learned_methods_can_be_trained_again_from_it(
    original: tuple[Path, dict[str, Any]], installed: Path, tmp_path: Path
) -> None:
    found = evaluated(tmp_path, "--retrain")
    for name in METHODS:
        again, first = (document["methods"][name] for document in (found, original[1]))
        for metric in ("spearman", "spearman_in_bands", "kendall", "regret_1", "regret_5"):
            assert again[metric]["target"] == pytest.approx(first[metric]["target"], nan_ok=True)
        is_learned = name in ("meta_d2a", "maml", "dass")
        assert (again["seconds_per_candidate"]["target"]["mean"] is None) == is_learned
    manifest = shipped.read_manifest(FolderStore(installed))
    assert (tmp_path / f"shipped-{manifest.records[:8]}-retrained").is_dir()


def test_a_dry_run_writes_nothing(installed: Path, tmp_path: Path) -> None:
    before = tree(installed)
    assert evaluated(tmp_path, "--dry-run")["pending"] == 0
    assert not tree(tmp_path)
    assert tree(installed) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--records", "shipped", "--seeds", "3"), "the shipped records have results of 2 seeds, got --seeds 3"),
        (
            ("--records", "shipped", "--recipe", "smoke"),
            "--records shipped has its own recipe and targets, got --recipe",
        ),
        (("--records", "shipped", "--data", "digits"), "--records shipped has its own recipe and targets, got --data"),
        (("--retrain",), "--retrain is for shipped records"),
    ],
)
def test_options_without_a_meaning_are_errors(
    options: tuple[str, ...], message: str, installed: Path, tmp_path: Path
) -> None:
    assert installed.is_dir()
    answer = call("evaluate", *options, "--store", tmp_path / "store")
    assert answer.code == 2
    assert message in answer.error


def test_ship_asks_for_a_new_folder_and_all_results(original: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    options = ("ship", "--recipe", "smoke", "--store", original[0], "--methods", ",".join(METHODS))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    answer = call(*options, "--seeds", "2", "--output", tmp_path / "full")
    assert (answer.code, "--output must be a new folder" in answer.error) == (2, True)
    answer = call(*options, "--seeds", "3", "--output", tmp_path / "new")
    assert answer.code == 2
    assert "run `evaluate --seeds 3`" in answer.error
    assert not (tmp_path / "new").exists()
