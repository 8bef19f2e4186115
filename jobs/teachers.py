"""`teachers`: train the largest network of the space on every task that has no teacher yet."""

from typing import Any

from cluster.plan import Plan
from dass.kd.teacher import teacher_run
from dass.records import Run, Task
from jobs.job import Job
from jobs.train_runs import check_devices, train_runs


def run(job: Job) -> dict[str, Any]:
    """Train the teachers of the recipe's tasks and say how good they are."""
    check_devices(job)
    tasks = job.tasks()
    runs = {task.name: run_of(job, task) for task in tasks.all}
    done = train_runs(job, Plan("teachers", tuple(runs.values())), "teachers", keep_weights=True)
    records = job.records(run.id for run in runs.values())
    rows = {name: records[run.id].result.best_accuracy_pct for name, run in runs.items() if run.id in records}
    job.console.table("Teachers", ("task", "valid accuracy %"), [(name, _shown(pct)) for name, pct in rows.items()])
    if job.dry_run:
        job.console.tell(f"would train {done['pending']} of {done['planned']} teachers")
    return {**done, "teachers": rows, "dry_run": job.dry_run}


def run_of(job: Job, task: Task) -> Run:
    """The run that trains the teacher of `task` under the job's recipe."""
    return teacher_run(task, job.space, job.config.teacher)


def _shown(accuracy_pct: float | None) -> str:
    return "diverged" if accuracy_pct is None else f"{accuracy_pct:.1f}"
