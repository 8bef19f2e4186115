"""`data`: read images once, cut them into tasks, and pack both into the store."""

from typing import Any

from dass.records import Task
from jobs.job import Job


def run(job: Job, *, refresh: bool = True) -> dict[str, Any]:
    """Pack the source and write its tasks; says what they are. Without `refresh`, tasks that are there are kept."""
    tasks = job.tasks(refresh=refresh)
    roles = [*(("meta-train", t) for t in tasks.train), *(("meta-valid", t) for t in tasks.valid)]
    if tasks.target is not None:
        roles.append(("target", tasks.target))
    rows = [_row(role, task) for role, task in roles]
    job.console.table(
        "Tasks" + (" (dry run: nothing was written)" if job.dry_run else ""),
        ("task", "role", "classes", "train", "valid", "test", "id"),
        [tuple(row.values()) for row in rows],
    )
    return {"tasks": rows, "dry_run": job.dry_run}


def _row(role: str, task: Task) -> dict[str, Any]:
    sizes = {part: len(getattr(task, part)) for part in ("train", "valid", "test")}
    return {"name": task.name, "role": role, "classes": task.num_classes, **sizes, "id": task.id[:12]}
