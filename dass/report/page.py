"""The facts of a page as plain JSON values, and the page itself: one HTML text that fetches nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from statistics import quantiles
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from dass.report import wording
from dass.report.findings import (
    accuracy,
    agree,
    compare,
    cost_of,
    estimate,
    frontier,
    is_finite,
    num_diverged,
    pairs,
    recommended,
    reported_part,
)
from dass.report.model import Final, PageData, ScoredPoint, TaskRow

NUM_TOP = 10
FILTERS = ("percent", "spread", "signed", "correlation", "count", "times", "duration")


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
            "num": len(page.candidates),
            "top": [_point_facts(page, point) for point in page.candidates[:NUM_TOP]],
            "frontier": [_point_facts(page, point) for point in frontier(page.candidates)],
        },
        "agreement": _agreement_facts(page),
        "tasks": [_task_facts(row) for row in page.tasks],
        "meta": _meta_facts(page),
        "phases": [asdict(phase) for phase in page.phases],
        "provenance": page.provenance,
        "notes": page.notes,
        "missing": wording.missing(page),
    }
    plain: dict[str, Any] = _plain(found)
    return plain


def render(page: PageData) -> str:
    """The whole page as HTML text, ready to be written as UTF-8."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {name: getattr(wording, name) for name in FILTERS}
    template = environment.from_string(files("dass.report").joinpath("page.html").read_text(encoding="utf-8"))
    known = facts(page)
    text = template.render(page=page, facts=known, pictures=_pictures(page), axes=_axes(known))
    return text.encode("utf-8", "replace").decode("utf-8")  # class names may come from undecodable file names


def _pictures(page: PageData) -> dict[str, dict[str, Markup]]:
    """Each picture that the data allow, in both sizes."""
    from dass.report import figures  # matplotlib loads only for those who draw

    chosen = recommended(page)
    student = chosen.student if chosen is not None else page.largest
    runs = [record for final in page.finals for record in final.records]
    wanted: dict[str, tuple[bool, Callable[[figures.Size], str]]] = {
        "architecture": (True, lambda size: figures.architecture(student, page.largest, page.resolution, size)),
        "plane": (bool(page.candidates or estimate(runs, "valid")), lambda size: figures.plane(page, size)),
        "agreement": (bool(pairs(page)), lambda size: figures.agreement(page, size)),
        "curves": (bool(runs or page.teacher), lambda size: figures.curves(page, size)),
        "meta": (bool(page.meta), lambda size: figures.meta(page, size)),
    }
    return {
        name: {"wide": Markup(draw("wide")), "compact": Markup(draw("compact"))}  # noqa: S704 - it is our own SVG
        for name, (has_data, draw) in wanted.items()
        if has_data
    }


def _axes(known: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Where the strips of the tables begin and end, in percent of accuracy."""
    finals = [
        final["accuracy_pct"] + sign * (final["accuracy_sd"] or 0)
        for final in known["finals"]
        for sign in (-1, 1)
        if final["accuracy_pct"] is not None
    ]
    tasks = [task["accuracy_pct"][end] for task in known["tasks"] if task["accuracy_pct"] for end in ("min", "max")]
    return {name: _span(values) for name, values in (("finals", finals), ("tasks", tasks))}


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Whole percents around the values, at least two apart."""
    low, high = (math.floor(min(values)), math.ceil(max(values))) if values else (0, 100)
    return (low, high) if high - low >= 2 else (low - 1, high + 1)


def _point_facts(page: PageData, point: ScoredPoint) -> dict[str, Any]:
    teacher = cost_of(page, page.largest)
    return {
        "student": point.student.key,
        "widths": point.student.widths,
        "predicted_pct": point.score,
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


def _meta_facts(page: PageData) -> dict[str, Any] | None:
    if not page.meta:
        return None
    checks = [(p.valid_spearman, p.episode) for p in page.meta if is_finite(p.valid_spearman)]
    best = max(checks, key=lambda check: (check[0], -check[1]), default=(None, None))
    last = page.meta[-1]
    return {"episodes": last.episode, "last_loss": last.loss, "best_valid_spearman": best[0], "best_episode": best[1]}


def _plain(value: Any) -> Any:  # noqa: ANN401 - a walk over arbitrary JSON-able values
    """`value` in lists and dicts, with None in place of every NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
