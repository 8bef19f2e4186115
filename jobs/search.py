"""`search`: adapt the predictor to a teacher and rank thousands of students in a budget."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.documents import put_latest
from dass.cost import count_macs
from dass.records import Task
from dass.search.budget import Budget, check_feasible
from dass.search.ranking import Candidate, rank
from dass.search.select import search
from dass.search.strategies import make_strategy
from jobs import teachers
from jobs.job import Job
from jobs.target import current_predictor, find_teacher, scorer_of, target_task

SHOWN = 10


def run(job: Job, source: str | None = None, teacher_file: Path | None = None) -> dict[str, Any]:
    """Rank candidates for the target; the ranking goes into the store, where `distil` finds it."""
    settings = job.config.search
    task = target_task(job, source)
    budget = budget_of(job, task)
    check_feasible(budget, job.space, task.resolution, task.num_classes)
    sha, predictor = current_predictor(job, task)
    summary = {"target": task.name, "task": task.id, "predictor": sha, "dry_run": job.dry_run, **asdict(budget)}
    if job.dry_run:
        return {**summary, **_dry_run(job, task, teacher_file)}
    teacher = find_teacher(job, task, teacher_file)
    began = time.perf_counter()
    scorer = scorer_of(job, task, teacher, predictor)
    adapt_s = time.perf_counter() - began
    strategy = make_strategy(
        settings.strategy, job.space, budget, task.resolution, task.num_classes, settings.seed, sampler=settings.sampler
    )
    found: list[Candidate] = []
    with job.console.phase("search") as bar:
        for batch in search(strategy, scorer, settings, task.resolution, task.num_classes):
            found += batch
            bar.update(len(found), settings.candidates)
    ranked = rank(found)
    value = {
        **summary,
        "teacher": teacher.id,
        "teacher_accuracy_pct": teacher.accuracy_pct,
        "adapt_s": adapt_s,
        "score_s": job.console.phases["search"],
        "candidates": [asdict(candidate) for candidate in ranked],
    }
    put_latest(job.store, f"search-{task.id}", value)
    job.console.table(
        f"Best of {len(ranked)} candidates for {task.name}",
        ("student", "predicted %", "MMACs", "k params"),
        [(c.student.key, f"{c.score:.1f}", f"{c.macs / 1e6:.2f}", f"{c.params / 1e3:.0f}") for c in ranked[:SHOWN]],
    )
    return {**value, "candidates": value["candidates"][:SHOWN], "scored": len(ranked)}


def budget_of(job: Job, task: Task) -> Budget:
    """The budget of the configuration in absolute numbers for this task."""
    return job.config.search.budget(count_macs(job.space.largest, task.resolution, task.num_classes))


def _dry_run(job: Job, task: Task, teacher_file: Path | None) -> dict[str, Any]:
    if teacher_file is not None:
        find_teacher(job, task, teacher_file)
        is_trained = True
    else:
        is_trained = not pending_teacher(job, task)
    job.console.tell(
        f"would score {job.config.search.candidates} students for {task.name}, "
        f"{'with the teacher at hand' if is_trained else 'after training its teacher'}"
    )
    return {"candidates": job.config.search.candidates, "teacher_is_trained": is_trained}


def pending_teacher(job: Job, task: Task) -> bool:
    """Whether the recipe's teacher of this task is still to be trained."""
    return teachers.run_of(job, task).id not in job.database.finished_ids()
