"""The facts of a page as plain JSON values: every number that it shows, under a name."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from statistics import fmean, quantiles, stdev
from typing import Any

from dass.records import Student
from dass.report import wording
from dass.report.findings import (
    accuracy,
    agree,
    compare,
    cost_of,
    estimate,
    frontier,
    is_finite,
    measured,
    num_diverged,
    pairs,
    recommended,
    reported_part,
)
from dass.report.model import Final, PageData, RunRow, TaskRow, TuneTrial
from dass.search.ranking import Candidate

NUM_TOP = 10


def facts(page: PageData) -> dict[str, Any]:
    """Every number of the page under a name, JSON-able; what is unknown or not finite is None.

    Accuracies under `accuracy_pct` are on `accuracy_part`; predictions always speak of valid.
    """
    chosen = recommended(page)
    comparison = compare(page)
    found = {
        "title": page.title,
        "space": page.space,
        "resolution": page.resolution,
        "target": page.target,
        "classes": page.classes,
        "verdict": wording.verdict(page),
        "accuracy_part": reported_part(page),
        "budget": {"max_macs": page.max_macs, "max_params": page.max_params},
        "teacher": _teacher_facts(page),
        "recommended": None if chosen is None else _final_facts(page, chosen),
        "comparison": None
        if comparison is None
        else {
            "control": comparison.control.role,
            "outcome": comparison.outcome,
            "lead_pct": comparison.lead,
            "margin_pct": comparison.margin,
        },
        "finals": [_final_facts(page, final) for final in page.finals],
        "candidates": {
            "num": page.scored or len(page.candidates),
            "drawn": len(page.sample or page.candidates),
            "top": [_point_facts(page, point) for point in page.candidates[:NUM_TOP]],
            "frontier": [_point_facts(page, point) for point in frontier(page)],
        },
        "observed": [_point_facts(page, seen.point) for seen in page.observed],
        "agreement": _agreement_facts(page),
        "tasks": [_task_facts(row) for row in page.tasks],
        "runs": {"columns": [field.name for field in fields(RunRow)], "rows": [_run_facts(row) for row in page.runs]},
        "meta": _meta_facts(page),
        "tuning": [_trial_facts(trial) for trial in sorted(page.tuning, key=_trial_order)],
        "phases": [asdict(phase) for phase in page.phases],
        "provenance": page.provenance,
        "notes": page.notes,
        "advice": page.advice,
        "missing": wording.missing(page),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def _point_facts(page: PageData, point: Candidate) -> dict[str, Any]:
    teacher = cost_of(page, page.largest)
    return {
        "student": point.student.key,
        "widths": point.student.widths,
        "predicted_pct": point.score,
        "valid_accuracy_pct": measured(page, point.student),
        "macs": point.macs,
        "params": point.params,
        "times_fewer_macs": None if teacher is None else teacher.macs / point.macs,
        "times_fewer_params": None if teacher is None else teacher.params / point.params,
    }


def _final_facts(page: PageData, final: Final) -> dict[str, Any]:
    reached, on_valid = estimate(final.records, reported_part(page)), estimate(final.records, "valid")
    chosen = recommended(page)
    ours = estimate(chosen.records, reported_part(page)) if chosen is not None else None
    cost, teacher = cost_of(page, final.student), cost_of(page, page.largest)
    return {
        "role": final.role,
        "student": final.student.key,
        "widths": final.student.widths,
        "predicted_pct": final.predicted,
        "accuracy_pct": reached.mean if reached else None,
        "accuracy_sd": reached.sd if reached else None,
        "valid_accuracy_pct": on_valid.mean if on_valid else None,
        "ahead_by_pct": reached.mean - ours.mean if reached and ours else None,
        "seeds": len(final.records),
        "diverged": num_diverged(final.records),
        "macs": cost.macs if cost else None,
        "params": cost.params if cost else None,
        "times_fewer_macs": teacher.macs / cost.macs if cost and teacher else None,
        "times_fewer_params": teacher.params / cost.params if cost and teacher else None,
    }


def _teacher_facts(page: PageData) -> dict[str, Any]:
    cost = cost_of(page, page.largest)
    return {
        "student": page.largest.key,
        "widths": page.largest.widths,
        "accuracy_pct": None if page.teacher is None else accuracy(page.teacher, reported_part(page)),
        "valid_accuracy_pct": None if page.teacher is None else accuracy(page.teacher, "valid"),
        "macs": cost.macs if cost else None,
        "params": cost.params if cost else None,
    }


def _agreement_facts(page: PageData) -> dict[str, Any]:
    """Over all distilled students, and without the finals, which were chosen and so are no fair sample."""
    known = pairs(page)
    return {"all": asdict(agree(known)), "observed": asdict(agree([pair for pair in known if pair.role is None]))}


def _task_facts(row: TaskRow) -> dict[str, Any]:
    """The row with five numbers for the spread of its accuracies, or None for them."""
    values = sorted(value for value in row.accuracies_pct if math.isfinite(value))
    fences = quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    numbers = [*values[:1], *fences, *values[-1:]]
    found = asdict(row)
    del found["accuracies_pct"]
    return {**found, "accuracy_pct": dict(zip(("min", "q1", "median", "q3", "max"), numbers, strict=False)) or None}


def _run_facts(row: RunRow) -> list[Any]:
    """The row as a list, since there may be thousands; rounded to what a table can show."""
    rounded = replace(
        row,
        accuracy_pct=None if row.accuracy_pct is None else round(row.accuracy_pct, 2),
        seconds=round(row.seconds, 1),
    )
    return [value.key if isinstance(value, Student) else value for value in vars(rounded).values()]


def _trial_facts(trial: TuneTrial) -> dict[str, Any]:
    """The trial, its best Spearman, and the mean and spread over a finalist's seeds."""
    seeds, known = trial.seed_spearmans, [value for _, value in trial.curve if is_finite(value)]
    return {
        **asdict(trial),
        "best_spearman": max(known, default=None),
        "seeds_mean": fmean(seeds) if seeds else None,
        "seeds_sd": stdev(seeds) if len(seeds) > 1 else None,
    }


def _trial_order(trial: TuneTrial) -> tuple[Any, ...]:
    """Winner first, then the finalists by their mean, then the others by their best evaluation."""
    found = _trial_facts(trial)
    best = -math.inf if found["best_spearman"] is None else found["best_spearman"]
    return not trial.is_winner, not trial.seed_spearmans, -(found["seeds_mean"] or 0.0), -best, trial.number


def _meta_facts(page: PageData) -> dict[str, Any] | None:
    if not page.meta:
        return None
    checks = [(p.valid_spearman, p.episode) for p in page.meta if is_finite(p.valid_spearman)]
    best = max(checks, key=lambda check: (check[0], -check[1]), default=(None, None))
    last = page.meta[-1]
    return {"episodes": last.episode, "last_loss": last.loss, "best_valid_spearman": best[0], "best_episode": best[1]}


def _plain(value: Any) -> Any:  # noqa: ANN401 - a walk over arbitrary JSON-able values
    """`value` in lists and dicts, with None in place of every NaN and infinity, and texts that can be written."""
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")  # class names may come from undecodable file names
    return None if isinstance(value, float) and not math.isfinite(value) else value
