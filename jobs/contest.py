"""`contest`: each method searches on its own, the student that it ranks first is distilled, and the accuracies are compared.

Every method ranks the same students in the same budget (search.*), once per seed of `distil.seeds`; what the method of the
i-th repeat ranks first is distilled under the i-th seed, so an interval holds what both draw.

The keys of the JSON document:

    methods     name -> target -> {accuracy_pct, test_accuracy_pct -> {mean, low, high}, adapt_s, search_s, picks}; null is
                undefined, and the ends of a single value's interval; times are medians. picks: one per repeat, each
                {student, run, seed, score, macs, params, accuracy_pct, test_accuracy_pct}, null where a run diverged
    overall     name -> {accuracy_pct, test_accuracy_pct} -> {mean, low, high} over the targets; the interval is over repeats
    order       names by mean accuracy_pct, the best first
    groups      name -> trivial, zero-cost, short training or meta-learned
    targets     name -> {task, teacher, teacher_accuracy_pct, max_macs, max_params, candidates}
    protocol    distil_seeds, meta_records, space, resolution, recipe, device, threads, code, versions
    dry_run     with true there is beside it only what is pending
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import torch

from cluster.documents import get_document, put_document
from cluster.plan import Plan
from cluster.runtime import check_gpus, code_version, versions
from cluster.schema import build
from dass.baselines.catalog import Catalog, Method
from dass.baselines.registry import check_recipe
from dass.errors import ConfigError, ObjectNotFoundError
from dass.evaluation import Interval, interval
from dass.records import Record, Run, Student, Task, content_id
from dass.report.wording import duration, percent
from dass.search.budget import Budget
from dass.search.ranking import Ranking
from dass.search.select import Scorer, search
from dass.threads import one_thread
from jobs import teachers
from jobs.distil import check_weights
from jobs.evaluation_records import Target, target_tasks, without_students
from jobs.evaluation_scores import Evaluation
from jobs.job import Job
from jobs.meta_train import learnable
from jobs.train_runs import train_runs

ACCURACIES = ("accuracy_pct", "test_accuracy_pct")


@dataclass(frozen=True)
class Pick:
    """What one method ranked first of `scored` students, and the seconds that its search took, without its meta-training."""

    student: Student
    score: float
    macs: int
    params: int
    scored: int
    adapt_s: float
    search_s: float


Picks = dict[tuple[str, int, str], Pick]  # by method, repeat, target


def run(job: Job, *, names: Sequence[str] | None = None, sources: Sequence[str] = ()) -> dict[str, Any]:
    """Search with every method, distil what each ranks first, then print and return the comparison.

    Raises:
        ConfigError: a method is unknown or wants distilled students of the target. BudgetError: no student is in the budget.
        Others as `train_runs`.
    """
    methods = Catalog(job.config.meta, job.config.meta_d2a, job.config.tans).choose(names)
    check_recipe([method.name for method in methods], job.config.student, "student")
    if job.config.meta.support_students:
        raise ConfigError(
            "a contest is on targets without any distilled student, got meta.support_students="
            f"{job.config.meta.support_students}; set it to 0"
        )
    found = learnable(job)
    tasks = target_tasks(job, sources, refresh=True)
    budgets = {t.name: job.config.search.feasible_budget(job.space, t.resolution, t.num_classes) for t in tasks}
    targets = [without_students(job, task, (record.run.id for record in found.records)) for task in tasks]
    evaluation = Evaluation(job, methods, len(job.config.distil.seeds), targets, found)
    picks = _known(evaluation, budgets)
    wanted = [(method.name, seed, target.task.name) for method, seed, target in evaluation.wanted]
    summary: dict[str, Any] = {"searches": len(wanted), "pending": len(wanted) - len(picks), "dry_run": job.dry_run}
    if job.dry_run:
        job.console.tell(
            f"would search {summary['pending']} of {len(wanted)} times among {job.config.search.candidates} students, "
            f"and distil at most {len(job.config.distil.seeds) * len(methods) * len(tasks)} of them"
        )
        return summary
    check_gpus(job.config.lanes.gpus)
    for source in sources or job.config.evaluate.targets:
        job.whole_source(source, refresh=True)  # nothing can be refused any more: keep the images
    teacher_runs = {task.name: teachers.run_of(job, task) for task in tasks}
    train_runs(job, Plan("contest-teachers", tuple(teacher_runs.values())), "teachers", keep_weights=True)
    _search(evaluation, budgets, picks)
    runs = _runs(evaluation, picks)
    plan = Plan("contest", tuple(dict.fromkeys(runs.values())))
    check_weights(job.records(each.id for each in plan.runs).values())
    train_runs(job, plan, "distil", keep_weights=True)
    records = job.records(each.id for each in (*plan.runs, *teacher_runs.values()))
    document = {
        **_compared(evaluation, picks, runs, records),
        "targets": {
            task.name: {
                "task": task.id,
                "teacher": teacher_runs[task.name].id,
                "teacher_accuracy_pct": records[teacher_runs[task.name].id].result.best_accuracy_pct,
                **asdict(budgets[task.name]),
                "candidates": max(pick.scored for (*_, target), pick in picks.items() if target == task.name),
            }
            for task in tasks
        },
        "protocol": _protocol(evaluation),
        **summary,
    }
    _tell(job, document)
    return document


def _known(evaluation: Evaluation, budgets: Mapping[str, Budget]) -> Picks:
    """The searches that are done."""
    picks: Picks = {}
    for method, seed, target in evaluation.wanted:
        key = _key(evaluation, method, seed, target, budgets)
        try:
            found = build(Pick, get_document(evaluation.job.store, "contest", key), key)
        except ObjectNotFoundError:
            continue
        picks[method.name, seed, target.task.name] = found
    return picks


def _key(evaluation: Evaluation, method: Method, seed: int, target: Target, budgets: Mapping[str, Budget]) -> str:
    parts = [evaluation.key_of(method, seed, target), evaluation.job.config.search, budgets[target.task.name]]
    return content_id({"contest": parts})


def _search(evaluation: Evaluation, budgets: Mapping[str, Budget], picks: Picks) -> None:
    """What is not known yet, added to `picks` and kept as it comes."""
    job = evaluation.job
    with job.console.phase("contest") as bar:
        for method in evaluation.methods:
            for seed in evaluation.seeds_of(method):
                left = [target for target in evaluation.targets if (method.name, seed, target.task.name) not in picks]
                for target, build_scorer in evaluation.builders(method, seed, left) if left else ():
                    pick = _pick(job, target.task, budgets[target.task.name], build_scorer)
                    key = _key(evaluation, method, seed, target, budgets)
                    put_document(job.store, "contest", key, vars(pick))
                    picks[method.name, seed, target.task.name] = pick
                    bar.update(len(picks), len(evaluation.wanted), f"{method.name} on {target.task.name}")
                evaluation.end(method, seed)


def _pick(job: Job, task: Task, budget: Budget, build_scorer: Callable[[], Scorer]) -> Pick:
    settings, ranking = job.config.search, Ranking()
    began = time.perf_counter()
    with one_thread():
        scorer = build_scorer()
    ready = time.perf_counter()
    strategy = settings.begin(job.space, budget, task.resolution, task.num_classes)
    for batch in search(strategy, scorer, settings, task.resolution, task.num_classes):
        ranking.add(batch)
    first = ranking.ranked[0]
    took = {"adapt_s": ready - began, "search_s": time.perf_counter() - ready}
    return Pick(first.student, first.score, first.macs, first.params, ranking.scored, **took)


def _runs(evaluation: Evaluation, picks: Picks) -> dict[tuple[str, int, str], Run]:
    """By method, repeat and target; a method that draws nothing has one pick, and runs of it under every seed."""
    config = evaluation.job.config
    return {
        (method.name, repeat, target.task.name): Run(
            target.task.id,
            target.teacher,
            picks[method.name, repeat if method.is_seeded else 0, target.task.name].student,
            config.final,
            seed,
        )
        for method in evaluation.methods
        for repeat, seed in enumerate(config.distil.seeds)
        for target in evaluation.targets
    }


def _compared(
    evaluation: Evaluation, picks: Picks, runs: Mapping[tuple[str, int, str], Run], records: Mapping[str, Record]
) -> dict[str, Any]:
    names, repeats = [target.task.name for target in evaluation.targets], range(evaluation.seeds)
    methods: dict[str, Any] = {}
    overall: dict[str, dict[str, Interval]] = {}
    for method in evaluation.methods:
        shown = {
            target: [_shown(records[runs[method.name, repeat, target].id]) for repeat in repeats] for target in names
        }
        methods[method.name] = {}
        for target in names:
            searched = [picks[method.name, seed, target] for seed in evaluation.seeds_of(method)]
            scores = [pick.score for pick in searched] * (1 if method.is_seeded else len(repeats))
            methods[method.name][target] = {
                **{part: asdict(interval([_number(each[part]) for each in shown[target]])) for part in ACCURACIES},
                "adapt_s": median(pick.adapt_s for pick in searched),
                "search_s": median(pick.search_s for pick in searched),
                "picks": [{**each, "score": score} for each, score in zip(shown[target], scores, strict=True)],
            }
        overall[method.name] = {
            part: interval([fmean(_number(shown[target][repeat][part]) for target in names) for repeat in repeats])
            for part in ACCURACIES
        }
    return {
        "methods": methods,
        "overall": {name: {part: asdict(found) for part, found in each.items()} for name, each in overall.items()},
        "order": sorted(overall, key=lambda name: (-_number(overall[name]["accuracy_pct"].mean, -math.inf), name)),
        "groups": {method.name: method.group.value for method in evaluation.methods},
    }


def _shown(record: Record) -> dict[str, Any]:
    return {
        "student": record.run.student.key,
        "run": record.run.id,
        "seed": record.run.seed,
        "macs": record.macs,
        "params": record.params,
        "accuracy_pct": record.result.best_accuracy_pct,
        "test_accuracy_pct": record.result.test_accuracy_pct,
    }


def _number(value: float | None, otherwise: float = math.nan) -> float:
    return otherwise if value is None else value


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    config = evaluation.job.config
    return {
        "distil_seeds": list(config.distil.seeds),
        "meta_records": len(evaluation.found.records),
        "space": config.space,
        "resolution": config.data.resolution,
        "recipe": asdict(config.final),
        "device": evaluation.device_name,
        "threads": torch.get_num_threads(),
        "code": code_version(),
        "versions": dict(versions()),
    }


def _tell(job: Job, document: Mapping[str, Any]) -> None:
    targets, rows = list(document["targets"]), []
    for name in document["order"]:
        of_method, mean = document["methods"][name], document["overall"][name]
        cost = fmean(pick["macs"] for target in targets for pick in of_method[target]["picks"])
        rows.append(
            (
                name,
                document["groups"][name],
                *(percent(of_method[target]["accuracy_pct"]["mean"]) for target in targets),
                _ranged(mean["accuracy_pct"]),
                percent(mean["test_accuracy_pct"]["mean"]),
                f"{cost / 1e6:.2f}",
                duration(median(of_method[target]["search_s"] for target in targets)),
            )
        )
    columns = ("method", "group", *targets, "mean (95 %)", "test", "MMACs", "search")
    job.console.table(
        f"Accuracy on valid, %, of what each method ranks first of {job.config.search.candidates}, distilled",
        columns,
        rows,
        num_texts=2,
    )


def _ranged(found: Mapping[str, float | None]) -> str:
    if found["low"] is None:
        return percent(found["mean"])
    return f"{percent(found['mean'])} ({percent(found['low'])} to {percent(found['high'])})"
