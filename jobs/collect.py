"""`collect`: distil the sampled students on every task, and so make the database that the predictor learns from."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.plan import Plan
from dass.data.tasks import TaskSet
from dass.errors import ConfigError
from dass.records import Run, Status, Student, Task
from dass.seeding import generator
from jobs import quote, teachers
from jobs.job import Job
from jobs.train_runs import check_devices, train_runs, what_is_left


def plan(job: Job, tasks: TaskSet) -> Plan:
    """Teachers and students of the meta-tasks and of the targets."""
    return Plan("collect", (*meta_runs(job, tasks), *_target_runs(job, targets(job, tasks))))


def meta_runs(job: Job, tasks: TaskSet) -> list[Run]:
    """What predictors learn from. More students per task are those of before and others after them."""
    size = job.config.collect.students_per_task
    return [
        run
        for task in tasks.meta
        for run in (teachers.run_of(job, task), *_students(job, task, _drawn(job, task.name, size)))
    ]


def targets(job: Job, tasks: TaskSet) -> list[Task]:
    """The tasks that predictors are checked on: the classes kept aside, and all images of `evaluate.targets`.

    The latter are read only if students are distilled on them.
    """
    kept = [] if tasks.target is None else [tasks.target]
    if not job.config.collect.target_students:
        return kept
    return [*kept, *(job.whole_source(source) for source in job.config.evaluate.targets)]


def _target_runs(job: Job, tasks: Sequence[Task]) -> list[Run]:
    """The students of each target, by collect.target_draw; the first ones once more, for the noise of their accuracies."""
    collect = job.config.collect
    runs = []
    for task in tasks:
        draw = "targets" if collect.target_draw == "shared" else task.name
        students = _drawn(job, draw, collect.target_students)
        runs += [teachers.run_of(job, task), *_students(job, task, students)]
        runs += _students(job, task, students[: collect.target_repeats], seed=collect.seed + 1)
    return runs


def _drawn(job: Job, draw: str, num: int) -> list[Student]:
    """The first `num` students of the draw of that name."""
    collect = job.config.collect
    return job.space.sample(num, generator("students", collect.sample_seed, draw), collect.sampler) if num else []


def _students(job: Job, task: Task, students: Iterable[Student], seed: int | None = None) -> list[Run]:
    """The runs that distil `students` from the teacher of `task`; under `collect.seed` unless another is given."""
    teacher = teachers.run_of(job, task).id
    own = job.config.collect.seed if seed is None else seed
    return [Run(task.id, teacher, student, job.config.student, own) for student in students]


def run(job: Job) -> dict[str, Any]:
    """Collect what is missing; says how many runs ended how. With `dry_run`, what it would take instead."""
    if not job.dry_run:  # a quote may be for other machines
        check_devices(job)
    cut = job.tasks()
    tasks = [*cut.meta, *targets(job, cut)]
    priority_of = _priority_of(job, tasks)
    collection = plan(job, cut)
    done = (
        what_is_left(job, collection)
        if job.dry_run
        else train_runs(job, collection, "collect", priority_of=priority_of)
    )
    records = job.records(run.id for run in collection.runs)
    diverged = sum(record.result.status is Status.DIVERGED for record in records.values())
    names = {task.id: task.name for task in tasks}
    planned = Counter(names[run.task] for run in collection.runs)
    ended = Counter(names[record.run.task] for record in records.values())
    job.console.table(
        "Collection" + (" (dry run: nothing was trained)" if job.dry_run else ""),
        ("task", "planned", "finished"),
        [(name, planned[name], ended[name]) for name in names.values()],
    )
    found = {**done, "diverged": diverged, "plan": collection.id, "dry_run": job.dry_run}
    return {**found, "quote": quote.run(job, collection, tasks)} if job.dry_run else found


def _priority_of(job: Job, tasks: Iterable[Task]) -> dict[str, int]:
    """By task id, from the names in `collect.first`: the first of them highest."""
    first = job.config.collect.first
    id_of = {task.name: task.id for task in tasks}
    if unknown := [name for name in first if name not in id_of]:
        raise ConfigError(
            f"collect.first must name tasks of this collection, got {', '.join(unknown)}; the tasks are {', '.join(id_of)}"
        )
    return {id_of[name]: len(first) - place for place, name in enumerate(first)}
