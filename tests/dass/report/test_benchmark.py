import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from dass.evaluation import Benchmark, BenchmarkTarget, Ceiling, Coverage, Interval, Judged, Redrawn, ranked, summarise
from dass.report import render_benchmark
from dass.report.benchmark_figures import by_method, speed
from dass.report.canvas import Size
from dass.report.wording import allowed, brief, ranged, told_apart
from tests.browser import open_browser

HOSTILE = "<script>alert(1)</script> & more"
NOISE = Ceiling(10, 20, Interval(0.8, 0.6, 0.9), Interval(0.9, 0.77, 0.95))
COVERAGE = Coverage(level=0.8, half_width_pct=6.04, share=0.75, winner_half_width_pct=2.0, winner_share=1 / 3)


def judged(spearman: float, seconds: float = 0.01) -> Judged:
    return Judged(spearman, spearman - 0.1, spearman / 2, 3.25, 0.5, seconds, 0.2)


def make_benchmark(*targets: str) -> Benchmark:
    values = {
        "dass": (0.81, 0.79, 0.86),
        "macs": (0.41,),
        "fisher": (math.nan, 0.1, 0.2),
        "short_kd": (0.7, 0.75, 0.72),
    }
    groups = {"dass": "meta-learned", "macs": "trivial", "fisher": "zero-cost", "short_kd": "short training"}
    summaries = [
        summarise(name, groups[name], {target: [judged(s) for s in of_seeds] for target in targets})
        for name, of_seeds in values.items()
    ]
    return Benchmark(
        tuple(ranked(summaries)),
        tuple(
            BenchmarkTarget(
                target, "f" * 32, 20, 0, 1, {"fisher": 2}, NOISE if index else None, COVERAGE if index else None
            )
            for index, target in enumerate(targets)
        ),
        {"seeds": 3, "space": "smoke", "resolution": 16, "versions": {"torch": "2"}},
    )


class Cells(HTMLParser):
    """The texts of the cells of every table row, and the tags that are open at the end."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: list[str] = []
        self._is_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        self._is_cell = tag in ("td", "th")
        if self._is_cell:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._is_cell = False

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.rows[-1][-1] += data


def test_the_page_shows_every_method_on_every_target() -> None:
    found = Cells(render_benchmark(make_benchmark("cars", "dtd")))
    reach = 4.303 * math.sqrt(sum((s - 0.82) ** 2 for s in (0.81, 0.79, 0.86)) / 2) / math.sqrt(3)  # by hand
    spearman = f"0.82 ({0.82 - reach:.2f} to {0.82 + reach:.2f})"
    of_dass = [row for row in found.rows if row[0] == "dass"]
    assert of_dass[0] == ["dass", "meta-learned", spearman, "0.72", "0.41", "3.2", "0.5", "10 ms", "0.2 s"]
    assert [row[1] for row in of_dass[1:]] == [spearman, spearman]
    assert [row[0] for row in found.rows[1:5]] == ["dass", "short_kd", "macs", "fisher"]
    assert next(row for row in found.rows if row[0] == "fisher")[2] == "undefined"
    assert next(row for row in found.rows if row[0] == "macs")[2] == "0.41"


def test_the_page_fetches_nothing_and_runs_nothing_and_hostile_names_stay_text() -> None:
    text = render_benchmark(make_benchmark(HOSTILE, "dtd"))
    assert "script" not in Cells(text).tags
    assert "default-src 'none'" in text
    assert "script-src" not in text
    assert [target for target in re.findall(r"url\(\s*['\"]?(.)", text) if target != "#"] == []


@pytest.mark.parametrize("size", ["wide", "compact"])
def test_pictures_show_what_is_defined(size: Size) -> None:
    benchmark = make_benchmark("cars", "dtd")
    with_ceiling = by_method(benchmark, 1, size)
    for name in ("dass", "macs", "fisher", "short_kd", "label-noise ceiling"):
        assert name in with_ceiling
    assert "label-noise ceiling" not in by_method(benchmark, 0, size)
    assert with_ceiling.count("zero-cost") == 0  # its only method is undefined
    assert speed(benchmark, size).count("meta-learned") >= 1


def test_it_says_what_the_noise_of_the_labels_allows() -> None:
    cars, dtd = make_benchmark("cars", "dtd").targets
    assert allowed(cars).startswith("cars: 20 students, 1 more diverged; too few of them ran under several seeds")
    assert allowed(dtd) == (
        "dtd: 20 students, 1 more diverged; label-noise ceiling 0.90 (0.77 to 0.95), between two runs 0.80 (0.60 to 0.90), "
        "with the noise of 20 runs of 10 students; 75 % of the students within ± 6.0 points of what dass predicted, the one "
        "ranked first within ± 2.0 in 33 % of the trainings, 80 % promised on average over tasks"
    )


def test_it_says_which_methods_these_students_tell_apart() -> None:
    benchmark = make_benchmark("cars")
    assert told_apart(benchmark) is None
    first = Redrawn(Interval(0.8, 0.61, 0.92), Interval(0.0, 0.0, 0.0))
    near, far = (Redrawn(Interval(0.7), Interval(0.1, low, 0.3)) for low in (-0.05, 0.05))
    start = "With other students of the same kind (bootstrap), dass would have 0.61 to 0.92 in 95 % of cases, and "
    known = replace(benchmark, redrawn={"dass": first, "short_kd": near, "macs": far})
    assert told_apart(known) == start + "short_kd may be level with it."
    assert start in render_benchmark(known)
    assert told_apart(replace(known, redrawn={"dass": first, "macs": far})) == start + "it is ahead of all others."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (95.4, "95 s"),
        (0.31, "0.31 s"),
        (0.0042, "4.2 ms"),
        (0.0997, "100 ms"),
        (1.2e-5, "12 µs"),
        (3e-6, "3.0 µs"),
    ],
)
def test_times_have_a_unit(seconds: float | None, text: str) -> None:
    assert brief(seconds) == text


def test_a_correlation_has_its_interval_where_there_is_one() -> None:
    assert [ranged(Interval(*ends)) for ends in ((None,), (0.5,), (0.5, -0.25, 1.25))] == [
        "undefined",
        "0.50",
        "0.50 (−0.25 to 1.25)",
    ]


def test_a_browser_shows_the_page_without_scrolling_sideways(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(render_benchmark(make_benchmark("cars", "dtd")))
    with open_browser() as browser:
        page = browser.new_page()
        problems: list[str] = []
        page.on("console", lambda message: problems.append(message.text))
        page.goto((tmp_path / "page.html").as_uri())
        for width in (390, 1200):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        assert problems == []
        assert page.locator("section").count() == 5
