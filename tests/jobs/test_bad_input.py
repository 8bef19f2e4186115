"""What cannot be used is refused with one line that says why and what to do, and leaves the store as it was."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from cluster.database import RunDatabase
from cluster.documents import get_latest, put_latest
from cluster.objects import FolderStore
from cluster.plan import Plan
from dass.cost import count_macs
from dass.networks import build
from dass.seeding import generator
from dass.spaces import get_space
from jobs.config import with_settings
from jobs.recipes import get_recipe
from tests.jobs.command import call, refusal
from tests.jobs.images import save_weights, write_images
from tests.jobs.prepared import final_plan, open_smoke, prepare, train

SMOKE = ("--recipe", "smoke")
WORKING = ("data", "teachers", "collect", "meta-train", "search", "distil", "report", "quickstart")
LARGEST = get_space("smoke").largest
NUM_CLASSES = 3  # of the smoke recipe's target


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the smoke recipe is done; not to be written to."""
    return prepare(tmp_path_factory.mktemp("smoke") / "store")


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """A store that does not exist yet."""
    return tmp_path / "new" / "store"


# Options, recipes, keys


def test_an_unknown_option_is_refused(new: Path) -> None:
    assert refusal(new, "collect", "--recipes", "smoke").startswith(
        "No such option: --recipes (Possible options: --recipe"
    )


def test_an_unknown_recipe_names_those_that_there_are(new: Path) -> None:
    assert refusal(new, "collect", "--recipe", "smoky") == (
        "--recipe must be one of quickstart, pretrained, digits, smoke, tiny10, tiny25_32px or a file ending in "
        ".toml, got 'smoky'; did you mean smoke?"
    )


def test_an_unknown_key_names_its_neighbours(new: Path) -> None:
    assert refusal(new, "collect", *SMOKE, "--set", "student.epoch=3") == (
        "--set: unknown key 'student.epoch'; did you mean student.epochs?"
    )


def test_a_recipe_file_must_be_there_and_be_toml(new: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert refusal(new, "collect", "--recipe", file) == (
        f"--recipe must name a recipe or a readable TOML file, got {file} (No such file or directory); correct the path"
    )
    file.write_text("[student\nlr = 1\n")
    message = refusal(new, "collect", "--recipe", file)
    assert message.startswith(f"{file} must be TOML, got: ")
    assert message.endswith("(at line 1, column 9); correct that line")
    file.write_text("[student]\nlr = 'fast'\n")
    assert refusal(new, "collect", "--recipe", file) == (
        f"{file}, line 2: student.lr must be of type float, got 'fast'; `dass keys` shows every key with its type"
    )


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.resolution=20", "data.resolution must be a positive multiple of 8, got 20"),
        ("data.train_tasks=0", "data.train_tasks must be >= 1, got 0; set data.train_tasks"),
        ("data.classes_per_task=1", "data.classes_per_task must be >= 2, got 1"),
        ("data.target_classes=1", "data.target_classes must be 0 or >= 2, got 1; one class cannot be classified"),
        ("data.valid_fraction=0.8", "must be positive and sum to less than 1, got 0.8 and 0.3"),
        (
            "data.split=tiny100",
            "data.split must be one of classes, tiny10, tiny10_disjoint, tiny25, whole, got 'tiny100'; did you mean",
        ),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_image_is_read(setting: str, message: str, new: Path) -> None:
    answer = call("data", *SMOKE, "--set", setting, "--store", new)
    assert answer.code == 2
    assert message in answer.error
    assert len(answer.err.splitlines()) == 1


# Stores


@pytest.mark.parametrize("verb", WORKING)
def test_a_store_that_cannot_be_written_is_refused_at_once(verb: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    for store in (tmp_path / "file" / "store", tmp_path / "file"):
        answer = call(verb, *SMOKE, "--store", store)
        assert (answer.code, answer.out) == (1, "")
        assert answer.err == (
            f"error: the store must be readable and writable, cannot write {store}: a part of the path is a file; "
            "remove it, or use another store\n"
        )
    assert (tmp_path / "file").read_text() == "text"


@pytest.mark.parametrize("verb", [*WORKING, "status"])
def test_a_store_of_a_newer_version_is_refused_at_once(verb: str, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps({"schema": 99}))
    recipe = () if verb == "status" else SMOKE
    assert refusal(tmp_path, verb, *recipe, code=1) == (
        "schema.json must have a version of at most 3 to be read here, got 99; upgrade the package dass"
    )
    (tmp_path / "schema.json").write_text(json.dumps({"schema": 1, "id_version": 7}))
    assert "id_version in schema.json must have a version of at most 1" in refusal(tmp_path, verb, *recipe, code=1)


def test_a_damaged_record_is_named_with_the_remedy(done: Path, tmp_path: Path) -> None:
    store = shutil.copytree(done, tmp_path / "store")
    record = next((store / "records" / "loose").rglob("*.json"))
    record.write_bytes(record.read_bytes()[:100])
    message = refusal(store, "status", code=1)
    assert message.startswith(f"{record.relative_to(store)} must hold what this package writes there, got 100 bytes")
    assert message.endswith("delete the object and run the job that wrote it again")


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("s3://Bucket/prefix", "a store must be a folder or s3://bucket/prefix, a bucket being 3 to 63 lower-case"),
        ("gs://bucket", "a store must be a folder or s3://bucket/prefix, got 'gs://bucket'; give a path such as"),
        ("", "a store must be a folder or s3://bucket/prefix, got ''; give a path such as"),
    ],
)
def test_a_store_elsewhere_is_refused(store: str, message: str) -> None:
    answer = call("data", *SMOKE, "--store", store)
    assert (answer.code, answer.out) == (2, "")
    assert answer.error.startswith(f"error: {message}")


# Images


def test_an_unknown_source_names_the_forms_and_the_nearest(new: Path, done: Path, tmp_path: Path) -> None:
    forms = "a source must be digits, imagefolder:PATH, parquet:PATH or torchvision:NAME:ROOT, got"
    for verb in ("data", "teachers", "collect", "meta-train", "quickstart"):
        assert refusal(new, verb, "--dry-run", *SMOKE, "--data", "digit") == f"{forms} 'digit'; did you mean digits?"
    for verb in ("search", "distil", "report"):
        assert refusal(done, verb, *SMOKE, "--data", str(tmp_path)) == (
            f"{forms} '{tmp_path}'; did you mean imagefolder:{tmp_path}?"
        )
    assert refusal(done, "report", "--recipe", "pretrained") == f"{forms} ''; give one of them with --data"


def test_a_recipe_without_images_asks_for_them_in_the_way_of_the_verb(new: Path, tmp_path: Path) -> None:
    target = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    for options in (("data",), ("report", "--data", target), ("evaluate", "--data", target)):
        assert refusal(new, *options, "--recipe", "tiny25_32px") == (
            "recipe tiny25_32px must know the images that its tasks are cut from, got none; give them with --data, or where "
            "--data gives the target with --set data.source=SPEC, SPEC being digits, imagefolder:PATH, parquet:PATH or "
            "torchvision:NAME:ROOT"
        )


def test_a_report_on_a_target_finds_the_tasks_of_the_collection_by_their_source(done: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('recipe = "smoke"\n[data]\nsource = ""\n')
    target = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    report = ("report", "--dry-run", "--json", "--recipe", tmp_path / "mine.toml", "--data", target, "--store", done)
    assert "must know the images that its tasks are cut from" in call(*report).error
    found = call(*report, "--set", "data.source=digits")
    assert found.code == 0, found.err


def _nothing(root: Path) -> None:
    root.mkdir()


def _one_class(root: Path) -> None:
    write_images(root, {"cat": 6})


def _one_image(root: Path) -> None:
    write_images(root, {"cat": 6, "dog": 1})


def _two_images(root: Path) -> None:
    write_images(root, {"cat": 6, "dog": 2})


def _corrupt_and_truncated(root: Path) -> None:
    write_images(root, {"cat": 6, "dog": 6})
    (root / "cat" / "1.png").write_text("no image")
    whole = (root / "dog" / "2.png").read_bytes()
    (root / "dog" / "2.png").write_bytes(whole[: len(whole) // 2])
    (root / "dog" / "3.png").write_bytes(b"")


IMAGES: list[tuple[Callable[[Path], None], list[str]]] = [
    (_nothing, ["a source must hold images, got none in pets; put them into PATH/class/*.png"]),
    (_one_class, ["a source must have at least 2 classes, got 1 (cat); add another class"]),
    (_one_image, ["every class needs at least 2 images", "got 1 for dog; add images or remove the class"]),
    (_two_images, ["at least one image to each of train, valid, test, got 2 for dog; add images or remove the class"]),
    (
        _corrupt_and_truncated,
        [
            "every image must decode, got 3 of 12 that do not: ",
            "pets/cat/1.png (not an image that Pillow can read)",
            "pets/dog/2.png (",
            "pets/dog/3.png (",
            "; replace or remove them",
        ],
    ),
]


@pytest.mark.parametrize(("make", "parts"), IMAGES, ids=[make.__name__ for make, _ in IMAGES])
def test_images_that_cannot_be_used_are_named(
    make: Callable[[Path], None], parts: list[str], new: Path, done: Path, tmp_path: Path
) -> None:
    make(tmp_path / "pets")
    source = ("--data", f"imagefolder:{tmp_path / 'pets'}")
    message = refusal(new, "data", *SMOKE, *source)
    assert [part for part in parts if part not in message] == []
    assert refusal(done, "search", *SMOKE, *source) == message


def test_a_path_without_images_is_named(new: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refusal(new, "data", *SMOKE, "--data", f"imagefolder:{absent}") == (
        f"imagefolder:PATH must name a folder, got {absent}; correct the path"
    )
    assert refusal(new, "data", *SMOKE, "--data", f"parquet:{absent}") == (
        f"parquet:PATH must name a file, got {absent}; correct the path"
    )
    (tmp_path / "text.parquet").write_text("text")
    assert "must be a complete Parquet file, got: " in refusal(
        new, "data", *SMOKE, "--data", f"parquet:{tmp_path / 'text.parquet'}"
    )


@pytest.mark.parametrize("verb", [("data",), ("teachers",), ("collect",), ("quickstart", "--dry-run")], ids=" ".join)
def test_too_few_classes_for_the_tasks_are_refused_with_their_number(verb: tuple[str, ...], new: Path) -> None:
    assert refusal(new, *verb, *SMOKE, "--set", "data.classes_per_task=5") == (
        "2 + 1 tasks of 5 classes and a target of 3, all of disjoint classes, need 14 classes, got 10; "
        "lower data.classes_per_task, data.train_tasks or data.target_classes"
    )


# Teachers


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_a_teacher_of_another_space_or_class_count_is_refused(dry: tuple[str, ...], done: Path, tmp_path: Path) -> None:
    other_space = save_weights(tmp_path / "wide.safetensors", get_space("paper5_w8").largest, NUM_CLASSES)
    message = refusal(done, "search", *SMOKE, "--teacher", other_space, *dry)
    assert message.startswith(f"a teacher of {LARGEST.key} for 3 classes has ")
    assert message.endswith(
        "; give weights of this space and of the task's classes, or train the teacher with `teachers`"
    )
    other_classes = save_weights(tmp_path / "classes.safetensors", LARGEST, 5)
    message = refusal(done, "search", *SMOKE, "--teacher", other_classes, *dry)
    assert "for 3 classes has head.bias of shape (3,), got (5,)" in message


def test_a_refused_teacher_leaves_nothing_of_the_users_images_behind(done: Path, tmp_path: Path) -> None:
    source = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    teacher = save_weights(tmp_path / "teacher.safetensors", LARGEST, 5)
    assert "for 2 classes has head.bias" in refusal(done, "search", *SMOKE, "--data", source, "--teacher", teacher)


def test_a_teacher_must_be_a_safetensors_file(done: Path, tmp_path: Path) -> None:
    remedy = "; write the teacher's state dict with safetensors.torch.save_file"
    whole = save_weights(tmp_path / "whole.safetensors", LARGEST, NUM_CLASSES).read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.safetensors").write_text("text")
    torch.save(build(LARGEST, NUM_CLASSES, generator("w", 0)).state_dict(), tmp_path / "pickled.pt")
    for name in ("half.safetensors", "text.safetensors", "pickled.pt"):
        message = refusal(done, "search", *SMOKE, "--teacher", tmp_path / name)
        assert message.startswith(f"a teacher must be a safetensors file, got {tmp_path / name} (")
        assert message.endswith(remedy)
    for name, reason in (("absent", "No such file or directory"), (".", "Is a directory")):
        assert refusal(done, "search", *SMOKE, "--teacher", tmp_path / name) == (
            f"a teacher must be a readable safetensors file, got {tmp_path / name} ({reason}); correct the path"
        )


# Budgets


@pytest.mark.parametrize(
    ("settings", "received"),
    [
        (
            ["search.max_macs_ratio=0.001"],
            f"max_macs={count_macs(LARGEST, 16, NUM_CLASSES) // 1000} and max_params=None",
        ),
        (["search.max_macs_ratio=none", "search.max_macs=10"], "max_macs=10 and max_params=None"),
        (["search.max_params=100"], "max_params=100"),
    ],
)
def test_a_budget_below_the_smallest_student_names_its_cost(settings: list[str], received: str, done: Path) -> None:
    args = [part for setting in settings for part in ("--set", setting)]
    message = refusal(done, "search", *SMOKE, *args)
    smallest = get_space("smoke").smallest.key
    assert message.startswith(f"the budget must admit the smallest student of space smoke, {smallest}, with ")
    assert received in message
    assert message.endswith("; raise the limit, or choose a space with smaller students")


def test_a_budget_of_nothing_is_refused(done: Path) -> None:
    assert "max_params must be >= 1, got 0" in refusal(done, "search", *SMOKE, "--set", "search.max_params=0")


# Verbs out of turn, and predictors for something else


def test_meta_training_without_records_is_refused(new: Path) -> None:
    assert (
        refusal(new, "meta-train", *SMOKE) == "meta-training needs records, got none of 9 planned; run `collect` first"
    )


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_searching_without_a_predictor_is_refused(dry: tuple[str, ...], new: Path) -> None:
    assert refusal(new, "search", *SMOKE, *dry) == (
        f"a search needs a predictor, got a store without one ({new}); run `meta-train`"
    )


def test_distilling_without_a_search_is_refused(new: Path, done: Path, tmp_path: Path) -> None:
    rest = "must have been searched before, got no ranking; run `search`"
    assert refusal(new, "distil", *SMOKE) == f"task target {rest}"
    source = write_images(tmp_path / "pets", {"cat": 6, "dog": 6})
    assert refusal(done, "distil", *SMOKE, "--data", source) == f"task pets {rest}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("space=paper5_w8", "its space is 'smoke', got 'paper5_w8'"),
        ("data.resolution=24", "its resolution is 16, got 24"),
        ("meta.unit=task_free", "its unit is 'percent', got 'task_free'"),
    ],
)
def test_a_predictor_for_something_else_is_refused(setting: str, message: str, done: Path) -> None:
    assert refusal(done, "search", *SMOKE, "--set", setting) == (
        f"a predictor ranks only what it was made for: {message}; "
        "use a predictor meta-trained for that, or change the search"
    )


def test_the_unit_that_a_tuning_found_is_searched_with_whatever_the_recipe_says(done: Path, tmp_path: Path) -> None:
    store = shutil.copytree(done, tmp_path / "store")
    in_unit = ("--set", "meta.unit=task_free")
    assert call("meta-train", *SMOKE, *in_unit, "--store", store).code == 0
    untuned = get_latest(FolderStore(store), "predictor")
    assert "its unit is 'task_free', got 'percent'" in refusal(store, "search", *SMOKE)
    config = with_settings(get_recipe("smoke"), in_unit[1:]).meta
    tuning = {"key": "k", "trials": 1, "winner": 0, "config": asdict(config)}
    put_latest(FolderStore(store), "predictor", {**untuned, "tuning": tuning})
    answer = call("search", *SMOKE, "--json", "--store", store)
    assert answer.code == 0, answer.err
    assert json.loads(answer.out)["predictor"] == untuned["predictor"]


def test_a_damaged_predictor_is_refused(done: Path, tmp_path: Path) -> None:
    store = shutil.copytree(done, tmp_path / "store")
    sha = get_latest(FolderStore(store), "predictor")["predictor"]
    (store / "blobs" / sha).write_bytes(b"other")
    message = refusal(store, "search", *SMOKE, code=1)
    assert message.startswith(f"blobs/{sha} must hold the bytes it is named after")


def test_teachers_whose_weights_are_gone_are_told_before_anything_is_trained(done: Path, tmp_path: Path) -> None:
    store = shutil.copytree(done, tmp_path / "store")
    sha_of = {each.run.id: each.weights for each in RunDatabase(FolderStore(store)).scan() if each.run.teacher is None}
    for sha in sha_of.values():
        (store / "blobs" / str(sha)).unlink()
    more = ("--set", f"collect.students_per_task={get_recipe('smoke').collect.students_per_task + 1}")
    for dry_run in ((), ("--dry-run",)):
        message = refusal(store, "collect", *SMOKE, *more, *dry_run, code=1)
        assert message in [
            f"a teacher's weights must be in the store, got {run_id} without blobs/{sha}; copy that object from where it "
            "is, give --teacher again if it is your own, or use another --store, in which teachers are trained anew"
            for run_id, sha in sha_of.items()
        ]


def test_without_classes_kept_aside_a_target_must_be_given(done: Path) -> None:
    for verb in ("search", "distil", "report"):
        assert refusal(done, verb, *SMOKE, "--set", "data.target_classes=0") == (
            "recipe smoke keeps no classes aside as a target; give your own images with --data, or set data.target_classes"
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
@pytest.mark.parametrize("verb", ["teachers", "collect", "quickstart", "search", "distil"])
def test_lanes_that_ask_for_gpus_are_refused_where_there_are_none(
    verb: str, dry: tuple[str, ...], new: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (verb, dry) == ("collect", ("--dry-run",)):
        pytest.skip("it quotes for other machines too")
    gpus = ("--set", "lanes.gpus=1")
    told = "lanes.gpus must be 0 on a machine without CUDA devices, got 1; set lanes.gpus=0"
    if verb in ("search", "distil"):
        lacking = "teacher.epochs=2" if verb == "search" else "final.epochs=2"
        assert refusal(done, verb, *SMOKE, *gpus, "--set", lacking, *dry) == told
    else:
        answer = call(verb, *SMOKE, *gpus, *dry, "--store", new)
        assert (answer.code, answer.err) == (2, f"error: {told}\n")  # no image was read
        assert not new.exists()
    if verb != "quickstart":
        assert call(verb, *SMOKE, *gpus, "--dry-run", "--store", done).code == 0  # all is trained already
        monkeypatch.setenv("RAY_ADDRESS", "there:6379")  # a cluster may have what this machine has not
        assert call(verb, *SMOKE, *gpus, "--dry-run", "--store", new if verb == "teachers" else done).code == 0


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"])
def test_a_relative_store_is_refused_where_a_cluster_works(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "127.0.0.1:9")
    answer = call("collect", *SMOKE, "--dry-run", "--store", "somewhere")
    assert answer.code == 2
    assert answer.error == (
        "error: --store must be s3://BUCKET/PREFIX or the absolute path of a folder that all machines share where work is done "
        "on a cluster (RAY_ADDRESS), got 'somewhere'; give one of these"
    )


def test_a_final_that_was_collected_without_weights_is_refused_before_anything_is_trained(
    done: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(done, tmp_path / "store"))
    job = open_smoke(store)
    best = final_plan(job).runs[0]
    train(job, Plan("collect", (replace(best, seed=0),)))  # the final recipe is the students', and so is the seed now
    assert refusal(store, "distil", *SMOKE, "--set", "distil.seeds=[0]") == (
        f"a final student must keep its weights, got {best.student.key} that was trained with seed 0 without; "
        "choose other seeds with distil.seeds"
    )
