"""The verbs as a person or a script calls them, on a store in which the smoke recipe is done already."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dass.networks import build
from dass.precision import rounding
from dass.records import Student
from dass.spaces import get_space
from dass.tensors import unpack_tensors
from jobs.config import keys, with_settings
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import RECIPES, get_recipe
from tests.jobs.command import ROOT, Answer, call, plain_text, spawn, tree
from tests.jobs.images import save_weights, write_images
from tests.jobs.prepared import final_plan, open_smoke

WORKING = ("data", "teachers", "collect", "meta-train", "search", "distil", "report", "quickstart")
VERBS = (*WORKING, "learning-curve", "status", "keys")
FROM_NOTHING = ("data", "teachers", "collect", "quickstart", "report")
SMOKE = ("--recipe", "smoke")


def document(answer: Answer) -> dict[str, Any]:
    """The one JSON document on stdout."""
    assert answer.code == 0, answer.err
    value = json.loads(answer.out)
    assert isinstance(value, dict)
    return value


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_its_options_and_their_defaults(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = call(verb, "--help")
    assert (answer.code, answer.err) == (0, "")
    shown = plain_text(answer.out)
    assert f"{verb} [OPTIONS]" in shown
    recipe = "digits" if verb in ("meta-train", "learning-curve") else "quickstart"
    defaults = {"--store": "default: ./dass-store", "--recipe": f"default: {recipe}"}
    expected = {"keys": {"--recipe"}}.get(verb, set(defaults))
    for option, default in defaults.items():
        assert (default in shown) == (option in shown) == (option in expected)
    assert ("--dry-run" in shown) == (verb in WORKING)
    assert "--set" in shown


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_without_a_verb_all_of_them_are_listed(args: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = call(*args)
    assert (answer.code, answer.err) == (0, "")
    assert all(f" {verb} " in plain_text(answer.out) for verb in VERBS)


def test_help_names_the_recipes_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert ", ".join(RECIPES) in plain_text(call("collect", "--help").out)


def test_keys_lists_each_key_on_a_line_with_type_value_and_meaning() -> None:
    answer = call("keys", *SMOKE, "--set", "student.lr=0.125", "--set", "distil.seeds=[4, 5]")
    title, header, *rows = (line.rstrip() for line in answer.out.splitlines())
    assert (title, header.split()) == ("Keys of recipe smoke", ["key", "type", "value", "meaning"])
    expected = list(keys(get_recipe("smoke")))
    assert [row.split()[0] for row in rows] == [key for key, *_ in expected]
    assert all(row.endswith(meaning) for row, (*_, meaning) in zip(rows, expected, strict=True))
    by_key = {row.split()[0]: " ".join(row.split()[1:]) for row in rows}
    assert by_key["student.lr"].startswith("float 0.125 learning rate")
    assert by_key["distil.seeds"].startswith("[int, ...] [4, 5] one run per seed")
    assert by_key["student.crop_padding"].startswith("int | none 1 zero padding of the random crop in pixels")


def test_keys_shows_what_a_toml_recipe_comes_to(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "smoke"\n[collect]\nseed = 77\n')
    rows = call("keys", "--recipe", tmp_path / "mine.toml").out.splitlines()
    assert next(row.split()[2] for row in rows if row.startswith("collect.seed ")) == "77"


# Wrong usage


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["colect"], "No such command 'colect'. Did you mean 'collect', 'compact'? See `"),
        (["xyzzy"], "No such command 'xyzzy'. See `"),
        (["collect", "--reciepe", "smoke"], "No such option: --reciepe (Possible options: --recipe). See `"),
        (["--store", "x", "data"], "No such option: --store. See `"),
        (["data", "--recipe"], "Option '--recipe' requires an argument. See `--help`."),
        (["data", "--dry-run=yes"], "Option '--dry-run' does not take a value. See `--help`."),
        (["status", "extra"], "Got unexpected extra argument(s) (extra). See `"),
        (["keys", "--json"], "No such option: --json"),
    ],
)
def test_wrong_usage_is_one_line_that_says_where_to_look(args: list[str], message: str) -> None:
    answer = call(*args)
    assert (answer.code, answer.out) == (2, "")
    assert answer.error.startswith(f"error: {message}")
    assert answer.error.endswith("--help`.")
    assert len(answer.err.splitlines()) == 1


# Processes of their own


def test_as_a_process_stdout_is_one_json_document_and_nothing_else(done: Path) -> None:
    answer = spawn("status", "--json", "--store", done)
    assert document(answer)["planned"] == 15 + len(final_plan(open_smoke(done)).runs)
    assert answer.err == ""


def test_as_a_process_a_failure_leaves_stdout_empty_and_no_traceback(tmp_path: Path) -> None:
    answer = spawn("collect", *SMOKE, "--json", "--store", tmp_path / "store", "--jason")
    assert (answer.code, answer.out) == (2, "")
    assert (
        answer.error
        == "error: No such option: --jason (Possible options: --json). See `python -m jobs collect --help`."
    )


def test_a_terminated_command_says_so_and_exits_with_130(tmp_path: Path) -> None:
    pipe = tmp_path / "recipe.toml"  # reading it blocks as long as a writer has it open
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "jobs", "keys", "--recipe", str(pipe)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    with process, pipe.open("w"):  # opening waits until the command has opened it to read
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err == "interrupted: what is finished is kept; run the same command again to go on\n"


@pytest.mark.ray
def test_a_command_that_is_terminated_while_its_lanes_start_says_so_too(tmp_path: Path) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-m", "jobs", "teachers", "--recipe", "smoke", "--json", "--store", str(store)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (store / "queue" / "1").exists():
        assert process.poll() is None, "the command ended before it could be terminated"
        time.sleep(0.1)
    time.sleep(4)  # the lanes are being started: a call to Ray is under way
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), error
    assert error.splitlines()[-1].startswith("interrupted: what is finished is kept")


# Learning curve


def test_a_learning_curve_of_a_handful_of_records_says_that_they_are_too_few(done: Path) -> None:
    before = tree(done)
    found = document(call("learning-curve", *SMOKE, "--json", "--store", done))
    assert {point["records"] for point in found["points"]} <= {4, 6}  # of two tasks with three students each
    assert found["gains"] == []
    assert "too few records" in call("learning-curve", *SMOKE, "--store", done).out
    assert tree(done) == before


# Dry runs


@pytest.mark.parametrize("verb", FROM_NOTHING)
def test_a_dry_run_does_not_even_make_the_store(verb: str, tmp_path: Path) -> None:
    store = tmp_path / "new" / "store"
    assert document(call(verb, *SMOKE, "--dry-run", "--json", "--store", store))["dry_run"] is True
    assert call(verb, *SMOKE, "--dry-run", "--store", store).code == 0
    assert tree(tmp_path) == {}


@pytest.mark.parametrize("verb", WORKING)
def test_a_dry_run_leaves_a_store_as_it_is(verb: str, done: Path) -> None:
    before = tree(done)
    assert document(call(verb, *SMOKE, "--dry-run", "--json", "--store", done))["dry_run"] is True
    assert tree(done) == before


def test_a_dry_run_says_what_there_would_be_to_do(tmp_path: Path) -> None:
    store = ("--dry-run", "--store", tmp_path / "store")
    assert "would train 4 of 4 teachers" in call("teachers", *SMOKE, *store).out
    collection = document(call("collect", *SMOKE, *store, "--json"))
    assert (collection["planned"], collection["pending"]) == (15, 15)
    rows = document(call("data", *SMOKE, *store, "--json"))["tasks"]
    assert [row["role"] for row in rows] == ["meta-train", "meta-train", "meta-valid", "target"]
    assert [row["classes"] for row in rows] == [2, 2, 2, 3]


def test_a_dry_search_checks_an_own_teacher_and_scores_nothing(done: Path, tmp_path: Path) -> None:
    ranking = done / "documents" / "latest"
    before = tree(ranking)
    answer = call("search", *SMOKE, "--dry-run", "--store", done)
    assert "would score 50 students for target, with the teacher at hand" in answer.out
    anew = call("search", *SMOKE, "--dry-run", "--store", done, "--set", "teacher.epochs=2")
    assert "after training its teacher" in anew.out
    assert tree(ranking) == before


# The way from records to a report


def test_verbs_find_their_work_done_and_do_not_do_it_again(store: Path) -> None:
    before = tree(store / "records")
    for verb in ("data", "teachers", "collect", "distil"):
        value = document(call(verb, *SMOKE, "--json", "--store", store))
        assert value.get("pending", 0) == 0
    assert tree(store / "records") == before


def test_a_predictor_is_made_once_from_the_same_records(store: Path) -> None:
    pointer = json.loads((store / "documents/latest/predictor.json").read_text())["value"]
    answer = call("meta-train", *SMOKE, "--json", "--store", store)
    assert document(answer)["predictor"] == pointer["predictor"]
    assert "made from these records already" in answer.err
    again = call("meta-train", *SMOKE, "--store", store, "--set", "meta.seed=5")
    assert "meta-train: done" in again.err
    assert "learned from 9 records" in again.out
    assert (
        json.loads((store / "documents/latest/predictor.json").read_text())["value"]["predictor"]
        != pointer["predictor"]
    )


def test_a_search_shows_the_best_and_stays_in_the_budget(store: Path) -> None:
    answer = call("search", *SMOKE, "--store", store)
    value = document(call("search", *SMOKE, "--json", "--store", store))
    best, *others = value["candidates"]
    assert all(best["score"] >= other["score"] for other in others)
    assert all(candidate["macs"] <= value["max_macs"] for candidate in value["candidates"])
    assert answer.out.startswith(f"Best of {value['scored']} candidates for target")
    assert Student(tuple(map(tuple, best["student"]["widths"]))).key in answer.out


def test_the_distilled_student_is_written_as_weights_with_its_architecture(store: Path, tmp_path: Path) -> None:
    file = tmp_path / "student.safetensors"
    answer = call("distil", *SMOKE, "--json", "--output", file, "--store", store)
    value = document(answer)
    assert set(value["finals"]) >= {"recommended", "largest"}
    state, header = unpack_tensors(file.read_bytes())
    student = Student(tuple(map(tuple, header["student"]["widths"])), header["student"]["family"])
    assert student.key == value["finals"]["recommended"]["student"]
    assert len(header["classes"]) == 3
    build(student, 3).load_state_dict(state)


def test_a_report_is_one_page_beside_the_records(store: Path) -> None:
    value = document(call("report", *SMOKE, "--json", "--store", store))
    page = (store / "report.html").read_text()
    assert value["report"] == str(store / "report.html")
    assert value["verdict"].split(".")[0] in page
    stored = json.loads((store / "report.json").read_text())
    assert stored.items() >= {name: value[name] for name in value.keys() - {"report", "facts", "dry_run"}}.items()
    collected = [record for record in open_smoke(store).database.scan() if record.weights is None]
    distilled = [pct for record in collected if (pct := record.result.best_accuracy_pct) is not None]
    shown = [row[stored["runs"]["columns"].index("accuracy_pct")] for row in stored["runs"]["rows"]]
    assert sorted(shown) == pytest.approx(sorted(distilled), abs=0.005)
    answer = call("report", *SMOKE, "--store", store)
    assert answer.out.splitlines() == [value["verdict"], f"Report: {store / 'report.html'}"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_search_with_own_images_and_teacher_needs_no_training(
    store: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    source = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    teacher = save_weights(tmp_path / "teacher.safetensors", get_space("smoke").largest, 2, dtype)
    args = ("search", *SMOKE, "--json", "--store", store, "--data", source, "--teacher", teacher)
    before = tree(store)
    assert document(call(*args, "--dry-run"))["teacher_is_trained"] is True
    assert tree(store) == before
    value = document(call(*args))
    assert value["target"] == "pets"
    assert document(call(*args))["candidates"] == value["candidates"]
    planned = document(call("distil", *SMOKE, "--json", "--dry-run", "--store", store, "--data", source))["planned"]
    assert 1 <= planned <= 3


def test_a_search_takes_up_images_that_were_added_since(store: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    teacher = save_weights(tmp_path / "teacher.safetensors", get_space("smoke").largest, 2)
    args = ("search", *SMOKE, "--json", "--store", store, "--data", source)
    before = document(call(*args, "--teacher", teacher))["task"]
    write_images(tmp_path / "more", {"cat": 1})
    (tmp_path / "more/cat/0.png").rename(tmp_path / "pets/cat/new.png")
    assert document(call(*args, "--teacher", teacher, "--dry-run"))["task"] != before


# Where it computes


def test_a_process_without_a_gpu_computes_on_its_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = with_settings(get_recipe("smoke"), ["lanes.gpus=1"])
    job = Job.open(config, str(tmp_path), Console(is_json=True), dry_run=True)
    for is_there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        assert job.device.type == device


def test_verbs_compute_in_full_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]  # missing in its stubs
    monkeypatch.setattr("jobs.data.run", lambda _: {"mode": convolutions.fp32_precision})
    with rounding("tf32", torch.device("cpu")):
        assert document(call("data", *SMOKE, "--json", "--store", tmp_path / "store"))["mode"] == "ieee"
        assert convolutions.fp32_precision == "tf32"
