"""The whole way as a user goes it: the real command, killed in the middle with SIGKILL, and run again."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from markupsafe import escape

from cluster.database import RunDatabase
from cluster.objects import FolderStore
from dass.records import Record
from dass.zoo.files import read_predictor
from jobs.__main__ import configured
from jobs.config import with_settings
from jobs.recipe_file import DEFAULT
from jobs.recipes import get_recipe
from tests.jobs.command import call

pytestmark = pytest.mark.ray

COMMAND = [sys.executable, "-m", "jobs", "quickstart", "--recipe", "smoke", "--json", "--store"]
BRIEF = [
    *("teacher.epochs=2", "teacher.eval_every=1", "student.epochs=1", "student.eval_every=1", "final.epochs=1"),
    *("final.eval_every=1", "collect.target_students=3", "search.candidates=60", "distil.seeds=[1]"),
]
PATIENCE_S = 240.0


def records(store: Path) -> dict[str, Record]:
    return {record.run.id: record for record in RunDatabase(FolderStore(store)).scan()}


def finish(store: Path) -> dict[str, Any]:
    done = subprocess.run([*COMMAND, str(store)], capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_quickstart_goes_on_and_leaves_no_process_behind(tmp_path: Path) -> None:
    store = tmp_path / "store"
    driver = subprocess.Popen([*COMMAND, str(store)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE_S
    while not records(store) and time.monotonic() < deadline:
        assert driver.poll() is None, "the command ended before it could be killed"
        time.sleep(0.2)
    family = psutil.Process(driver.pid).children(recursive=True)
    assert family
    driver.kill()
    driver.wait()
    before = records(store)
    assert before

    document = finish(store)
    after = records(store)
    planned = 3 * (1 + 3) + (1 + 2)  # three meta tasks and the target, each with its teacher
    assert len(after) == planned + len(document["finals"])
    assert all(after[run_id] == record for run_id, record in before.items())
    assert document["verdict"]
    page = Path(document["report"]).read_text()
    assert page.lower().startswith("<!doctype html>")

    while not all(map(is_gone, family)) and time.monotonic() < deadline + PATIENCE_S:
        time.sleep(0.5)
    assert [process for process in family if not is_gone(process)] == []

    again = finish(store)
    assert records(store) == after
    assert again["verdict"] == document["verdict"]


def test_by_default_it_asks_the_packages_predictor_and_checks_it_on_the_target(tmp_path: Path) -> None:
    """The quickstart itself, with almost nothing trained."""
    options = [option for setting in BRIEF for option in ("--set", setting)]
    answer = call("quickstart", *options, "--store", tmp_path, "--json")
    assert answer.code == 0, answer.err
    document = json.loads(answer.out)
    assert (document["target"], document["classes"]) == ("digits", list("0123456789"))
    assert {final["role"] for final in document["finals"]} == {"recommended", "random", "largest"}
    assert len(document["observed"]) == 3
    assert document["provenance"]["predictor"] == read_predictor().sha
    assert document["missing"].keys() == {"meta"}
    assert "came with the package" in document["missing"]["meta"]
    page = (tmp_path / "report.html").read_text()
    assert document["advice"]
    assert all(str(escape(sentence)) in page for sentence in document["advice"])
    roles = Counter(record.run.teacher is None for record in records(tmp_path).values())
    assert roles == {True: 1, False: 3 + 3}
    (tmp_path / "report.html").unlink()
    again = call("report", *options, "--store", tmp_path, "--json")  # the verbs alone find what they did together
    assert json.loads(again.out)["verdict"] == document["verdict"]
    assert (tmp_path / "report.html").read_text() == page


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("space=paper5", "a predictor ranks only what it was made for: its space is 'paper5_w8', got 'paper5'"),
        ("predictor=store", "meta-training needs meta-tasks, got recipe quickstart, all whose images are one target"),
    ],
)
def test_what_no_predictor_could_rank_is_refused_before_anything_is_trained(
    setting: str, message: str, tmp_path: Path
) -> None:
    answer = call("quickstart", "--set", setting, "--store", tmp_path / "store")
    assert answer.code == 2
    assert message in answer.error
    assert not (tmp_path / "store").exists()


def test_with_images_of_ones_own_it_is_the_recipe_for_them(tmp_path: Path) -> None:
    config = configured(DEFAULT, ["search.max_params=9"], f"imagefolder:{tmp_path}")
    assert config == with_settings(
        get_recipe("pretrained"), ["search.max_params=9", f"data.source=imagefolder:{tmp_path}"]
    )
    assert configured(DEFAULT, [f"data.source=imagefolder:{tmp_path}", "search.max_params=9"]) == config
    assert configured(DEFAULT, None).name == configured(DEFAULT, None, "digits").name == "quickstart"
    assert configured("tiny10", None, "digits").name == "tiny10"
