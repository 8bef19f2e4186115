"""`search`: adapt the predictor to a teacher and rank thousands of students in a budget."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.documents import put_latest
from cluster.runtime import check_gpus, check_workers, preflight, session
from cluster.teachers import put_own_teacher
from cluster.weights import put_blob
from dass.data.batches import ResidentBatches
from dass.kd.teacher import Teacher
from dass.meta.method import epochs_of
from dass.records import Task, content_id
from dass.search.advice import advise
from dass.search.budget import Budget
from dass.search.ranking import COLUMNS, Candidate, Ranking, to_row
from dass.search.select import Scorer, make_scorer, search
from dass.threads import one_thread
from jobs import teachers
from jobs.job import Job
from jobs.target import brought_teacher, find_predictor, find_teacher, target_task

SHOWN = 10


def run(job: Job, source: str | None = None, teacher_file: Path | None = None, workers: int = 0) -> dict[str, Any]:
    """Rank candidates for the target; the ranking goes into the store, where `distil` finds it.

    workers: how many processes score, by Ray Tune; 0 scores in this one. The ranking is the same.
    """
    check_workers(workers, job.config.lanes.gpus)
    settings = job.config.search
    found, predictor = find_predictor(job)
    if not predictor.is_selected:
        job.console.say(
            "note: meta-validation gave no rank correlation, so the predictor is merely the last one trained"
        )
    task, budget = wanted(job, source)
    own = None if teacher_file is None else brought_teacher(job, task, teacher_file)
    is_trained = own is not None or not pending_teacher(job, task)
    if not is_trained:
        check_gpus(job.config.lanes.gpus)
    summary = {"target": task.name, "task": task.id, "predictor": found.sha, "dry_run": job.dry_run, **asdict(budget)}
    if job.dry_run:
        return {**summary, **_dry_run(job, task, is_trained=is_trained)}
    target_task(job, source, refresh=True)  # nothing can be refused any more: keep the images
    if own is not None:
        put_own_teacher(job.database, own, task.id)
    teacher = own or find_teacher(job, task)
    began = time.perf_counter()
    with one_thread():
        device = "cpu" if workers else job.device
        data = ResidentBatches.of(job.pack(task), task) if predictor.needs_explained else None
        scorer = make_scorer(predictor, job.space, teacher, data=data, device=device, precision=settings.precision)
    adapt_s = time.perf_counter() - began
    ranking = Ranking()
    with job.console.phase("search") as bar:
        for batch in _scored(job, task, budget, scorer, _scorer_id(found.sha, teacher, task), workers):
            ranking.add(batch)
            bar.update(ranking.scored, settings.candidates)
    ranked = ranking.ranked
    scores = [candidate.score for candidate in ranked]
    epochs = epochs_of(predictor.spec)
    advice = advise(found.calibration, scorer, job.space, teacher, task.num_classes, scores, epochs=epochs)
    value = {
        **summary,
        "teacher": teacher.id,
        "teacher_accuracy_pct": teacher.accuracy_pct,
        "adapt_s": adapt_s,
        "score_s": job.console.phases["search"],
        "scored": ranking.scored,
        "candidates": [asdict(candidate) for candidate in ranked],
        "advice": None if advice is None else {**asdict(advice), "sentences": advice.sentences},
        "sample": [] if ranking.is_complete else [asdict(candidate) for candidate in ranking.sample],
    }
    put_blob(job.store, found.data)  # a report asks it again; now, because what nothing names may be removed
    put_latest(job.store, f"search-{task.id}", value)
    job.console.table(
        f"Best of {ranking.scored} candidates for {task.name}",
        COLUMNS,
        [to_row(candidate) for candidate in ranked[:SHOWN]],
    )
    for sentence in () if advice is None else advice.sentences:
        job.console.tell(sentence)
    return {**value, "candidates": value["candidates"][:SHOWN], "sample": len(value["sample"])}


def _scored(
    job: Job, task: Task, budget: Budget, scorer: Scorer, scorer_id: str, workers: int
) -> Iterator[list[Candidate]]:
    """The candidates batch by batch, scored in this process or by workers."""
    settings = job.config.search
    if not workers:
        strategy = settings.begin(job.space, budget, task.resolution, task.num_classes)
        yield from search(strategy, scorer, settings, task.resolution, task.num_classes)
        return
    preflight(job.store.url)
    from cluster.score import ScoreJob, score_candidates  # Ray is imported only where it works

    place = (job.config.space, budget, task.resolution, task.num_classes)
    score_job = ScoreJob(job.store.url, scorer_id, *place, settings, job.config.lanes, workers)
    with session(workers), closing(score_candidates(score_job, scorer)) as batches:
        yield from batches


def _scorer_id(predictor: str, teacher: Teacher, task: Task) -> str:
    """What a score depends on, beside the student and the search itself."""
    return content_id([predictor, teacher.id, teacher.accuracy_pct, task.id])


def wanted(job: Job, source: str | None = None) -> tuple[Task, Budget]:
    """The target and what a student may cost on it, checked and not yet kept in the store.

    Raises:
        InputError: there is no target, its images cannot be used, or no student is within the budget.
    """
    task = target_task(job.reader, source, refresh=source is not None)
    return task, job.config.search.feasible_budget(job.space, task.resolution, task.num_classes)


def _dry_run(job: Job, task: Task, *, is_trained: bool) -> dict[str, Any]:
    job.console.tell(
        f"would score {job.config.search.candidates} students for {task.name}, "
        f"{'with the teacher at hand' if is_trained else 'after training its teacher'}"
    )
    return {"candidates": job.config.search.candidates, "teacher_is_trained": is_trained}


def pending_teacher(job: Job, task: Task) -> bool:
    """Whether the recipe's teacher of this task is still to be trained."""
    return bool(job.database.pending([teachers.run_of(job, task)]))
