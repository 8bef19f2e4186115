"""The scores of an evaluation, one document per method, seed and target, kept as they come: a killed evaluation resumes.

A result's key is the hash of all that decides it: the records' hash, the method and its settings, the seed, the space,
the recipe, the kind of device and SCORES_VERSION.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from cluster.checkpoints import remove_checkpoints
from cluster.documents import get_document, put_document
from cluster.runtime import device_name
from cluster.schema import build, damaged
from cluster.teachers import load_teacher
from dass.baselines import BaselineContext, build_baseline
from dass.baselines.catalog import LearnedConfig, Method, begin_training, with_seed
from dass.baselines.registry import SHORT_KD
from dass.data.batches import ResidentBatches
from dass.data.image_features import ImageEncoder, image_features, teacher_encoder
from dass.errors import ObjectNotFoundError
from dass.explained import VIEW
from dass.meta.episodes import ImageFeatures, MetaTask
from dass.meta.method import MetaMethod
from dass.records import Task, content_id
from dass.search.select import Scorer, StoredScorer, make_scorer
from dass.threads import one_thread
from jobs import meta_train, teachers
from jobs.evaluation_records import Target
from jobs.job import Job

SCORES_VERSION = 1  # raised when a change of the code makes any method score otherwise
Place = tuple[str, int, str]  # method, seed, target


@dataclass(frozen=True)
class Scored:
    """One method's scores of one target's students, in the order of `Target.ranked`, and what they took on one thread.

    Times are NaN where the students' maps were not computed but stored.
    """

    method: str
    seed: int
    target: str
    records: str
    scores: tuple[float, ...]
    seconds_per_candidate: float
    adapt_s: float

    @property
    def place(self) -> Place:
        """What it is the result of."""
        return (self.method, self.seed, self.target)


@dataclass(frozen=True)
class Evaluation:
    """What is to be scored, by whom."""

    job: Job
    methods: Sequence[Method]
    seeds: int
    targets: Sequence[Target]
    found: meta_train.Learnable

    def seeds_of(self, method: Method) -> range:
        """One seed is enough for a method that draws nothing."""
        return range(self.seeds if method.is_seeded else 1)

    @property
    def wanted(self) -> list[tuple[Method, int, Target]]:
        """Every result that the comparison needs."""
        return [
            (method, seed, target)
            for method in self.methods
            for seed in self.seeds_of(method)
            for target in self.targets
        ]

    def known(self) -> dict[Place, Scored]:
        """The results that the store has, by method, seed and target.

        Raises:
            StoreError: one is damaged, or is of other records than its key says.
        """
        found = {
            (method.name, seed, target.task.name): self._known(method, seed, target)
            for method, seed, target in self.wanted
        }
        return {place: scored for place, scored in found.items() if scored is not None}

    def measure(self, known: Mapping[Place, Scored]) -> Iterator[Scored]:
        """Score what is not known and keep each result before it is yielded; may be left off between two of them."""
        for method in self.methods:
            for seed in self.seeds_of(method):
                targets = [target for target in self.targets if (method.name, seed, target.task.name) not in known]
                if targets:
                    yield from self._score(method, seed, targets)

    def features(self) -> Iterator[tuple[str, MetaTask]]:
        """What methods learn from and what they rank, images included, each with the key that it is kept under."""
        for of_role, lessons in zip(
            (self.found.tasks.train, self.found.tasks.valid), self._lessons_with_images, strict=True
        ):
            for task, lesson in zip(of_role, lessons, strict=True):
                records = self.found.of_task(task)
                yield meta_train.features_key(self.job, teachers.run_of(self.job, task).id, records), lesson
        for target in self.targets:
            lesson = meta_train.features_of(self.job, target.task, target.all, self._device, target.teacher)
            key = meta_train.features_key(self.job, target.teacher, target.all)
            yield key, self._with_images(target.task, lesson)

    def _known(self, method: Method, seed: int, target: Target) -> Scored | None:
        key = self.key_of(method, seed, target)
        try:
            scored = build(Scored, get_document(self.job.store, "evaluation", key), key)
        except ObjectNotFoundError:
            return None
        expected = _records_id(method, target)
        if scored.records != expected or len(scored.scores) != len(target.ranked):
            raise damaged(key, f"scores of the records {scored.records:.80} instead of {expected}")
        return scored

    def builders(
        self, method: Method, seed: int, targets: Sequence[Target]
    ) -> Iterator[tuple[Target, Callable[[], Scorer]]]:
        """For each target what builds the method's scorer; a method that is learned is meta-trained first.

        Call `end` when the last result is kept: until then the checkpoint of that training stays.
        """
        if method.learned is None:
            yield from ((target, self._baseline(method, seed, target)) for target in targets)
            return
        learned = self._trained(method, method.learned, seed)
        yield from ((target, self._adapted(method, learned, target)) for target in targets)

    def end(self, method: Method, seed: int) -> None:
        """Remove what a method's training would have gone on from."""
        if method.learned is not None:
            remove_checkpoints(self.job.store, self._training_key(method, seed))

    def _score(self, method: Method, seed: int, targets: Sequence[Target]) -> Iterator[Scored]:
        for target, build_scorer in self.builders(method, seed, targets):
            scored = self._timed(method, seed, target, build_scorer)
            put_document(self.job.store, "evaluation", self.key_of(method, seed, target), vars(scored))
            if target is targets[-1]:
                self.end(method, seed)
            yield scored

    def _timed(self, method: Method, seed: int, target: Target, build_scorer: Callable[[], Scorer]) -> Scored:
        """Build the scorer, then score, both on one thread and without others."""
        students = [record.run.student for record in target.ranked]
        with one_thread():
            began = self._now()
            scorer = build_scorer()
            ready = self._now()
            scores = scorer.score(students)
            ended = self._now()
        is_whole = not isinstance(scorer, StoredScorer)
        return Scored(
            method=method.name,
            seed=seed,
            target=target.task.name,
            records=_records_id(method, target),
            scores=tuple(scores.tolist()),
            seconds_per_candidate=(ended - ready) / len(students) if is_whole else math.nan,
            adapt_s=ready - began if is_whole else math.nan,
        )

    @property
    def device_name(self) -> str:
        """The model of what computes."""
        return device_name(self._device)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def _device(self) -> torch.device:
        return self.job.device

    def _baseline(self, method: Method, seed: int, target: Target) -> Callable[[], Scorer]:
        context = BaselineContext(
            data=self._data(target.task),
            space=self.job.space,
            teacher=load_teacher(self.job.database, target.teacher, target.task.id),
            recipe=self.job.config.student,
            seed=seed,
            short_epochs=self.job.config.evaluate.short_epochs,
        )
        return lambda: build_baseline(method.name, context)

    def _adapted(self, method: Method, learned: MetaMethod, target: Target) -> Callable[[], Scorer]:
        needs_explained = learned.needs_explained
        known = meta_train.kept_features(self.job, target.teacher, target.all, needs_explained=needs_explained)
        if known is not None:
            return lambda: self._stored(learned, target, known)
        teacher = load_teacher(self.job.database, target.teacher, target.task.id)
        data = self._data(target.task) if method.needs_images or learned.needs_explained else None

        def adapt() -> Scorer:
            return make_scorer(
                learned,
                self.job.space,
                teacher,
                images=self._images(data) if data is not None and method.needs_images else None,
                data=data,
                measured=target.shown[: learned.num_support],
                device=self._device,
            )

        return adapt

    def _stored(self, learned: MetaMethod, target: Target, known: MetaTask) -> Scorer:
        task = replace(known, maps=known.maps.to(self._device))
        adapted = learned.adapt(task.support(torch.arange(learned.num_support)))
        return StoredScorer(adapted, task, [record.run.student for record in target.all])

    def _trained(self, method: Method, learned: LearnedConfig, seed: int) -> MetaMethod:
        """The method meta-trained with this seed, from its checkpoint if it has one."""
        train, valid = self._lessons_with_images if method.needs_images else self._lessons
        config = with_seed(learned, seed)
        training = begin_training(config, self.job.space, self.found.tasks.meta[0].resolution, train, valid)
        phase = f"meta-train {method.name}, seed {seed}"
        meta_train.learn(self.job, training, self._training_key(method, seed), config.episodes, phase)
        return training.best()

    @cached_property
    def _lessons(self) -> tuple[tuple[MetaTask, ...], tuple[MetaTask, ...]]:
        return meta_train.features(self.job, self.found, self._device)

    @cached_property
    def _lessons_with_images(self) -> tuple[tuple[MetaTask, ...], tuple[MetaTask, ...]]:
        tasks, (train, valid) = self.found.tasks, self._lessons
        return (
            tuple(self._with_images(task, lesson) for task, lesson in zip(tasks.train, train, strict=True)),
            tuple(self._with_images(task, lesson) for task, lesson in zip(tasks.valid, valid, strict=True)),
        )

    def _with_images(self, task: Task, lesson: MetaTask) -> MetaTask:
        return lesson if lesson.images is not None else replace(lesson, images=self._images(self._data(task)))

    @cached_property
    def _encoder(self) -> ImageEncoder:
        """What a meta-training task's teacher sees in images: the same for all tasks and targets."""
        task = self.found.tasks.train[0]
        return teacher_encoder(load_teacher(self.job.database, self._encoder_id, task.id), task.num_classes)

    @property
    def _encoder_id(self) -> str:
        return teachers.run_of(self.job, self.found.tasks.train[0]).id

    def _images(self, data: ResidentBatches) -> ImageFeatures:
        return image_features(self._encoder, *data.parts["train"])

    def _data(self, task: Task) -> ResidentBatches:
        """The task's images on the device, read once for all methods and seeds."""
        if task.id not in self._resident:
            self._resident[task.id] = ResidentBatches.of(self.job.pack(task), task, self._device)
        return self._resident[task.id]

    @cached_property
    def _resident(self) -> dict[str, ResidentBatches]:
        return {}

    def key_of(self, method: Method, seed: int, target: Target) -> str:
        """What a result is kept under."""
        of_method = self._method_parts(method, seed)
        return content_id({**of_method, "records": _records_id(method, target), "teacher": target.teacher})

    def _training_key(self, method: Method, seed: int) -> str:
        ids = sorted(record.run.id for record in self.found.records)
        return content_id({**self._method_parts(method, seed), "records": ids})

    def _method_parts(self, method: Method, seed: int) -> Mapping[str, Any]:
        config = self.job.config
        return {
            "method": method.name,
            "settings": self._settings(method, seed),
            "seed": seed,
            "space": config.space,
            "recipe": config.student,
            "encoder": self._encoder_id if method.needs_images else None,
            "device": self._device.type,
            "version": SCORES_VERSION,
        } | ({"view": VIEW} if method.needs_explained else {})

    def _settings(self, method: Method, seed: int) -> Any:  # noqa: ANN401 - any JSON type
        """What else the configuration says of the method."""
        if method.learned is not None:
            return with_seed(method.learned, seed)
        return self.job.config.evaluate.short_epochs if method.name == SHORT_KD else None


def _records_id(method: Method, target: Target) -> str:
    """The hash of the ids of all records that a method's scores depend on."""
    return target.own_id if method.learned is None else target.set_id
