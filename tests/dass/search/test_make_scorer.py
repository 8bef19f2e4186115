"""Every meta-learned method as a scorer for a task that it never saw, from the teacher, images and records alone."""

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dass.baselines.arch_only import maml, meta_sgd
from dass.baselines.meta_d2a import MetaD2AConfig
from dass.baselines.tans import TansConfig
from dass.data.image_features import image_features, teacher_encoder
from dass.embed import Embedder, draw_noise, noise_sha
from dass.errors import DataError, PredictorMismatchError
from dass.explained import TeacherView, images_of
from dass.kd.teacher import Teacher
from dass.meta.episodes import MetaTask, split_support
from dass.meta.features import featurise
from dass.meta.method import MetaMethod
from dass.meta.train import MetaConfig, MetaTraining
from dass.records import Record, Status
from dass.search.budget import Budget
from dass.search.select import SearchConfig, StoredScorer, make_scorer, search
from dass.search.strategies import make_strategy
from tests.dass.kd.tiny import DATA
from tests.dass.meta.test_features import NUM_CLASSES, SPACE, make_record, make_teacher

RESOLUTION = 16
TEACHER = make_teacher()
NOISE = draw_noise(RESOLUTION)
RNG = torch.Generator().manual_seed(0)
IMAGES = image_features(
    teacher_encoder(TEACHER, NUM_CLASSES),
    torch.randint(256, (30, 3, RESOLUTION, RESOLUTION), generator=RNG, dtype=torch.uint8),
    torch.arange(30) % NUM_CLASSES,
    per_class=6,
)
PLACE: dict[str, Any] = {
    "space": SPACE.name,
    "resolution": RESOLUTION,
    "num_channels": SPACE.num_channels,
    "arch_dim": SPACE.encoding_dim,
    "noise_sha": noise_sha(NOISE),
}
ENCODED: dict[str, Any] = {"encoder": IMAGES.encoder, "num_features": IMAGES.values.shape[2]}
SHORT: dict[str, Any] = {"episodes": 2, "eval_every": 2}


def make_records(seed: int, num: int = 12) -> list[Record]:
    students = SPACE.sample(num, torch.Generator().manual_seed(seed))
    return [make_record(student, 40.0 + 3 * index) for index, student in enumerate(students)]


def make_task(name: str, records: Sequence[Record]) -> MetaTask:
    embedder = Embedder(TEACHER.state, TEACHER.student, NOISE)
    return featurise(name, SPACE, TEACHER, records, embedder, IMAGES, TeacherView(TEACHER, images_of(DATA)))


def lesson(name: str, seed: int) -> MetaTask:
    return make_task(name, make_records(seed))


def train(config: Any, spec: Any) -> MetaMethod:
    run: MetaTraining[Any] = MetaTraining(spec, config, [lesson("a", 1), lesson("b", 2)], [lesson("c", 3)])
    list(run)
    return run.best()  # type: ignore[no-any-return]


def methods() -> dict[str, MetaMethod]:
    dass = MetaConfig(**SHORT)
    few = dataclasses.replace(dass, support_students=3)
    adapting = {"dass": dass, "maml": maml(dass), "meta_sgd on 3 students": meta_sgd(few), "dass on 3 students": few}
    adapting["dass with ARE"] = dataclasses.replace(dass, inputs="ARE")
    adapting["dass with E on 3 students"] = dataclasses.replace(few, inputs="E")
    meta_d2a, tans = MetaD2AConfig(**SHORT, images_per_class=5), TansConfig(**SHORT)
    return {
        **{name: train(config, config.spec(**PLACE)) for name, config in adapting.items()},
        "meta_d2a": train(meta_d2a, meta_d2a.spec(**PLACE, **ENCODED)),
        "tans": train(tans, tans.spec(**PLACE, **ENCODED)),
    }


METHODS = methods()
UNSEEN = make_records(9, num=20)


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_the_method_on_the_task_made_of_the_records(name: str) -> None:
    method = METHODS[name]
    shown, rest = split_support(len(UNSEEN), method.num_support, "unseen")
    measured, asked = [UNSEEN[i] for i in shown], [UNSEEN[i].run.student for i in rest]
    scorer = make_scorer(method, SPACE, TEACHER, images=IMAGES, data=DATA, measured=measured)
    of = make_task("unseen", UNSEEN)
    expected = method.adapt(of.support(shown)).score(*of.students(rest).seen)
    found = scorer.score(asked)
    assert (found.dtype, found.shape) == (torch.float32, (len(asked),))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(scorer.to(torch.device("cpu")).score(asked[::-1]), found.flip(0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_stored_maps_give_the_scores_that_the_teacher_gives(name: str) -> None:
    method = METHODS[name]
    shown, rest = split_support(len(UNSEEN), method.num_support, "unseen")
    measured, asked = [UNSEEN[i] for i in shown], [UNSEEN[i].run.student for i in rest.flip(0)]
    expected = make_scorer(method, SPACE, TEACHER, images=IMAGES, data=DATA, measured=measured).score(asked)
    of = make_task("unseen", UNSEEN)
    scorer = StoredScorer(method.adapt(of.support(shown)), of, [record.run.student for record in UNSEEN])
    torch.testing.assert_close(scorer.to(torch.device("cpu")).score(asked), expected, rtol=1e-4, atol=1e-3)
    with pytest.raises(DataError, match="only students whose maps are stored can be scored"):
        scorer.score([SPACE.sample(256, torch.Generator())[-1], SPACE.largest])


@pytest.mark.parametrize("name", ["maml", "dass with ARE", "meta_d2a", "tans"])
def test_it_ranks_the_candidates_of_a_search_on_any_number_of_threads(name: str) -> None:
    scorer = make_scorer(METHODS[name], SPACE, TEACHER, images=IMAGES, data=DATA)
    config = SearchConfig(candidates=40, batch=20, chunk=8)
    found = []
    for threads in (1, 2):
        strategy = make_strategy("random", SPACE, Budget(), RESOLUTION, NUM_CLASSES, 0)
        found.append(list(search(strategy, scorer, config, RESOLUTION, NUM_CLASSES, threads=threads)))
    assert found[0] == found[1]
    assert len({candidate.score for batch in found[0] for candidate in batch}) > 5


@pytest.mark.parametrize("name", METHODS)
def test_a_worker_that_it_is_sent_to_scores_alike(name: str) -> None:
    method = METHODS[name]
    measured = UNSEEN[: method.num_support]
    scorer = make_scorer(method, SPACE, TEACHER, images=IMAGES, data=DATA, measured=measured)
    students = [record.run.student for record in UNSEEN[5:]]
    sent = pickle.loads(pickle.dumps(scorer))  # noqa: S301 - as Ray does between its own processes
    assert torch.equal(sent.score(students), scorer.score(students))


def test_a_method_of_another_space_or_noise_is_refused() -> None:
    config = MetaConfig(**SHORT)
    space, noise = (train(config, config.spec(**{**PLACE, **other})) for other in ({"space": "x"}, {"noise_sha": "n"}))
    with pytest.raises(PredictorMismatchError, match="its space is 'x', got 'smoke'"):
        make_scorer(space, SPACE, TEACHER)
    with pytest.raises(PredictorMismatchError, match="its noise is 'n'"):
        make_scorer(noise, SPACE, TEACHER)


def test_what_a_method_looks_at_must_be_given() -> None:
    with pytest.raises(PredictorMismatchError, match="got none"):
        make_scorer(METHODS["meta_d2a"], SPACE, TEACHER)
    with pytest.raises(PredictorMismatchError, match="needs images of the task, got none; give data"):
        make_scorer(METHODS["dass with E on 3 students"], SPACE, TEACHER, measured=UNSEEN[:3])
    with pytest.raises(PredictorMismatchError, match="trained with, 3, got 0"):
        make_scorer(METHODS["dass on 3 students"], SPACE, TEACHER)


def test_records_that_are_no_evidence_are_refused() -> None:
    lost = make_record(UNSEEN[0].run.student, None, Status.DIVERGED)
    method = METHODS["meta_sgd on 3 students"]
    with pytest.raises(DataError, match="diverged; leave it out"):
        make_scorer(method, SPACE, TEACHER, measured=[*UNSEEN[:2], lost])
    other = Teacher("other", TEACHER.student, TEACHER.state, TEACHER.accuracy_pct)
    with pytest.raises(DataError, match=r"must be distilled from teacher other, got run .* of t;"):
        make_scorer(method, SPACE, other, measured=UNSEEN[:3])
