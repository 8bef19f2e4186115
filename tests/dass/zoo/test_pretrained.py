import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dass.cost import count_macs, count_params
from dass.data.sources import read_source
from dass.errors import ConfigError, DataError, InputError, PredictorMismatchError, SpaceError
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.networks.files import student_bytes
from dass.records import Recipe
from dass.search.select import make_scorer
from dass.seeding import generator
from dass.spaces import get_space
from dass.tensors import pack_tensors, unpack_tensors
from dass.threads import one_thread
from dass.zoo import Pretrained, RankedStudents, load
from tests.dass.zoo.site import RESOLUTION, SPACE, write_photos, write_predictor, write_teacher

NUM = 40  # candidates
BRIEF = Recipe(loss="ce", init="scratch", epochs=2, batch_size=8, lr=0.02, flip=0.0, eval_every=1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a predictor, a teacher and photos; not to be written to."""
    folder = tmp_path_factory.mktemp("zoo")
    write_predictor(folder / "predictor.safetensors")
    write_teacher(folder / "teacher.safetensors", 2)
    write_photos(folder / "photos")
    return folder


@pytest.fixture(scope="module")
def predictor(place: Path) -> Pretrained:
    return load(place / "predictor.safetensors")


@pytest.fixture(scope="module")
def ranking(place: Path, predictor: Pretrained) -> RankedStudents:
    return predictor.rank(place / "photos", place / "teacher.safetensors", max_macs_ratio=0.8, candidates=NUM)


def refusal(error: type[InputError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as caught:
        call()
    return str(caught.value)


# The ranking


def test_scores_are_those_of_each_student_asked_alone(predictor: Pretrained, ranking: RankedStudents) -> None:
    with one_thread():
        scorer = make_scorer(predictor.method, SPACE, ranking.teacher)
    alone = [float(scorer.score([candidate.student])) for candidate in ranking]
    assert [candidate.score for candidate in ranking] == pytest.approx(alone, abs=1e-4)
    assert [candidate.score for candidate in ranking] == sorted((each.score for each in ranking), reverse=True)


def test_candidates_keep_to_the_budget_and_cost_what_they_cost(ranking: RankedStudents) -> None:
    limit = int(0.8 * count_macs(SPACE.largest, RESOLUTION, 2))
    assert ranking.budget.max_macs == limit
    assert len(ranking) == ranking.scored == len({each.student for each in ranking}) == NUM
    for each in ranking:
        assert each.macs == count_macs(each.student, RESOLUTION, 2) <= limit
        assert each.params == count_params(each.student, 2)


def test_it_is_a_sequence_whose_first_is_the_best(ranking: RankedStudents) -> None:
    listed = list(ranking)
    assert (ranking[0], ranking[-1], ranking[1:3]) == (listed[0], listed[-1], listed[1:3])
    assert ranking.best == listed[0]
    assert listed[3] in ranking
    assert ranking.index(listed[3]) == 3
    with pytest.raises(IndexError):
        ranking[NUM]


def test_the_frontier_is_that_of_every_pair_compared(ranking: RankedStudents) -> None:
    undominated = [
        each
        for each in ranking
        if not any(
            (other.macs, -other.score) != (each.macs, -each.score)
            and other.macs <= each.macs
            and other.score >= each.score
            for other in ranking
        )
    ]
    assert ranking.frontier == sorted(undominated, key=lambda each: each.macs)


def test_a_teacher_is_measured_on_valid(ranking: RankedStudents, place: Path) -> None:
    """By its own network, image by image."""
    network = ranking.teacher.network(2)
    state, _ = unpack_tensors((place / "teacher.safetensors").read_bytes())
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in state.items())
    pack, valid = read_source(f"imagefolder:{place / 'photos'}", RESOLUTION), list(ranking.task.valid)
    assert len(valid) == 4  # 0.2 of 12, rounded, of each class
    guessed = [int(network(pack.images[[index]] / 127.5 - 1).argmax()) for index in valid]
    hits = sum(guess == label for guess, label in zip(guessed, pack.labels[valid].tolist(), strict=True))
    assert ranking.teacher.accuracy_pct == 100.0 * hits / 4


def test_a_brought_teacher_is_a_copy_in_float32(predictor: Pretrained, place: Path) -> None:
    network = build(SPACE.largest, 2, generator("w", 0)).half()
    ranked = predictor.rank(place / "photos", network, candidates=5)
    before = ranked.teacher.state["head.bias"].clone()
    with torch.no_grad():
        network.get_parameter("head.bias").add_(1)
    assert ranked.teacher.state["head.bias"].dtype == torch.float32
    assert torch.equal(ranked.teacher.state["head.bias"], before)


# The student


def test_a_distilled_student_has_learned_the_classes(ranking: RankedStudents, place: Path) -> None:
    student = ranking.distil(ranking[2], seed=5, recipe=Recipe(epochs=10, batch_size=8, lr=0.02, alpha=1.0))
    assert (student.run.student, student.run.seed) == (ranking[2].student, 5)
    assert student.predicted_pct == ranking[2].score
    assert student.classes == ("cat", "dog")
    assert student.result.best_accuracy_pct == 100.0
    assert student.result.test_accuracy_pct == 100.0
    assert not student.network.training
    reds = torch.full((1, 3, RESOLUTION, RESOLUTION), -0.6)
    greens = reds.clone()
    reds[:, 0], greens[:, 1] = 0.5, 0.5
    assert student.network(torch.cat([reds, greens])).argmax(dim=1).tolist() == [0, 1]


def test_any_student_of_the_space_can_be_distilled(ranking: RankedStudents) -> None:
    student = ranking.distil(SPACE.largest, recipe=Recipe(epochs=1, batch_size=8, lr=0.01))
    assert (student.run.student, student.predicted_pct) == (SPACE.largest, None)
    assert "predicted" not in repr(student)


# What is refused


def test_a_file_that_is_no_predictor_is_refused(tmp_path: Path) -> None:
    for name, reason in (("absent", "No such file or directory"), (".", "Is a directory")):
        assert refusal(ConfigError, lambda name=name: load(tmp_path / name)) == (  # type: ignore[misc]
            f"a predictor must be a readable file, got {tmp_path / name} ({reason}); correct the path"
        )
    (tmp_path / "text").write_text("text")
    state = build(SPACE.smallest, 2, generator("w", 0)).state_dict()
    (tmp_path / "student").write_bytes(student_bytes(SPACE.smallest, 16, ("a", "b"), state))
    (tmp_path / "teacher").write_bytes(pack_tensors(state))
    for name in ("text", "student", "teacher"):
        message = refusal(ConfigError, lambda name=name: load(tmp_path / name))  # type: ignore[misc]
        assert message.startswith(
            f"a predictor must be a file that `meta-train --output` wrote, got {tmp_path / name}: "
        )


@pytest.mark.parametrize(
    ("made_for", "error", "message"),
    [
        ({"space": "smoky"}, ConfigError, "did you mean smoke?"),
        ({"arch_dim": 3}, PredictorMismatchError, f"its arch_dim is 3, got {SPACE.encoding_dim}"),
        ({"num_channels": 3}, PredictorMismatchError, f"its num_channels is 3, got {SPACE.num_channels}"),
        ({"noise_sha": "0"}, PredictorMismatchError, "its noise is '0'"),
        ({"support_students": 4}, ConfigError, "got one that adapts to 4 measured students too"),
    ],
)
def test_a_predictor_for_something_else_is_refused(
    made_for: dict[str, Any], error: type[InputError], message: str, tmp_path: Path
) -> None:
    file = write_predictor(tmp_path / "predictor", **made_for)
    assert message in refusal(error, lambda: load(file))


PIXELS, LABELS = torch.zeros(6, 3, RESOLUTION, RESOLUTION, dtype=torch.uint8), [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (7, "images must be a source, a path, or (images, labels) with or without class names, got int"),
        ((PIXELS,), "or (images, labels) with or without class names, got tuple"),
        ((PIXELS.float(), LABELS), "a pack's images must be torch.uint8"),
        ((PIXELS, [0.5] * 6), "labels (N,) integers, got images of shape (6, 3, 16, 16) and labels of shape (6,)"),
        ((PIXELS, [0, 1]), "and labels of shape (2,)"),
        ((PIXELS, [-1, 0, 1, 0, 1, 0]), "a pack's labels must lie in 0..1, got -1..1"),
        ((PIXELS, ["a", "b"] * 3), "number the labels 0..C-1, and give the classes' names as the third item"),
        (([[[1]], [[2, 3]]], [0, 1]), "images must be (N, 3, R, R) and labels (N,) integers, got others"),
        ((PIXELS, [0] * 6), "a source must have at least 2 classes, got 1 (0); add another class"),
        ((PIXELS, [0, 1, 2, 0, 1, 0]), "every class needs at least 2 images"),
        ((PIXELS, LABELS, ("a", "b", "c")), "every class needs images to train on, got none for c"),
        ((PIXELS[..., :8, :8], LABELS), "images must have the predictor's resolution, 16 px, got 8; resize them first"),
        ((PIXELS[:0], torch.zeros(0, dtype=torch.int64)), "a pack must hold at least one image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_that_cannot_be_used_are_refused(images: Any, message: str, predictor: Pretrained) -> None:
    assert message in refusal(DataError, lambda: predictor.rank(images))


def test_a_teacher_that_is_none_is_refused(predictor: Pretrained, place: Path) -> None:
    def rank(teacher: Any) -> str:
        return refusal(InputError, lambda: predictor.rank(place / "photos", teacher))

    for teacher, name in ((3, "int"), ({"head.bias": [0.0]}, "dict"), (["state"], "list")):
        assert rank(teacher) == (
            f"a teacher must be a safetensors file, a state dict, a module or a Teacher, got {name}; give one of these, or "
            "leave it out to train one here"
        )
    assert "no such tensor" in rank(torch.nn.Linear(2, 2))
    smaller = Teacher("t", SPACE.smallest, build(SPACE.smallest, 2, generator("w", 0)).state_dict(), 50.0)
    assert rank(smaller).startswith(f"a teacher must be the largest network of space smoke, {SPACE.largest.key}, got ")
    state = build(SPACE.largest, 3, generator("w", 0)).state_dict()
    assert "for 2 classes has head.bias" in rank(Teacher("t", SPACE.largest, state, 50.0))


def test_a_training_that_diverges_is_refused_with_the_remedy(
    predictor: Pretrained, ranking: RankedStudents, place: Path
) -> None:
    wild = replace(BRIEF, lr=1e30, epochs=5)
    message = refusal(ConfigError, lambda: predictor.rank(place / "photos", teacher_recipe=wild))
    assert re.fullmatch(
        rf"a training must not diverge, got one of {SPACE.largest.key} that did in epoch \d; give a recipe with an lr "
        r"below 1e\+30",
        message,
    )
    message = refusal(ConfigError, lambda: ranking.distil(recipe=Recipe(lr=1e30)))
    assert f"got one of {ranking.best.student.key} that did in epoch " in message


def test_a_recipe_that_needs_a_teacher_cannot_train_one(predictor: Pretrained, place: Path) -> None:
    message = refusal(ConfigError, lambda: predictor.rank(place / "photos", teacher_recipe=Recipe()))
    assert message.startswith("runs without a teacher need recipe.loss='ce' and recipe.init='scratch'")


def test_a_student_of_another_space_is_refused(ranking: RankedStudents) -> None:
    with pytest.raises(SpaceError):
        ranking.distil(get_space("paper5").largest)


@pytest.mark.parametrize("device", ["cuda:99", "meta", "gpu"])
def test_a_device_that_is_not_there_is_refused(device: str, predictor: Pretrained, place: Path) -> None:
    message = refusal(ConfigError, lambda: predictor.rank(place / "photos", device=device))
    assert message.startswith(f"device must be one that torch can use here, got {device!r} (")
    assert message.endswith("; use 'cpu'")


def test_a_student_that_cannot_be_written_is_refused(ranking: RankedStudents, tmp_path: Path) -> None:
    student = ranking.distil(recipe=Recipe(epochs=1, batch_size=8))
    absent = tmp_path / "absent" / "student.safetensors"
    assert refusal(ConfigError, lambda: student.save(absent)) == (
        f"a student must go to a writable path, got {absent} (No such file or directory); correct the path"
    )


# What importing costs


def test_importing_the_package_imports_no_torch_and_the_zoo_draws_only_when_asked() -> None:
    code = (
        "import sys, dass; assert 'torch' not in sys.modules; import dass.zoo; "
        "assert not {'matplotlib', 'sklearn', 'ray'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
