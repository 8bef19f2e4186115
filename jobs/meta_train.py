"""`meta-train`: learn the predictor from the records of the meta-training tasks, choose it on the meta-validation ones."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cluster.checkpoints import Token, get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.documents import get_latest, put_latest
from cluster.features import get_features
from cluster.teachers import load_teacher
from cluster.weights import get_blob, put_blob
from dass.data.batches import ResidentBatches
from dass.data.tasks import TaskSet
from dass.embed import Embedder, draw_noise, noise_sha
from dass.errors import ConfigError, DataError, ObjectNotFoundError
from dass.explained import VIEW, TeacherView, images_of
from dass.meta.episodes import MetaTask
from dass.meta.features import FILE_VERSION, featurise
from dass.meta.train import STATE_VERSION, MetaConfig, MetaProgress, MetaTraining
from dass.predictor import PredictorSpec
from dass.records import Record, Task, content_id
from jobs import collect, teachers
from jobs.config import Config
from jobs.job import Job
from jobs.output import write_output

STATE = Token(0, 0)  # meta-training has one writer, so its checkpoint needs no lease


@dataclass(frozen=True)
class Tuned:
    """What is noted with a predictor that a tuning found."""

    key: str
    trials: int
    winner: int
    config: MetaConfig


PREDICTOR = {  # the fields of the document that others read
    "key": str | None,
    "predictor": str,
    "valid_spearman": float | None,
    "curve": tuple[MetaProgress, ...],
    "tuning": Tuned | None,
}


@dataclass(frozen=True)
class Learnable:
    """What there is to learn from: the tasks, and the records of their planned runs."""

    tasks: TaskSet
    records: tuple[Record, ...]
    planned: int

    def of_task(self, task: Task) -> list[Record]:
        """The records of a task."""
        return [record for record in self.records if record.run.task == task.id]

    @property
    def summary(self) -> dict[str, int]:
        """How much it is."""
        return {"records": len(self.records), "planned": self.planned}


def run(job: Job) -> dict[str, Any]:
    """Meta-train, or go on with it; the predictor becomes the store's current one."""
    found = learnable(job)
    summary = {**found.summary, "dry_run": job.dry_run}
    if job.dry_run:
        job.console.tell(f"would meta-train on {len(found.records)} records of {len(found.tasks.meta)} tasks")
        return summary
    key = training_key(job, found)
    if (known := current(job)).get("key") == key:
        job.console.say("meta-train: the store's predictor was made from these records already")
        return {**summary, "predictor": known["predictor"], "valid_spearman": known["valid_spearman"]}
    if tuned := known.get("tuning"):
        job.console.say(
            f"note: this takes the place of the predictor found by tuning; `meta-train --tune {tuned.trials}` brings it back"
        )
    train, valid = features(job, found)
    training = MetaTraining(spec_of(job, found.tasks.meta[0].resolution), job.config.meta, train, valid)
    curve = learn(job, training, key, job.config.meta.episodes)
    sha = put_blob(job.store, training.best().save())
    best = max((point.valid_spearman for point in curve if point.valid_spearman is not None), default=None)
    value = {
        "key": key,
        "predictor": sha,
        "records": len(found.records),
        "valid_spearman": best,
        "curve": [asdict(point) for point in curve],
    }
    put_latest(job.store, "predictor", value)
    remove_checkpoints(job.store, key)
    job.console.tell(
        f"Predictor {sha[:12]}: Spearman {shown(best)} on meta-validation, learned from {len(found.records)} records."
    )
    return {**summary, "predictor": sha, "valid_spearman": best}


def export(job: Job, predictor: str, output: Path) -> None:
    """Write the predictor with this SHA-256 as a file of its own; `dass.zoo.load` reads it."""
    write_output(output, get_blob(job.store, predictor))
    job.console.tell(f"predictor written to {output}")


def learnable(job: Job) -> Learnable:
    """The meta-training and meta-validation tasks and what was collected on them.

    Raises:
        ConfigError: the recipe has no such tasks. DataError: nothing was collected on them.
    """
    check_recipe(job.config)
    tasks = job.reader.tasks()
    planned = [run for run in collect.meta_runs(job, tasks) if run.teacher is not None]
    by_id = job.records(run.id for run in planned)
    records = tuple(by_id[run.id] for run in planned if run.id in by_id)  # in whatever order the store has them
    if not records:
        raise DataError(f"meta-training needs records, got none of {len(planned)} planned; run `collect` first")
    if len(records) < len(planned):
        job.console.say(f"note: {len(planned) - len(records)} of {len(planned)} planned runs have no record yet")
    return Learnable(tasks, records, len(planned))


def check_recipe(config: Config) -> None:
    """Raise ConfigError unless the recipe has tasks to learn from."""
    if config.data.split == "whole":
        raise ConfigError(
            f"meta-training needs meta-tasks, got recipe {config.name}, all whose images are one target (data.split=whole); name "
            "a recipe that cuts tasks, such as --recipe tiny25_32px"
        )


def training_key(job: Job, found: Learnable) -> str:
    """Hash of all that a meta-training depends on."""
    return content_id(_parts(job, found))


def tuning_key(job: Job, found: Learnable) -> str:
    """Hash of all that a trial of a tuning depends on."""
    return content_id({**_parts(job, found), "tune": job.config.tune.of_trials})


def _parts(job: Job, found: Learnable) -> dict[str, Any]:
    ids = sorted(record.run.id for record in found.records)
    seen = {"space": job.config.space, "view": VIEW}
    return {"version": STATE_VERSION, "meta": job.config.meta, **seen, "records": ids}


def current(job: Job) -> dict[str, Any]:
    """The store's current predictor and how it was made; empty when there is none."""
    try:
        return get_latest(job.store, "predictor", **PREDICTOR)
    except ObjectNotFoundError:
        return {}


def features(
    job: Job, found: Learnable, device: torch.device | str = "cpu"
) -> tuple[tuple[MetaTask, ...], tuple[MetaTask, ...]]:
    """The meta-training and the meta-validation tasks as the predictor sees them, on `device`."""
    made: dict[str, MetaTask] = {}
    with job.console.phase("student maps") as bar:
        for task in found.tasks.meta:
            made[task.id] = features_of(job, task, found.of_task(task), device)
            bar.update(len(made), len(found.tasks.meta))
    return tuple(made[task.id] for task in found.tasks.train), tuple(made[task.id] for task in found.tasks.valid)


def shown(spearman: float | None) -> str:
    """A Spearman as a person reads it."""
    return "undefined" if spearman is None else f"{spearman:.2f}"


def spec_of(job: Job, resolution: int, config: MetaConfig | None = None) -> PredictorSpec:
    """What a predictor of the recipe, or of `config`, is made for; it travels in its file and is checked at search."""
    return (config or job.config.meta).spec(
        space=job.config.space,
        resolution=resolution,
        num_channels=job.space.num_channels,
        arch_dim=job.space.encoding_dim,
        noise_sha=noise_sha(draw_noise(resolution)),
        recipe=job.config.student.canonical,
    )


def features_of(
    job: Job,
    task: Task,
    records: Sequence[Record],
    device: torch.device | str = "cpu",
    teacher: str | None = None,
) -> MetaTask:
    """The maps, encodings and accuracies of a task's records; of the recipe's teacher unless another is named.

    What students explain is among them where the recipe's predictor asks for it, or where it is kept already.
    """
    teacher_id = teacher or teachers.run_of(job, task).id
    needs_view = "E" in job.config.meta.inputs
    known = kept_features(job, teacher_id, records, needs_explained=needs_view)
    if known is not None:
        return replace(known, maps=known.maps.to(device))
    found = load_teacher(job.database, teacher_id, task.id)
    embedder = Embedder(found.state, found.student, draw_noise(task.resolution).to(device))
    view = None
    if needs_view:
        view = TeacherView(found, images_of(ResidentBatches.of(job.pack(task), task)).to(embedder.device))
    return featurise(task.name, job.space, found, records, embedder, view=view)


def kept_features(job: Job, teacher: str, records: Sequence[Record], *, needs_explained: bool) -> MetaTask | None:
    """The features of these records, in this order, if the store has them and all that is asked for."""
    known = get_features(job.store, features_key(job, teacher, records))
    return None if known is None or (needs_explained and known.explained is None) else known


def features_key(job: Job, teacher: str, records: Sequence[Record]) -> str:
    """Hash of all that the features of these records, in this order, were made from."""
    noise = noise_sha(draw_noise(job.config.data.resolution))
    runs = [record.run.id for record in records]
    place = {"space": job.config.space, "noise": noise, "view": VIEW, "teacher": teacher}
    return content_id({"version": FILE_VERSION, **place, "runs": runs})


def learn(
    job: Job, training: MetaTraining[Any], key: str, episodes: int, phase: str = "meta-train"
) -> list[MetaProgress]:
    """Train to the end from the checkpoint under `key`, if there is one, and keep it there; the whole curve."""
    try:
        training.restore(get_checkpoint(job.store, key, STATE))
    except ObjectNotFoundError:
        job.console.say(f"{phase} starts afresh")
    with job.console.phase(phase) as bar:
        for progress in training:
            put_checkpoint(job.store, key, STATE, training.state_bytes())
            spearman = progress.valid_spearman
            bar.update(progress.episode, episodes, "" if spearman is None else f"Spearman {spearman:.2f}")
    return list(training.history)
