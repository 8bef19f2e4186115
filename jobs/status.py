"""`status`: what is planned, done and left, from the store alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from cluster.documents import get_document, get_latest, get_task
from cluster.plan import Plan
from dass.errors import ObjectNotFoundError
from dass.records import Record, Run, Status
from jobs.job import Job

PLANS = ("teachers", "collect", "search", "distil")


def run(job: Job) -> dict[str, Any]:
    """Counts over the latest plan of each kind, in all and by task."""
    runs = {run.id: run for plan in _plans(job) for run in plan.runs}
    records = job.records(runs)
    tasks = [_task_row(job, task, runs.values(), records) for task in dict.fromkeys(run.task for run in runs.values())]
    total = {key: sum(row[key] for row in tasks) for key in ("planned", "finished", "diverged", "pending")}
    columns = ("task", "teacher %", "planned", "finished", "diverged", "pending")
    job.console.table(f"Store {job.store.url}", columns, [_shown(row) for row in tasks])
    hint = "" if runs else "; `collect` plans the runs of a recipe"
    job.console.tell(", ".join(f"{value} {key}" for key, value in total.items()) + hint)
    return {**total, "tasks": tasks, "store": job.store.url}


def _shown(row: Mapping[str, Any]) -> tuple[Any, ...]:
    accuracy_pct = row["teacher_accuracy_pct"]
    teacher = "-" if accuracy_pct is None else f"{accuracy_pct:.1f}"
    return (row["name"], teacher, row["planned"], row["finished"], row["diverged"], row["pending"])


def _plans(job: Job) -> Iterator[Plan]:
    for name in PLANS:
        try:
            plan_id = get_latest(job.store, f"plan-{name}", plan=str)["plan"]
            yield Plan.from_document(get_document(job.store, "plan", plan_id))
        except ObjectNotFoundError:
            continue


def _task_row(job: Job, task: str, runs: Any, records: dict[str, Record]) -> dict[str, Any]:  # noqa: ANN401
    mine: list[Run] = [run for run in runs if run.task == task]
    ended = [records[run.id] for run in mine if run.id in records]
    diverged = sum(record.result.status is Status.DIVERGED for record in ended)
    teacher = next((record for record in ended if record.run.teacher is None), None)
    return {
        "id": task,
        "name": get_task(job.store, task).name,
        "teacher_accuracy_pct": None if teacher is None else teacher.result.best_accuracy_pct,
        "planned": len(mine),
        "finished": len(ended) - diverged,
        "diverged": diverged,
        "pending": len(mine) - len(ended),
    }
