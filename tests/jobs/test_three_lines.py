"""Three lines of Python give what the verbs give: the same teacher, ranking and student, to the last bit."""

import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cluster.documents import get_latest
from cluster.teachers import load_teacher
from cluster.weights import get_blob, put_weights
from dass.errors import InputError
from dass.networks.files import load_student
from dass.records import Record, Task
from dass.search.ranking import Candidate
from dass.spaces import get_space
from dass.threads import one_thread
from dass.zoo import RankedStudents, load
from jobs import distil, teachers
from jobs.job import Job
from tests.jobs.command import call
from tests.jobs.images import save_weights, write_images
from tests.jobs.prepared import open_smoke

SMOKE = ("--recipe", "smoke")
PARTS = ("train", "valid", "test")
SMOKE_CUTS: dict[str, Any] = {"valid_fraction": 0.5, "test_fraction": 0.3}  # of the recipe's data
PETS = {"cat": 6, "dog": 6}


@pytest.fixture(autouse=True)
def one_lane() -> Iterator[None]:
    """As many threads as the store's lanes had."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def predictor(done: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store's predictor as a file of its own."""
    file = tmp_path_factory.mktemp("predictor") / "predictor.safetensors"
    answer = call("meta-train", *SMOKE, "--output", file, "--store", done)
    assert (answer.code, answer.out.splitlines()[-1]) == (0, f"predictor written to {file}")
    store = open_smoke(done).store
    assert file.read_bytes() == get_blob(store, get_latest(store, "predictor")["predictor"])
    return file


def test_a_predictor_that_cannot_be_written_is_refused_before_anything_is_learned(done: Path, tmp_path: Path) -> None:
    for output in (tmp_path / "absent" / "predictor.safetensors", tmp_path):
        answer = call("meta-train", *SMOKE, "--output", output, "--store", done)
        assert (answer.code, answer.error) == (
            2,
            f"error: --output must be a file in a folder that exists, got {output}; correct the path",
        )
    file = tmp_path / "predictor.safetensors"
    assert call("meta-train", *SMOKE, "--dry-run", "--output", file, "--store", done).code == 0
    assert not file.exists()


def target_of(job: Job) -> Task:
    task = job.tasks().target
    assert task is not None
    return task


@pytest.fixture(scope="module")
def images(done: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The target of the smoke recipe as a source of its own, with the parts that it has there."""
    job = open_smoke(done)
    task = target_of(job)
    pack = job.pack(task)
    rows = []
    for index, part in sorted((index, name) for name in PARTS for index in getattr(task, name)):
        png = io.BytesIO()
        Image.fromarray(pack.images[index].permute(1, 2, 0).numpy()).save(png, "png")
        label = task.source_labels.index(int(pack.labels[index]))
        rows.append({"image": png.getvalue(), "label": label, "label_name": task.classes[label], "split": part})
    file = tmp_path_factory.mktemp("images") / "target.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    return f"parquet:{file}"


@pytest.fixture(scope="module")
def ranking(done: Path, predictor: Path, images: str) -> RankedStudents:
    config = open_smoke(done).config
    with one_thread():
        return load(predictor).rank(
            images,
            max_macs_ratio=config.search.max_macs_ratio,
            candidates=config.search.candidates,
            teacher_recipe=config.teacher,
        )


def test_the_teacher_trained_here_is_that_of_the_lane(done: Path, ranking: RankedStudents) -> None:
    job = open_smoke(done)
    task = target_of(job)
    assert ranking.task.id == task.id
    theirs = load_teacher(job.database, teachers.run_of(job, task).id, task.id)
    assert (ranking.teacher.id, ranking.teacher.accuracy_pct) == (theirs.id, theirs.accuracy_pct)
    assert ranking.teacher.state.keys() == theirs.state.keys()
    assert all(torch.equal(ranking.teacher.state[name], tensor) for name, tensor in theirs.state.items())


def test_the_ranking_is_that_of_the_search(done: Path, ranking: RankedStudents) -> None:
    job = open_smoke(done)
    found = distil.latest_search(job, target_of(job))
    assert tuple(ranking) == found["candidates"]
    assert (ranking.scored, asdict(ranking.budget)) == (
        found["scored"],
        {name: found[name] for name in ("max_macs", "max_params")},
    )
    assert len({candidate.score for candidate in ranking}) == len(ranking) > 5  # an order that chance does not give


def final_of(job: Job) -> Record:
    """The record of the recommended student under the one seed of the recipe."""
    task = target_of(job)
    best = distil.latest_search(job, task)["candidates"][0].student
    kept = [r for r in job.database.scan() if r.weights and r.run.teacher and r.run.task == task.id]
    (record,) = [each for each in kept if each.run.student == best]
    return record


def test_the_distilled_student_is_that_of_the_lane(
    store: Path, images: str, ranking: RankedStudents, tmp_path: Path
) -> None:
    job = open_smoke(store)
    record = final_of(job)
    steps: list[tuple[int, int]] = []
    student = ranking.distil(seed=record.run.seed, recipe=job.config.final, progress=lambda *done: steps.append(done))
    assert student.run == record.run
    assert student.result == record.result
    assert record.weights == put_weights(job.store, student.network.state_dict())
    assert steps[-1][0] == steps[-1][1] > 1
    student.save(tmp_path / "ours.safetensors")
    answer = call("distil", *SMOKE, "--output", tmp_path / "theirs.safetensors", "--store", store)
    assert answer.code == 0, answer.err
    ours, theirs = (load_student((tmp_path / f"{name}.safetensors").read_bytes()) for name in ("ours", "theirs"))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    batch = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(student.network(batch), ours.network(batch))
    assert ours.classes == theirs.classes == student.classes


def searched(store: Path, *args: str | Path) -> tuple[Candidate, ...]:
    """What `search` keeps in the store for images of one's own."""
    answer = call("search", *SMOKE, "--store", store, *args)
    assert answer.code == 0, answer.err
    job = open_smoke(store)
    return tuple(distil.latest_search(job, job.whole_source(str(args[1])))["candidates"])


def test_a_brought_teacher_gives_the_same_ranking_in_every_form(store: Path, predictor: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "pets", {"cat": 8, "dog": 8, "owl": 9})
    file = save_weights(tmp_path / "teacher.safetensors", get_space("smoke").largest, 3, torch.float16)
    settings = ("--set", "search.max_macs_ratio=0.7", "--set", "search.max_params=100000", "--set", "search.seed=3")
    theirs = searched(store, "--data", source, "--teacher", file, *settings)
    loaded = load(predictor)

    def ranked(images: object, teacher: object) -> RankedStudents:
        return loaded.rank(
            images,  # type: ignore[arg-type]
            teacher,  # type: ignore[arg-type]
            max_macs_ratio=0.7,
            max_params=100_000,
            candidates=50,
            seed=3,
            **SMOKE_CUTS,
        )

    ours = ranked(source, file)
    assert tuple(ours) == theirs
    assert ours.task == open_smoke(store).whole_source(source)
    torch.set_num_threads(2)  # sums of several threads have other last bits, which a ranking must not have
    assert tuple(ranked(source, file)) == theirs
    torch.set_num_threads(1)
    network = ours.teacher.network(3)
    for teacher in (str(file), ours.teacher, network, network.state_dict()):
        assert tuple(ranked(tmp_path / "pets", teacher)) == theirs
    pack = open_smoke(store).pack(ours.task)
    for arrays in ((pack.images, pack.labels), (pack.images, pack.labels.tolist(), pack.class_names)):
        again = ranked(arrays, file)
        assert tuple(again) == theirs
        assert again.task.id == ours.task.id


def test_a_teacher_is_trained_on_own_images_as_the_search_does(store: Path, predictor: Path, tmp_path: Path) -> None:
    job, source = open_smoke(store), write_images(tmp_path / "pets", {"cat": 8, "dog": 8})
    task = job.whole_source(source)
    steps: list[tuple[str, int, int]] = []
    ours = load(predictor).rank(
        tmp_path / "pets",
        max_macs_ratio=0.5,
        candidates=50,
        **SMOKE_CUTS,
        teacher_recipe=job.config.teacher,
        progress=lambda *done: steps.append(done),
    )
    assert (ours.task, ours.teacher.id) == (task, teachers.run_of(job, task).id)
    assert list(dict.fromkeys(what for what, *_ in steps)) == ["images", "teacher", "search"]
    assert steps[0] == ("images", 16, 16)
    assert steps[-1] == ("search", len(ours), 50)


REFUSED: list[tuple[dict[str, int], dict[str, Any], list[str]]] = [
    ({"cat": 6}, {}, []),
    ({"cat": 6, "dog": 1}, {}, []),
    ({"cat": 6, "dog": 2}, {}, []),
    ({}, {}, []),
    (PETS, {"max_macs_ratio": 0.001}, ["search.max_macs_ratio=0.001"]),
    (PETS, {"max_macs": 10}, ["search.max_macs=10"]),
    (PETS, {"max_params": 100}, ["search.max_params=100", "search.max_macs_ratio=none"]),
    (PETS, {"max_macs_ratio": 1.5}, ["search.max_macs_ratio=1.5"]),
    (PETS, {"candidates": 0}, ["search.candidates=0"]),
    (PETS, {"valid_fraction": 0.8}, ["data.valid_fraction=0.8"]),
    (PETS, {"teacher": "absent.safetensors"}, []),
    (PETS, {"teacher": "text.safetensors"}, []),
    (PETS, {"teacher": "wide.safetensors"}, []),
    (PETS, {"teacher": "classes.safetensors"}, []),
]


@pytest.mark.parametrize(("classes", "given", "settings"), REFUSED, ids=str)
def test_what_cannot_be_used_is_refused_with_the_message_of_the_verb(
    classes: dict[str, int],
    given: dict[str, Any],
    settings: list[str],
    done: Path,
    predictor: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets").mkdir()
    source, largest = write_images(Path("pets"), classes), get_space("smoke").largest
    Path("text.safetensors").write_text("text")
    save_weights(Path("wide.safetensors"), get_space("paper5_w8").largest, 2)
    save_weights(Path("classes.safetensors"), largest, 5)
    given = {"teacher": save_weights(Path("teacher.safetensors"), largest, 2), **given}
    options = [option for setting in settings for option in ("--set", setting)]
    answer = call("search", *SMOKE, "--store", done, "--data", source, "--teacher", given["teacher"], *options)
    assert answer.code == 2, answer
    with pytest.raises(InputError) as caught:
        load(predictor).rank(source, **{**SMOKE_CUTS, **given})
    assert answer.error.endswith(str(caught.value))  # the verb says before it that --set was wrong


@pytest.mark.parametrize("source", ["digit", "imagefolder:absent", "parquet:absent", "pets"])
def test_a_source_that_is_none_is_refused_with_the_message_of_the_verb(
    source: str, done: Path, predictor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pets").mkdir()
    answer = call("search", *SMOKE, "--store", done, "--data", source)
    with pytest.raises(InputError) as caught:
        load(predictor).rank(source)
    assert answer.error == f"error: {caught.value}"
