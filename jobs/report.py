"""`report`: gather what the store knows and write one HTML page and its facts into it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cluster.documents import get_latest
from cluster.runtime import code_version, versions
from cluster.schema import build
from cluster.teachers import load_teacher
from cluster.weights import get_blob
from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.data.tasks import TaskSet
from dass.errors import ObjectNotFoundError
from dass.predictor import load_predictor
from dass.records import Record, Run, Status, Student, Task
from dass.report import Final, MetaPoint, Observed, PageData, Phase, RunRow, TaskRow, TuneTrial, facts, render, verdict
from dass.report.model import TaskRole
from dass.search.ranking import Candidate
from dass.search.select import make_scorer
from dass.zoo.files import read_predictor
from jobs import collect, teachers
from jobs.distil import SEARCH, Distilled
from jobs.job import Job
from jobs.meta_train import current
from jobs.target import target_task
from jobs.tune import TUNING, TrialRow

PAGE = "report.html"
FACTS = "report.json"
PHASES = "phases"


def run(job: Job, source: str | None = None) -> dict[str, Any]:
    """Write report.html and its facts, report.json, into the store; print the page's path and the verdict."""
    page = page_of(job.reader, target_task(job.reader, source))
    place, known = f"{job.store.url}/{PAGE}", facts(page)
    if not job.dry_run:
        job.store.put(PAGE, render(page).encode())
        job.store.put(FACTS, json.dumps(known, separators=(",", ":"), allow_nan=False).encode())
    job.console.tell(verdict(page))
    job.console.tell(f"would write {place}" if job.dry_run else f"Report: {place}")
    short = {name: value for name, value in known.items() if name != "runs"}  # thousands of rows: report.json has them
    return {**short, "report": place, "facts": f"{job.store.url}/{FACTS}", "dry_run": job.dry_run}


def page_of(job: Job, task: Task) -> PageData:
    """Everything the page shows about one target; what is not there yet stays empty."""
    found = _latest(job, f"search-{task.id}", **SEARCH)
    finals = build(dict[str, Distilled], _latest(job, f"distil-{task.id}"), f"distil-{task.id}")
    is_shipped = found["predictor"] == read_predictor().sha if found else job.config.predictor == "package"
    meta = {} if is_shipped else current(job)
    tasks = job.tasks()
    planned = collect.plan(job, tasks).runs
    teacher_id = str(found.get("teacher", teachers.run_of(job, task).id))
    final_ids = [run_id for final in finals.values() for run_id in final.runs]
    records = job.records([run.id for run in planned] + [teacher_id, *final_ids])
    predicted = _predictions(job, task, found, finals, records)
    return PageData(
        title=f"A student for {_title(task)}",
        space=job.config.space,
        resolution=task.resolution,
        target=task.name,
        classes=task.classes,
        teacher=records.get(teacher_id),
        largest=job.space.largest,
        max_macs=found.get("max_macs"),
        max_params=found.get("max_params"),
        candidates=found.get("candidates", ()),
        scored=found.get("scored") or 0,
        sample=found.get("sample") or (),
        finals=tuple(
            Final(role, final.student, predicted.get(final.student), _present(final.runs, records))
            for role, final in finals.items()
        ),
        observed=tuple(
            Observed(_point(task, record.run.student, predicted[record.run.student]), record)
            for record in _observed(task, planned, records)
            if record.run.student in predicted
        ),
        tasks=tuple(_task_row(row, role, planned, records, found) for role, row in _roles(tasks, task)),
        runs=_runs(tasks, task, records),
        tuning=() if is_shipped else _tuning(_latest(job, "tuning", **TUNING)),
        meta=tuple(
            MetaPoint(point.episode, point.loss, point.valid_spearman)
            for point in meta.get("curve", ())
            if point.loss is not None
        ),
        phases=tuple(Phase(name, seconds) for name, seconds in phases(job).items()),
        provenance=_provenance(job, task, found, records),
        notes=_notes(job, tasks, task, is_shipped=is_shipped),
        advice=tuple((found.get("advice") or {}).get("sentences", ())),
        is_predictor_shipped=is_shipped,
    )


def _title(task: Task) -> str:
    """The classes where they are few, else the task's name."""
    return f"{', '.join(task.classes[:-1])} and {task.classes[-1]}" if task.num_classes <= 4 else task.name


def phases(job: Job) -> dict[str, float]:
    """Seconds per phase of this store so far, interrupted attempts included."""
    return build(dict[str, float], _latest(job, PHASES), PHASES)


def _latest(job: Job, name: str, **kinds: Any) -> dict[str, Any]:  # noqa: ANN401 - see get_latest
    try:
        return get_latest(job.store, name, **kinds)
    except ObjectNotFoundError:
        return {}


def _present(run_ids: Iterable[str], records: Mapping[str, Record]) -> tuple[Record, ...]:
    return tuple(records[run_id] for run_id in run_ids if run_id in records)


def _observed(task: Task, planned: Sequence[Run], records: Mapping[str, Record]) -> list[Record]:
    """The target's students that were distilled only to check the predictor."""
    return [
        records[run.id]
        for run in planned
        if run.task == task.id and run.teacher is not None and run.id in records
        if records[run.id].result.status is Status.FINISHED
    ]


def _predictions(
    job: Job, task: Task, found: Mapping[str, Any], finals: Mapping[str, Distilled], records: Mapping[str, Record]
) -> dict[Student, float]:
    """What the predictor of the search says of the students that were really distilled on the target."""
    if not found:
        return {}
    students = [record.run.student for record in records.values() if record.run.task == task.id and record.run.teacher]
    students = list(dict.fromkeys([*students, *(final.student for final in finals.values())]))
    if not students:
        return {}
    predictor = load_predictor(get_blob(job.store, found["predictor"]))
    data = ResidentBatches.of(job.pack(task), task) if predictor.needs_explained else None
    scorer = make_scorer(predictor, job.space, load_teacher(job.database, found["teacher"], task.id), data=data)
    return dict(zip(students, scorer.score(students).tolist(), strict=True))


def _point(task: Task, student: Student, score: float) -> Candidate:
    cost = count_macs(student, task.resolution, task.num_classes), count_params(student, task.num_classes)
    return Candidate(student, score, *cost)


def _roles(tasks: TaskSet, target: Task) -> list[tuple[TaskRole, Task]]:
    meta: list[tuple[TaskRole, Task]] = [("meta-train", task) for task in tasks.train]
    return [*meta, *(("meta-valid", task) for task in tasks.valid), ("target", target)]


def _task_row(
    task: Task, role: TaskRole, planned: Sequence[Run], records: Mapping[str, Record], found: Mapping[str, Any]
) -> TaskRow:
    """One task's collection; the target's teacher is the one that its search adapted to."""
    mine = [run for run in planned if run.task == task.id]
    ended = [records[run.id] for run in mine if run.id in records]
    finished = [record for record in ended if record.result.status is Status.FINISHED]
    teacher_pct = next((record.result.best_accuracy_pct for record in finished if record.run.teacher is None), None)
    accuracies = [record.result.best_accuracy_pct for record in finished if record.run.teacher is not None]
    return TaskRow(
        name=task.name,
        role=role,
        num_classes=task.num_classes,
        teacher_accuracy_pct=found.get("teacher_accuracy_pct", teacher_pct) if role == "target" else teacher_pct,
        planned=len(mine),
        finished=len(finished),
        diverged=len(ended) - len(finished),
        accuracies_pct=tuple(accuracy for accuracy in accuracies if accuracy is not None),
    )


def _runs(tasks: TaskSet, target: Task, records: Mapping[str, Record]) -> tuple[RunRow, ...]:
    """Every distilled student, task by task in the order of the tasks; teachers are in the table of the tasks."""
    names = {task.id: task.name for _, task in _roles(tasks, target)}
    order = {task_id: place for place, task_id in enumerate(names)}
    distilled = [record for record in records.values() if record.run.teacher is not None and record.run.task in names]
    distilled.sort(key=lambda r: (order[r.run.task], r.run.recipe.epochs, r.run.student.key, r.run.seed))
    return tuple(
        RunRow(
            task=names[record.run.task],
            student=record.run.student,
            macs=record.macs,
            params=record.params,
            accuracy_pct=record.result.best_accuracy_pct,
            status=record.result.status.value,
            seed=record.run.seed,
            epochs=record.run.recipe.epochs,
            seconds=record.provenance.seconds,
        )
        for record in distilled
    )


def _tuning(found: Mapping[str, Any]) -> tuple[TuneTrial, ...]:
    """The trials of the last tuning, each with the settings that are not the same in all of them."""
    trials: Sequence[TrialRow] = found.get("trials", ())
    texts = {name: {json.dumps(t.settings.get(name)) for t in trials} for t in trials for name in t.settings}
    return tuple(
        TuneTrial(
            number=trial.number,
            settings={name: value for name, value in trial.settings.items() if len(texts[name]) > 1},
            status=trial.status,
            curve=trial.curve,
            seed_spearmans=tuple(value for value in trial.seed_spearmans if value is not None),
            is_winner=trial.number == found["winner"],
        )
        for trial in trials
    )


def _provenance(job: Job, task: Task, found: Mapping[str, Any], records: Mapping[str, Record]) -> dict[str, str]:
    machines = sorted({f"{r.provenance.device}, {r.provenance.threads} thread(s)" for r in records.values()})
    return {
        "recipe": job.config.name,
        "images of the collection": job.config.data.source,
        "images of the target": f"{task.name}, pack {task.source[:12]}",
        "store": job.store.url,
        "predictor": str(found.get("predictor", "none yet")),
        "teacher": str(found.get("teacher", "none yet")),
        "trained on": "; ".join(machines) or "nothing yet",
        "code": code_version(),
        **dict(versions()),
    }


def _notes(job: Job, tasks: TaskSet, target: Task, *, is_shipped: bool) -> tuple[str, ...]:
    learned = (
        "The predictor came with the package"
        if is_shipped
        else f"The predictor learned from {len(tasks.train)} tasks and was chosen on {len(tasks.valid)}"
    )
    notes = [
        f"{learned}; it never saw a student of the target, only the target's teacher and that teacher's accuracy.",
        f"Accuracies on valid are those of the best of the evaluated epochs on {len(target.valid)} images, which is "
        "optimistic; test was measured once, after all choices.",
    ]
    if job.config.name in ("digits", "smoke"):
        notes.append(
            "This recipe shows the way on small images with few epochs and few tasks: read its figures as an example of a "
            "report, not as evidence about the method."
        )
    return tuple(notes)
