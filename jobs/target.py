"""The task that a student is wanted for, its teacher, and what the predictor says of its students."""

from pathlib import Path

import torch

from cluster.documents import get_latest
from cluster.plan import Plan
from cluster.teachers import load_teacher, put_own_teacher
from cluster.weights import get_blob
from dass.data.batches import ResidentBatches
from dass.embed import Embedder, draw_noise
from dass.errors import ConfigError, ObjectNotFoundError, StoreError
from dass.kd.cohort import evaluate
from dass.kd.teacher import Teacher
from dass.predictor import MetaPredictor, load_predictor
from dass.records import Task
from dass.search.select import PredictorScorer
from dass.tensors import pack_tensors, sha256, unpack_tensors
from jobs import teachers
from jobs.job import Job
from jobs.meta_train import spec_of
from jobs.train_runs import train_runs


def target_task(job: Job, source: str | None) -> Task:
    """All images of `source`, or the classes that the recipe keeps aside.

    Raises:
        ConfigError: there is neither.
    """
    if source is not None:
        return job.whole_source(source)
    target = job.tasks().target
    if target is None:
        raise ConfigError(
            f"recipe {job.config.name} keeps no classes aside as a target; give your own images with --data, or set "
            "data.target_classes"
        )
    return target


def find_teacher(job: Job, task: Task, file: Path | None = None) -> Teacher:
    """The target's teacher: the user's own, or the one of the recipe, trained now where the store has none.

    Raises:
        ConfigError: the file cannot be read. SpaceError: its weights do not fit the space or the task's classes.
        ObjectNotFoundError: with `dry_run`, the teacher is still to be trained.
    """
    if file is not None:
        return _own_teacher(job, task, file)
    run = teachers.run_of(job, task)
    train_runs(job, Plan("teachers", (run,)), f"teacher of {task.name}", keep_weights=True)
    return load_teacher(job.database, run.id)


def current_predictor(job: Job, task: Task) -> tuple[str, MetaPredictor]:
    """The store's predictor and its SHA-256, refused unless it was made for this space, resolution, noise and unit.

    Raises:
        ConfigError: the store has none.
        PredictorMismatchError: it was made for something else.
    """
    try:
        sha = str(get_latest(job.store, "predictor")["predictor"])
    except ObjectNotFoundError as error:
        raise ConfigError(
            f"a search needs a predictor, got a store without one ({job.store.url}); run `meta-train`"
        ) from error
    return sha, load_predictor(get_blob(job.store, sha), expect=spec_of(job, task.resolution))


def scorer_of(job: Job, task: Task, teacher: Teacher, predictor: MetaPredictor) -> PredictorScorer:
    """The predictor adapted to the teacher: one gradient step on (teacher, its accuracy)."""
    embedder = Embedder(teacher.state, teacher.student, draw_noise(task.resolution))
    teacher_map = embedder.maps([teacher.student])[0]
    adapted = predictor.adapt(job.space.encode(teacher.student), teacher_map, teacher.accuracy_pct)
    return PredictorScorer(adapted, embedder, job.space)


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a user's file, in float32 where they are not: the networks compute in it."""
    try:
        tensors = unpack_tensors(file.read_bytes())[0]
    except OSError as error:
        raise ConfigError(
            f"--teacher must be a readable safetensors file, got {file} ({error.strerror}); correct the path"
        ) from error
    except StoreError as error:
        raise ConfigError(
            f"--teacher must be a safetensors file, got {file} ({error.__cause__}); write the teacher's state dict with "
            "safetensors.torch.save_file"
        ) from error
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _own_teacher(job: Job, task: Task, file: Path) -> Teacher:
    state = _read_weights(file)
    identity = sha256(pack_tensors(state))
    unmeasured = Teacher(identity, job.space.largest, state, accuracy_pct=0.0)
    network = unmeasured.network(task.num_classes)
    data = ResidentBatches.of(job.pack(task), task)
    ((_, accuracy_pct),) = evaluate([network], data)
    teacher = Teacher(identity, job.space.largest, state, accuracy_pct)
    if not job.dry_run:
        put_own_teacher(job.database, teacher, task.id)
    return teacher
