"""`meta-train`: learn the predictor from the records of the meta-training tasks, choose it on the meta-validation ones."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cluster.checkpoints import Token, get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.documents import get_latest, put_latest
from cluster.teachers import load_teacher
from cluster.weights import put_blob
from dass.embed import Embedder, draw_noise, noise_sha
from dass.errors import DataError, ObjectNotFoundError
from dass.meta.episodes import MetaTask
from dass.meta.features import featurise
from dass.meta.train import MetaProgress, MetaTraining
from dass.predictor import PredictorSpec
from dass.records import Record, Task, content_id
from jobs import collect, teachers
from jobs.job import Job

STATE = Token(0, 0)  # meta-training has one writer, so its checkpoint needs no lease


def run(job: Job) -> dict[str, Any]:
    """Meta-train, or go on with it; the predictor becomes the store's current one."""
    tasks = job.reader.tasks()
    meta_ids = {task.id for task in tasks.meta}
    planned = [run for run in collect.plan(job, tasks).runs if run.teacher is not None and run.task in meta_ids]
    records = list(job.records(run.id for run in planned).values())
    if not records:
        raise DataError(f"meta-training needs records, got none of {len(planned)} planned; run `collect` first")
    summary = {"records": len(records), "planned": len(planned), "dry_run": job.dry_run}
    if len(records) < len(planned):
        job.console.say(f"note: {len(planned) - len(records)} of {len(planned)} planned runs have no record yet")
    if job.dry_run:
        job.console.tell(f"would meta-train on {len(records)} records of {len(tasks.meta)} tasks")
        return summary
    ids = sorted(record.run.id for record in records)
    key = content_id({"meta": job.config.meta, "space": job.config.space, "records": ids})
    if (known := _current(job, key)) is not None:
        job.console.say("meta-train: the store's predictor was made from these records already")
        return {**summary, "predictor": known["predictor"], "valid_spearman": known["valid_spearman"]}
    features: dict[str, MetaTask] = {}
    with job.console.phase("student maps") as bar:
        for task in tasks.meta:
            features[task.id] = features_of(job, task, [record for record in records if record.run.task == task.id])
            bar.update(len(features), len(tasks.meta))
    training = MetaTraining(
        spec_of(job, tasks.meta[0].resolution),
        job.config.meta,
        [features[task.id] for task in tasks.train],
        [features[task.id] for task in tasks.valid],
    )
    curve = _train(job, training, key)
    sha = put_blob(job.store, training.best().save())
    best = max((point.valid_spearman for point in curve if point.valid_spearman is not None), default=None)
    value = {
        "key": key,
        "predictor": sha,
        "records": len(records),
        "valid_spearman": best,
        "curve": [asdict(point) for point in curve],
    }
    put_latest(job.store, "predictor", value)
    remove_checkpoints(job.store, key)
    shown = "undefined" if best is None else f"{best:.2f}"
    job.console.tell(f"Predictor {sha[:12]}: Spearman {shown} on meta-validation, learned from {len(records)} records.")
    return {**summary, "predictor": sha, "valid_spearman": best}


def spec_of(job: Job, resolution: int) -> PredictorSpec:
    """What the predictor is made for; all of it travels in its file and is checked at search."""
    return job.config.meta.spec(
        space=job.config.space,
        resolution=resolution,
        num_channels=job.space.num_channels,
        arch_dim=job.space.encoding_dim,
        noise_sha=noise_sha(draw_noise(resolution)),
    )


def features_of(job: Job, task: Task, records: Sequence[Record]) -> MetaTask:
    """The maps, encodings and accuracies of a task's records."""
    teacher = load_teacher(job.database, teachers.run_of(job, task).id, task.id)
    embedder = Embedder(teacher.state, teacher.student, draw_noise(task.resolution))
    return featurise(task.name, job.space, teacher, records, embedder)


def _current(job: Job, key: str) -> dict[str, Any] | None:
    """The store's current predictor if it was made under this key."""
    try:
        known = get_latest(job.store, "predictor")
    except ObjectNotFoundError:
        return None
    return known if known.get("key") == key else None


def _train(job: Job, training: MetaTraining, key: str) -> list[MetaProgress]:
    """Train to the end from the last checkpoint, if there is one; the whole curve."""
    try:
        training.restore(get_checkpoint(job.store, key, STATE))
    except ObjectNotFoundError:
        job.console.say("meta-training starts afresh")
    with job.console.phase("meta-train") as bar:
        for progress in training:
            put_checkpoint(job.store, key, STATE, training.state_bytes())
            spearman = progress.valid_spearman
            detail = "" if spearman is None else f"Spearman {spearman:.2f}"
            bar.update(progress.episode, job.config.meta.episodes, detail)
    return list(training.history)
