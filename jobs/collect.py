"""`collect`: distil the sampled students on every task, and so make the database that the predictor learns from."""

from collections import Counter
from typing import Any

from cluster.plan import Plan
from dass.data.tasks import TaskSet
from dass.errors import ConfigError
from dass.records import Run, Status
from dass.seeding import generator
from jobs import quote, teachers
from jobs.budget import Budget
from jobs.job import Job
from jobs.train_runs import train_runs


def plan(job: Job, tasks: TaskSet) -> Plan:
    """Teachers and students of all tasks; every task has its own block of one pool of distinct students."""
    collect = job.config.collect
    sizes = [(task, collect.students_per_task) for task in tasks.meta]
    if tasks.target is not None:
        sizes.append((tasks.target, collect.target_students))
    rng = generator("students", collect.sample_seed)
    pool = iter(job.space.sample(sum(size for _, size in sizes), rng, collect.sampler))
    runs: list[Run] = []
    for task, size in sizes:
        teacher = teachers.run_of(job, task)
        students = [next(pool) for _ in range(size)]
        runs += [
            teacher,
            *(Run(task.id, teacher.id, student, job.config.student, collect.seed) for student in students),
        ]
    return Plan("collect", tuple(runs))


def run(job: Job) -> dict[str, Any]:
    """Collect what is missing; says how many runs ended how. With `dry_run`, what it would take instead."""
    tasks = job.tasks()
    priority_of = _priority_of(job, tasks)
    collection = plan(job, tasks)
    done = train_runs(job, collection, "collect", priority_of=priority_of, exceeded=Budget(job).exceeded)
    records = job.records(run.id for run in collection.runs)
    diverged = sum(record.result.status is Status.DIVERGED for record in records.values())
    names = {task.id: task.name for task in tasks.all}
    planned = Counter(names[run.task] for run in collection.runs)
    ended = Counter(names[record.run.task] for record in records.values())
    job.console.table(
        "Collection" + (" (dry run: nothing was trained)" if job.dry_run else ""),
        ("task", "planned", "finished"),
        [(name, planned[name], ended[name]) for name in names.values()],
    )
    found = {**done, "diverged": diverged, "plan": collection.id, "dry_run": job.dry_run}
    return {**found, "quote": quote.run(job, collection, tasks)} if job.dry_run else found


def _priority_of(job: Job, tasks: TaskSet) -> dict[str, int]:
    """By task id, from the names in `collect.first`: the first of them highest."""
    first = job.config.collect.first
    id_of = {task.name: task.id for task in tasks.all}
    if unknown := [name for name in first if name not in id_of]:
        raise ConfigError(
            f"collect.first must name tasks of this collection, got {', '.join(unknown)}; the tasks are {', '.join(id_of)}"
        )
    return {id_of[name]: len(first) - place for place, name in enumerate(first)}
