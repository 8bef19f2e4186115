"""The task that a student is wanted for, its teacher, and the predictor that ranks its students."""

from dataclasses import replace
from pathlib import Path

from cluster.plan import Plan
from cluster.teachers import load_teacher
from cluster.weights import get_blob
from dass.data.batches import ResidentBatches
from dass.errors import ConfigError
from dass.kd.own_teacher import own_teacher, read_weights
from dass.kd.teacher import Teacher
from dass.predictor import MetaPredictor, load_predictor
from dass.records import Task
from dass.zoo.files import PredictorFile, read_predictor
from jobs import teachers
from jobs.calibrate import known_calibration
from jobs.job import Job
from jobs.meta_train import current, spec_of
from jobs.train_runs import train_runs


def target_task(job: Job, source: str | None, *, refresh: bool = False) -> Task:
    """All images of `source` (read anew with `refresh`), or the classes that the recipe keeps aside.

    Raises:
        ConfigError: there is neither.
    """
    if source is not None:
        return job.whole_source(source, refresh=refresh)
    target = job.tasks().target
    if target is None:
        raise ConfigError(
            f"recipe {job.config.name} keeps no classes aside as a target; give your own images with --data, or set "
            "data.target_classes"
        )
    return target


def find_teacher(job: Job, task: Task) -> Teacher:
    """The target's teacher of the recipe, trained now where the store has none."""
    run = teachers.run_of(job, task)
    train_runs(job, Plan("search", (run,)), f"teacher of {task.name}", keep_weights=True)
    return load_teacher(job.database, run.id, task.id)


def brought_teacher(job: Job, task: Task, file: Path) -> Teacher:
    """The user's own teacher, measured on the valid part of the task; it is not kept yet.

    Raises:
        ConfigError: the file cannot be read. SpaceError: its weights do not fit the space or the task's classes.
    """
    return own_teacher(read_weights(file), job.space.largest, ResidentBatches.of(job.pack(task), task))


def find_predictor(job: Job) -> tuple[PredictorFile, MetaPredictor]:
    """The predictor that the recipe asks, refused unless it was made for this space, resolution, noise and unit.

    The unit of a tuned one is what the tuning found, and that of the package's its own.

    Raises:
        ConfigError: there is none.
        PredictorMismatchError: it was made for something else.
    """
    expected = spec_of(job, job.config.data.resolution)
    if job.config.predictor == "package":
        found = read_predictor()
        return found, load_predictor(found.data, expect=replace(expected, unit=load_predictor(found.data).spec.unit))
    if not (known := current(job)):
        raise ConfigError(f"a search needs a predictor, got a store without one ({job.store.url}); run `meta-train`")
    if tuning := known.get("tuning"):
        expected = replace(expected, unit=tuning.config.unit)
    sha = known["predictor"]
    found = PredictorFile(get_blob(job.store, sha), known_calibration(job, sha))
    return found, load_predictor(found.data, expect=expected)
