"""The page itself: one HTML text that fetches nothing and lets no script run but its own."""

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from dass.report import wording
from dass.report.findings import estimate, pairs, recommended
from dass.report.model import PageData
from dass.report.summary import facts

FILTERS = ("percent", "spread", "signed", "correlation", "count", "times", "duration")


def render(page: PageData) -> str:
    """The whole page as HTML text, ready to be written as UTF-8."""
    environment = make_environment(FILTERS)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    known, script = facts(page), part("page.js")
    text = environment.get_template("page.html").render(
        facts=known,
        pictures=_pictures(page),
        axes=_axes(known),
        style=Markup(part("page.css")),  # noqa: S704 - it is our own file
        script=Markup(script),  # noqa: S704 - it is our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return text.encode("utf-8", "replace").decode("utf-8")  # class names may come from undecodable file names


def make_environment(filters: Sequence[str]) -> Environment:
    """Templates from this package's files, text escaped, with these functions of `wording` as filters."""
    environment = Environment(
        loader=FunctionLoader(part), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {name: getattr(wording, name) for name in filters}
    return environment


def part(name: str) -> str:
    """One of the files that the page is put together from."""
    return files("dass.report").joinpath(name).read_text(encoding="utf-8")


def _pictures(page: PageData) -> dict[str, dict[str, Markup]]:
    """Each picture that the data allow, in both sizes."""
    from dass.report import canvas, figures  # matplotlib loads only for those who draw

    chosen = recommended(page)
    student = chosen.student if chosen is not None else page.largest
    runs = [record for final in page.finals for record in final.records]
    wanted: dict[str, tuple[bool, Callable[[canvas.Size], str]]] = {
        "architecture": (True, lambda size: figures.architecture(student, page.largest, page.resolution, size)),
        "plane": (bool(page.candidates or estimate(runs, "valid")), lambda size: figures.plane(page, size)),
        "agreement": (bool(pairs(page)), lambda size: figures.agreement(page, size)),
        "curves": (bool(runs or page.teacher), lambda size: figures.curves(page, size)),
        "meta": (bool(page.meta), lambda size: figures.meta(page, size)),
        "tuning": (bool(page.tuning), lambda size: figures.tuning(page.tuning, size)),
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
