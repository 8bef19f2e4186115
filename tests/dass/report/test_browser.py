"""The page as a browser shows it: nothing fetched, nothing too small, and a slider and a table that tell the facts."""

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Dialog, FloatRect, Page

from dass.report import PageData, facts, render
from dass.report.wording import count, percent, times
from tests.browser import open_browser
from tests.dass.report.example import BEST, final, full_page, many_runs

HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "<!-- <script>",
    "line\u2028separator\u2029",
    "${7*7} {{ 7 * 7 }}",
    "javascript:alert(3)",
)
NUM_RUNS = 5000
OWN = ("request: data:", "request: blob:")  # what the page itself holds
SIZES = [(390, "light"), (390, "dark"), (1440, "light"), (1440, "dark")]

FONT_SIZES = """() => {
  const sizes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || !element.getClientRects().length) continue;
    const matrix = element.closest("svg") ? element.getScreenCTM() : null;
    sizes.push(parseFloat(getComputedStyle(element).fontSize) * (matrix ? Math.hypot(matrix.a, matrix.b) : 1));
  }
  return sizes;
}"""
COLOURS = """(selectors) => selectors.flatMap((selector) => [...document.querySelectorAll(selector)])
  .filter((element) => element.checkVisibility()).map((element) => {
    let behind = element, svg = element instanceof SVGElement;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [getComputedStyle(element)[svg ? "fill" : "color"], getComputedStyle(behind).backgroundColor];
  })"""
TEXTS = (
    "h1", "h2", ".verdict", ".eyebrow", "dt", ".value", ".aside", "th", "td", "td .key", ".role", "figcaption", ".note",
    "label", "summary", "footer", ".plot text", ".window th button",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def data() -> PageData:
    runs = many_runs(NUM_RUNS)
    runs = (*(replace(run, task=HOSTILE[i % 2]) for i, run in enumerate(runs[:20])), *runs[20:])
    return full_page(
        title=HOSTILE[0],
        target=HOSTILE[1],
        classes=HOSTILE[:3],
        notes=HOSTILE,
        provenance={HOSTILE[0]: HOSTILE[1]},
        finals=(*full_page().finals, final(HOSTILE[1], replace(BEST, widths=((8,), (8,), (8,), (8,))), (60.0, 61.0))),
        runs=runs,
    )


@pytest.fixture(scope="module")
def file(data: PageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(data), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with harmless texts, and so with a title as long as titles are."""
    path = tmp_path_factory.mktemp("plain") / "report.html"
    path.write_text(render(full_page()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def known(data: PageData) -> dict[str, Any]:
    return facts(data)


@pytest.fixture
def page(browser: Browser, file: Path) -> Iterator[Page]:
    """The page on a desktop."""
    with opened(browser, file) as page:
        yield page


@contextmanager
def opened(browser: Browser, file: Path, width: int = 1440, height: int = 900, **options: Any) -> Iterator[Page]:
    """The loaded page; any error, dialog, word on the console or request but the document's own fails at the end."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    events: list[str] = []

    def refuse(dialog: Dialog) -> None:
        events.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("dialog", refuse)
    page.on("request", lambda request: events.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    page.wait_for_load_state("networkidle")
    yield page
    assert [event for event in events if not event.startswith(OWN)] == [f"request: {file.as_uri()}"]
    context.close()


def rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(number) / 255 for number in re.findall(r"\d+", colour)[:3])
    return red, green, blue


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(colour: str, behind: str) -> float:
    dark, light = sorted((luminance(colour), luminance(behind)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_the_largest() -> None:
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    assert contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_page_is_readable_on_telephone_and_desktop(browser: Browser, file: Path, width: int, scheme: str) -> None:
    with opened(browser, file, width, color_scheme=scheme) as page:
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert min(page.evaluate(FONT_SIZES)) >= 11
        colours = page.evaluate(COLOURS, TEXTS)
        assert len(colours) > 200
        assert [pair for pair in colours if contrast(*pair) < 4.5] == []
        assert (luminance(colours[0][0]) > luminance(colours[0][1])) == (scheme == "dark")
        leaves = page.locator(".eyebrow, h1, .verdict, .student, .numbers > div").all()
        boxes = [box for leaf in leaves if (box := leaf.bounding_box())]
    assert len(boxes) == 8
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert [pair for pair in combinations(boxes, 2) if overlap(*pair)] == []


def overlap(one: FloatRect, other: FloatRect) -> bool:
    """Whether two boxes share more than a pixel's edge."""
    is_beside = one["x"] + one["width"] <= other["x"] + 1 or other["x"] + other["width"] <= one["x"] + 1
    is_above = one["y"] + one["height"] <= other["y"] + 1 or other["y"] + other["height"] <= one["y"] + 1
    return not is_beside and not is_above


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 900)])
def test_what_was_found_is_seen_without_scrolling(browser: Browser, plain: Path, width: int, height: int) -> None:
    with opened(browser, plain, width, height) as page:
        numbers = page.locator(".numbers").bounding_box()
        page.locator("details").evaluate_all("all => all.forEach(each => each.open = true)")
        cut = page.locator(".scroll, .window").evaluate_all(
            "all => all.map(each => each.scrollWidth - each.clientWidth)"
        )
        assert max(cut) <= 0  # no table must be pushed aside to be read
    assert numbers is not None
    assert numbers["y"] + numbers["height"] <= height


def test_hostile_texts_are_seen_as_they_are(page: Page, data: PageData) -> None:
    shown = page.locator("body").text_content() or ""
    assert all(text in shown for text in HOSTILE)
    assert page.locator("h1").text_content() == HOSTILE[0]
    assert page.locator("img, iframe, object, embed, link:not([rel=icon])").count() == 0
    assert page.locator("script").count() == 2
    options = page.locator("#runs-task option").all_text_contents()
    assert set(options) == {"all tasks", *(run.task for run in data.runs)}


def test_slider_walks_along_the_predicted_frontier(page: Page, known: dict[str, Any]) -> None:
    frontier = known["candidates"]["frontier"]
    assert len(frontier) > 5
    slider = page.get_by_label("With at most")
    slider.focus()
    places = []
    page.keyboard.press("Home")
    for point in frontier:
        box = page.locator("#budget-box")
        assert box.locator("[data-show=student] .key").text_content() == point["student"]
        assert box.locator("[data-show=student] rect").count() == sum(map(len, point["widths"]))
        for name, text in {
            "predicted": percent(point["predicted_pct"]),
            "macs": count(point["macs"]),
            "params": count(point["params"]),
            "fewer-macs": times(point["times_fewer_macs"]),
            "fewer-params": times(point["times_fewer_params"]),
        }.items():
            assert box.locator(f"[data-show={name}]").text_content() == text
        said = slider.get_attribute("aria-valuetext") or ""
        assert said.startswith(f"at most {count(point['macs'])} MACs: {point['student']}, predicted ")
        places.append(
            [page.locator(f".plot.{size} .choice").get_attribute("transform") for size in ("wide", "compact")]
        )
        page.keyboard.press("ArrowRight")
    assert box.locator("[data-show=distilled]").text_content() == "came out 86.0 %"
    for each in zip(*places, strict=True):
        corners = [tuple(map(float, re.findall(r"-?[\d.]+", place or ""))) for place in each]
        assert all(left[0] < right[0] and left[1] > right[1] for left, right in pairwise(corners))
    ring = page.locator(".plot.wide .choice circle").bounding_box()
    picture = page.locator("#plane .plot.wide").bounding_box()
    assert ring is not None
    assert picture is not None
    assert picture["x"] < ring["x"] < picture["x"] + picture["width"]
    assert picture["y"] < ring["y"] < picture["y"] + picture["height"]


def test_five_thousand_runs_are_sorted_and_filtered_in_few_rows(page: Page, known: dict[str, Any]) -> None:
    rows = [dict(zip(known["runs"]["columns"], row, strict=True)) for row in known["runs"]["rows"]]
    lines, label = page.locator("#runs-window tbody tr:not(.gap)"), page.locator("#runs-count")
    assert label.text_content() == "5,000 runs"
    box = page.locator("#runs-window")
    for share in (0.5, 1.0):
        box.evaluate("(box, share) => box.scrollTop = share * (box.scrollHeight - box.clientHeight)", share)
        middle = str(round(share * (NUM_RUNS - 1)) + 2)
        page.wait_for_selector(f"#runs-window tr[aria-rowindex='{middle}']")
        assert 0 < lines.count() < 200
    assert lines.last.locator(".key").text_content() == rows[-1]["student"]

    page.get_by_role("button", name="Valid, %").click()
    best = max(row["accuracy_pct"] for row in rows if row["accuracy_pct"] is not None)
    assert lines.first.locator("td").nth(2).text_content() == f"{best:.2f}"
    page.get_by_role("button", name="Valid, %").click()
    worst = min(row["accuracy_pct"] for row in rows if row["accuracy_pct"] is not None)
    assert lines.first.locator("td").nth(2).text_content() == f"{worst:.2f}"

    wanted = [row for row in rows if row["task"] == rows[42]["task"]]
    page.locator("#runs-task").select_option(label=rows[42]["task"])
    assert label.text_content() == f"{len(wanted):,} of 5,000 runs"
    page.locator("#runs-task").select_option(value="")
    page.locator("#runs-filter").fill("DIVERGED alert(1)")
    diverged = [row for row in rows if row["status"] == "diverged" and row["task"] == HOSTILE[0]]
    assert label.text_content() == f"{len(diverged)} of 5,000 runs"
    assert lines.count() == len(diverged) > 0
    page.locator("#runs-filter").fill("no such run")
    assert (label.text_content(), lines.count()) == ("0 of 5,000 runs", 0)


def test_csv_holds_the_runs_of_the_facts(page: Page, known: dict[str, Any]) -> None:
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    header, *rows = csv.reader(io.StringIO(Path(download.value.path()).read_text(encoding="utf-8"), newline=""))
    assert header == known["runs"]["columns"]
    assert len(rows) == NUM_RUNS
    types = [str, str, int, int, float, str, int, int, float]
    read = [[None if not text else kind(text) for kind, text in zip(types, row, strict=True)] for row in rows]
    assert read == known["runs"]["rows"]


def test_page_without_javascript_still_shows_the_rest(browser: Browser, file: Path, known: dict[str, Any]) -> None:
    with opened(browser, file, java_script_enabled=False) as page:
        assert page.locator(".numbers").is_visible()
        assert not page.locator("#budget-box, #runs-window, #runs-tools, .choice").filter(visible=True).count()
        page.get_by_text("The predicted frontier as a table").click()
        assert page.locator("#frontier").is_visible()
        keys = page.locator("#frontier tbody .key").all_text_contents()
        assert keys == [point["student"] for point in known["candidates"]["frontier"]]
        assert "needs JavaScript" in (page.locator("#runs-count").text_content() or "")


def test_five_thousand_runs_keep_the_page_small(file: Path, plain: Path) -> None:
    assert file.stat().st_size - plain.stat().st_size < 110 * NUM_RUNS
