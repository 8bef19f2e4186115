"""`distil`: train the winner for good, and beside it what it must beat."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.documents import get_latest, put_latest
from cluster.plan import Plan
from cluster.weights import get_weights
from dass.errors import ConfigError, ObjectNotFoundError
from dass.networks.files import student_bytes
from dass.records import Record, Run, Status, Student, Task
from dass.search.budget import Budget
from dass.search.controls import largest_student, random_student
from dass.search.ranking import Candidate
from dass.seeding import generator
from jobs.job import Job
from jobs.output import check_output, write_output
from jobs.target import target_task
from jobs.train_runs import train_runs

SEARCH = {  # the fields of a search's document that others read
    "teacher": str,
    "teacher_accuracy_pct": float,
    "predictor": str,
    "max_macs": int | None,
    "max_params": int | None,
    "scored": int | None,
    "candidates": tuple[Candidate, ...],  # best first
    "sample": tuple[Candidate, ...] | None,  # of all that were scored, where not all are kept
    "advice": dict[str, Any] | None,  # how sure it is
}


@dataclass(frozen=True)
class Distilled:
    """What a document notes of each role: the student and its runs, one per seed."""

    student: Student
    runs: tuple[str, ...]


def run(job: Job, source: str | None = None, output: Path | None = None) -> dict[str, Any]:
    """Distil the chosen students under every seed; the weights are kept, test is measured once per run."""
    if output is not None:
        check_output(output)
    task = target_task(job.reader, source)
    found = latest_search(job, task)
    students = chosen(job, task, found)
    runs = {
        role: tuple(Run(task.id, found["teacher"], student, job.config.final, seed) for seed in job.config.distil.seeds)
        for role, student in students.items()
    }
    plan = Plan("distil", tuple(dict.fromkeys(run for group in runs.values() for run in group)))
    check_weights(job.records(run.id for run in plan.runs).values())
    done = train_runs(job, plan, "distil", keep_weights=True)
    if job.dry_run:
        job.console.tell(f"would distil {', '.join(f'{role} {student.key}' for role, student in students.items())}")
        return {**done, "dry_run": True}
    value = {
        role: {"student": asdict(students[role]), "runs": [run.id for run in group]} for role, group in runs.items()
    }
    put_latest(job.store, f"distil-{task.id}", value)
    records = job.records(run.id for run in plan.runs)
    rows = {role: _summary([records[run.id] for run in group]) for role, group in runs.items()}
    job.console.table(
        f"Distilled on {task.name}",
        ("role", "student", "seeds", "test %", "valid %", "MMACs"),
        [(role, *_shown(row)) for role, row in rows.items()],
        num_texts=2,
    )
    if output is not None:
        export(job, task, [records[run.id] for run in runs["recommended"]], output)
    return {**done, "target": task.name, "finals": rows, "dry_run": False}


def latest_search(job: Job, task: Task) -> dict[str, Any]:
    """What the last search for this task found.

    Raises:
        ConfigError: there was none.
    """
    try:
        found = get_latest(job.store, f"search-{task.id}", **SEARCH)
    except ObjectNotFoundError as error:
        raise ConfigError(f"task {task.name} must have been searched before, got no ranking; run `search`") from error
    if not found["candidates"]:
        raise ConfigError(f"the search for task {task.name} must have found students, got none; run `search` again")
    return found


def chosen(job: Job, task: Task, found: dict[str, Any]) -> dict[str, Student]:
    """The students to distil by role; a control that is the recommended student itself is left out."""
    candidates = found["candidates"]
    students = {"recommended": candidates[0].student}
    if job.config.distil.controls:
        rng = generator("control", job.config.search.seed, task.id)
        students["random"] = random_student(found["sample"] or candidates, rng)
        budget = Budget(found["max_macs"], found["max_params"])
        students["largest"] = largest_student(job.space, budget, candidates, task.resolution, task.num_classes)
    return {role: s for role, s in students.items() if role == "recommended" or s != students["recommended"]}


def check_weights(records: Iterable[Record]) -> None:
    """Raise ConfigError, before anything is trained, when a run is done already and its weights were not kept.

    A collection does that; such a run was never measured on test, and it is not trained twice.
    """
    for record in records:
        if record.result.status is Status.FINISHED and record.weights is None:
            raise ConfigError(
                f"a final student must keep its weights, got {record.run.student.key} that was trained with seed "
                f"{record.run.seed} without; choose other seeds with distil.seeds"
            )


def export(job: Job, task: Task, records: list[Record], output: Path) -> None:
    """Write the best of the seeds (on valid) as a safetensors file whose header names student and classes."""
    best = max(records, key=lambda record: record.result.best_accuracy_pct or 0.0)
    if best.weights is None:
        raise ConfigError("the recommended student must finish under one seed, got none that did; lower final.lr")
    data = student_bytes(best.run.student, task.resolution, task.classes, get_weights(job.store, best.weights))
    write_output(output, data)
    job.console.tell(f"student written to {output}")


def _summary(records: list[Record]) -> dict[str, Any]:
    return {
        "student": records[0].run.student.key,
        "mmacs": round(records[0].macs / 1e6, 3),
        "params": records[0].params,
        "seeds": len(records),
        "test_accuracy_pct": _mean([record.result.test_accuracy_pct for record in records]),
        "best_accuracy_pct": _mean([record.result.best_accuracy_pct for record in records]),
    }


def _shown(row: Mapping[str, Any]) -> tuple[str, ...]:
    accuracies = (row[part] for part in ("test_accuracy_pct", "best_accuracy_pct"))
    shown = ("-" if accuracy is None else f"{accuracy:.1f}" for accuracy in accuracies)
    return (row["student"], str(row["seeds"]), *shown, f"{row['mmacs']:.2f}")


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.fmean(known), 2) if known else None
