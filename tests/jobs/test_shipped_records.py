"""What the package brings along: the predictor, its calibration, and the records that both come from."""

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
import torch

from cluster.database import RunDatabase
from cluster.documents import get_task, list_documents
from cluster.objects import FolderStore
from dass.networks import build
from dass.records import Status, Student
from dass.report.wording import brief, duration
from dass.seeding import generator
from dass.threads import one_thread
from dass.zoo import PREDICTOR, RECORDS, load
from dass.zoo.files import read_predictor
from jobs.recipes import get_recipe
from tests.jobs.command import ROOT, call
from tests.jobs.images import save_weights, write_images

SHARING = {"cifar10", "dtd10", "isic_ham10000", "rsscn7"}  # targets that were collected with one draw of students
TARGETS = SHARING | {"cars80", "flowers17", "quickdraw15"}


@pytest.fixture(scope="module")
def store() -> FolderStore:
    return FolderStore(RECORDS)


def test_the_predictor_is_a_small_file_made_as_its_recipe_says() -> None:
    predictor, recipe = load(), get_recipe("tiny25_32px")
    assert (predictor.space.name, predictor.resolution) == (recipe.space, recipe.data.resolution)
    spec, meta = predictor.method.spec, recipe.meta
    for name in ("inputs", "encoding", "unit", "guided", "inner_steps", "map_norm", "hidden_dim"):
        assert getattr(spec, name) == getattr(meta, name)
    assert spec.recipe == recipe.student.canonical
    assert predictor.method.is_selected
    assert PREDICTOR.stat().st_size < 20e6


def test_its_calibration_is_of_all_25_tasks_in_five_groups() -> None:
    calibration = read_predictor().calibration
    assert calibration is not None
    assert (len(calibration.tasks), len(calibration.groups)) == (25, 5)


def test_the_records_are_those_of_the_card_and_hold_neither_images_nor_weights(store: FolderStore) -> None:
    records = list(RunDatabase(store).scan())
    names = {task: get_task(store, task).name for task in {record.run.task for record in records}}
    recipe = get_recipe("tiny25_32px")
    assert {record.run.recipe for record in records if record.run.teacher} == {recipe.student}
    assert {record.run.recipe for record in records if not record.run.teacher} == {recipe.teacher}
    assert {record.result.status for record in records} == {Status.FINISHED}
    students = Counter((names[record.run.task], record.run.seed) for record in records if record.run.teacher)
    splits = {f"tiny10-{index}" for index in range(10)} | {f"tiny25-{index}" for index in range(15)}
    assert {name for name, seed in students if seed == 0} == splits | TARGETS
    assert {students[name, 0] for name in splits} == {30}
    assert {(students[name, 0], students[name, 1]) for name in TARGETS} == {(30, 10)}
    kinds = {key.split("/")[0] for key in store.list()}
    assert kinds == {"records", "documents", "blobs", "schema.json"}
    weights = {record.weights for record in records if record.weights}
    assert not weights & {key.split("/")[-1] for key in store.list()}


def test_targets_share_their_students_or_have_their_own(store: FolderStore) -> None:
    drawn: dict[str, set[Student]] = {}
    for record in RunDatabase(store).scan():
        if record.run.teacher and (name := get_task(store, record.run.task).name) in TARGETS:
            drawn.setdefault(name, set()).add(record.run.student)
    assert len({frozenset(drawn[name]) for name in SHARING}) == 1
    assert len({frozenset(students) for students in drawn.values()}) == 1 + len(TARGETS - SHARING)


def test_every_method_has_its_scores(store: FolderStore) -> None:
    assert len(list_documents(store, "evaluation")) > 300


def test_it_ranks_students_of_an_untrained_teacher_with_finite_scores() -> None:
    predictor = load()
    images = torch.randint(0, 255, (40, 3, 32, 32), generator=generator("i", 0)).to(torch.uint8)
    labels = [index % 2 for index in range(40)]
    teacher = build(predictor.space.largest, 2, generator("t", 0)).state_dict()
    ranking = predictor.rank((images, labels), teacher, candidates=60)
    assert all(math.isfinite(each.score) for each in ranking)
    assert ranking.advice is not None


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The comparison, from what ships alone."""
    answer = call("evaluate", "--records", "shipped", "--store", tmp_path_factory.mktemp("replay"), "--json")
    assert answer.code == 0, answer.err
    return dict(json.loads(answer.out))


def test_the_table_in_the_readme_is_what_the_shipped_records_say(replayed: dict[str, Any]) -> None:
    lines = section("Results").splitlines()
    head, _, *rows = table(lines)
    of_all = ["method", "Spearman", "95 %", "in bands", "Kendall", "regret@1", "regret@5", "per candidate", "to adapt"]
    assert head == [*of_all, *sorted(TARGETS)]
    told = {row[0].strip("`*"): row[1:] for row in rows}
    best_of = {name.split("+")[0]: name for name in reversed(replayed["order"])}  # of the variants of a proxy
    assert list(told) == [name for name in replayed["order"] if name in best_of.values()]
    for name, cells in told.items():
        overall, of_target = replayed["overall"][name], replayed["methods"][name]["spearman"]
        metrics = ("spearman", "spearman_in_bands", "kendall", "regret_1", "regret_5")
        values = [overall[metric]["mean"] for metric in metrics] + [
            of_target[target]["mean"] for target in sorted(TARGETS)
        ]
        low, high = overall["spearman"]["low"], overall["spearman"]["high"]
        means, interval, times = [cells[0], *cells[2:6], *cells[8:]], cells[1], cells[6:8]
        assert means == [number(value, digits=1 if 3 <= index < 5 else 2) for index, value in enumerate(values)]
        assert interval == ("" if low is None else f"{number(low)} to {number(high)}")
        assert times == [brief(overall[metric]["mean"]) for metric in ("seconds_per_candidate", "adapt_s")]
    redrawn = replayed["redrawn"]["dass"]["spearman"]
    assert f"they give `dass` {number(redrawn['low'])} to {number(redrawn['high'])}" in " ".join(lines)


def test_the_table_of_searches_in_the_readme_is_what_was_measured() -> None:
    found = json.loads((ROOT / "dass/zoo/contest.json").read_text())
    targets = sorted(TARGETS)
    head, _, *rows, teacher = table(section("Searches").splitlines())
    assert head == ["ranked first by", "accuracy", "95 %", "on test", "students", "MMACs", "search", *targets]
    assert [row[0].strip("`") for row in rows] == found["order"]
    for name, row in zip(found["order"], rows, strict=True):
        of_method, overall = found["methods"][name], found["overall"][name]
        picks = [pick for target in targets for pick in of_method[target]["picks"]]
        mean = overall["accuracy_pct"]
        assert mean["mean"] == pytest.approx(fmean(pick["accuracy_pct"] for pick in picks))
        assert row[1:] == [
            number(mean["mean"], 1),
            f"{number(mean['low'], 1)} to {number(mean['high'], 1)}",
            number(overall["test_accuracy_pct"]["mean"], 1),
            str(len({pick["student"] for pick in picks})),
            number(fmean(pick["macs"] for pick in picks) / 1e6, 1),
            duration(median(of_method[target]["search_s"] for target in targets)),
            *(number(of_method[target]["accuracy_pct"]["mean"], 1) for target in targets),
        ]
    accuracies = [found["targets"][target]["teacher_accuracy_pct"] for target in targets]
    assert teacher[1] == number(fmean(accuracies), 1)
    assert teacher[7:] == [number(value, 1) for value in accuracies]


def section(name: str) -> str:
    """Of README, up to the next heading."""
    return re.split(r"\n###? ", (ROOT / "README.md").read_text().split(f"\n### {name}\n")[1])[0]


def table(lines: Sequence[str]) -> list[list[str]]:
    """The cells of its rows."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def number(value: float | None, digits: int = 2) -> str:
    """As README writes it."""
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def test_what_is_meta_learned_can_be_trained_again_from_the_records(replayed: dict[str, Any], tmp_path: Path) -> None:
    """On another CPU the bits are others, so its figures are near those that ship, not equal."""
    options = ("--records", "shipped", "--retrain", "--methods", "dass,macs", "--seeds", "1", "--json")
    answer = call("evaluate", *options, "--store", tmp_path)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["methods"]["macs"]["spearman"] == replayed["methods"]["macs"]["spearman"]
    mean = found["overall"]["dass"]["spearman"]["mean"]
    assert mean == pytest.approx(replayed["overall"]["dass"]["spearman"]["mean"], abs=0.15)
    assert mean > found["overall"]["macs"]["spearman"]["mean"]


def test_the_search_that_the_readme_shows_has_students_in_its_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(
        r"^dass (search --data imagefolder:photos .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    monkeypatch.chdir(tmp_path)
    write_images(Path("photos"), {"cat": 12, "dog": 12})
    answer = call(*line.split(), "--dry-run")
    assert answer.code == 0, answer.err


def test_a_search_needs_no_collection_and_says_the_same_as_three_lines_of_python(tmp_path: Path) -> None:
    images = write_images(tmp_path / "pets", {"cat": 12, "dog": 12})
    teacher = save_weights(tmp_path / "teacher.safetensors", load().space.largest, 2)
    options = ("--data", images, "--teacher", teacher, "--set", "search.candidates=60", "--store", tmp_path / "store")
    answer = call("search", *options, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["predictor"] == read_predictor().sha
    with one_thread():
        ranking = load().rank(images, teacher, candidates=60, max_macs_ratio=0.5)
    assert [each["student"]["widths"] for each in found["candidates"]] == [
        [list(row) for row in each.student.widths] for each in ranking[:10]
    ]
    assert ranking.advice is not None
    assert found["advice"]["sentences"] == list(ranking.advice.sentences)


def test_predictor_and_calibration_can_be_made_again_from_the_records(tmp_path: Path) -> None:
    """On another CPU the bits are others: what they say is compared."""
    store = shutil.copytree(RECORDS, tmp_path / "store")
    assert call("meta-train", "--recipe", "tiny25_32px", "--store", store).code == 0
    output = tmp_path / "predictor.safetensors"
    answer = call("calibrate", "--recipe", "tiny25_32px", "--store", store, "--output", output, "--json")
    assert answer.code == 0, answer.err
    found, shipped = json.loads(answer.out), read_predictor().calibration
    assert shipped is not None
    assert found["spearman"] == pytest.approx(0.78, abs=0.05)
    assert found["label_noise_pct"] == pytest.approx(shipped.label_noise_pct)
    assert found["half_width_pct"] == pytest.approx(shipped.half_width_pct(0.8), rel=0.2)
    assert load(output).method.spec == load().method.spec
