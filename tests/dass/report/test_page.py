import base64
import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from dass.cost import count_macs
from dass.report import Final, PageData, facts, render
from dass.report.wording import correlation, count, duration, percent, times
from tests.dass.report.example import BEST, TEACHER, empty_page, final, full_page, many_candidates, record

VOID = {"meta", "link", "br", "img", "hr", "input", "area", "base", "col", "embed", "source", "track", "wbr"}
SECTIONS = (
    "controls", "architecture", "plane", "agreement", "curves", "meta", "tuning", "candidates", "finals", "runs", "tasks",
    "phases", "provenance",
)  # fmt: skip
HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<!--",
    "{{ 7 * 7 }}",
    "it's & \u2028",
    "$x_1$",
)


NUMBER = re.compile(r"\d+(?:\.\d+)?(?: [kMG]\b)?")


class Outline(HTMLParser):
    """Everything a test asks about a page; it fails on a tag that closes what is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.embedded = ""
        self.programs: list[str] = []
        self.words = ""
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "script" and not attrs:
            self.programs.append("")
        if tag == "td":
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and self.programs:
            self.programs[-1] += data
        elif self.open[-1:] == ["script"]:
            self.embedded += data
        elif "style" not in self.open:
            self.words += f" {data}"
            if "td" in self.open:
                self.cells[-1] += f" {data}"

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names]


@pytest.fixture(scope="module")
def text() -> str:
    return render(full_page())


def states() -> list[PageData]:
    diverged = Final("recommended", BEST, 82.0, (record(BEST, None),))
    return [
        empty_page(),
        empty_page(classes=()),
        full_page(finals=(), observed=()),
        full_page(candidates=(), meta=(), tasks=(), phases=()),
        full_page(finals=(diverged,), observed=(), teacher=None),
        full_page(finals=(final("recommended", BEST, (84.0,)),), candidates=()),
        full_page(candidates=many_candidates(1), max_macs=None, max_params=10**6),
    ]


def test_every_tag_is_closed(text: str) -> None:
    outline = Outline(text)
    assert outline.open == []
    assert outline.tags["html"] == outline.tags["main"] == outline.tags["h1"] == 1


@pytest.mark.parametrize("page", states())
def test_a_page_made_at_any_time_is_whole(page: PageData) -> None:
    outline = Outline(render(page))
    assert outline.open == []
    present = [name for name in SECTIONS if page.tuning or name != "tuning"]
    assert [value for value in outline.values("id") if value in SECTIONS] == present
    assert json.loads(outline.embedded) == json.loads(json.dumps(facts(page)))


def test_all_sections_and_pictures_are_there_in_order(text: str) -> None:
    outline = Outline(text)
    assert [value for value in outline.values("id") if value in SECTIONS] == list(SECTIONS)
    assert outline.values("class").count("plot wide") == outline.values("class").count("plot compact") == 6
    assert outline.tags["figcaption"] == 6
    assert "absent" not in outline.values("class")


def test_headline_shows_accuracy_prediction_and_cost(text: str) -> None:
    words = " ".join(Outline(text).words.split())
    assert "Accuracy on test 85.0 ± 1.0 % 3 seeds, teacher 89.0 %" in words
    assert "Against the best control +4.0 points largest; beyond the noise of ±1.6" in words
    assert "Predicted 82.0 % on valid, came out 86.0 %" in words
    ours, teacher = count_macs(BEST, 32, 3), count_macs(TEACHER, 32, 3)
    assert f"MACs {teacher / ours:.1f}× fewer {count(ours)}, teacher {count(teacher)}" in words


def test_ids_are_unique_on_the_page(text: str) -> None:
    assert [name for name, num in Counter(Outline(text).values("id")).items() if num > 1] == []


def test_references_inside_pictures_lead_to_ids_of_the_page(text: str) -> None:
    outline = Outline(text)
    targets = set(outline.values("id"))
    used = {v[1:] for v in outline.values("xlink:href", "href") if v.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used
    assert used <= targets


def test_page_fetches_nothing(text: str) -> None:
    outline = Outline(text)
    fetched = outline.values("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background")
    assert [value for value in fetched if not value.startswith(("#", "data:"))] == []
    assert [target for target in re.findall(r"url\(\s*['\"]?(.)", text) if target != "#"] == []
    assert "@import" not in text
    namespaces = {value for name, value in outline.attributes if name.startswith("xmlns")}
    assert set(re.findall(r"https?://[^\"'\s<)]+", text)) <= namespaces
    assert "default-src 'none'" in text


def test_only_the_program_of_the_page_may_run(text: str) -> None:
    (program,) = Outline(text).programs
    digest = base64.b64encode(hashlib.sha256(program.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'\"" in text
    assert "</script" not in program


def test_hostile_names_stay_text() -> None:
    page = full_page(
        classes=HOSTILE,
        title=HOSTILE[0],
        target=HOSTILE[1],
        notes=HOSTILE,
        provenance={HOSTILE[0]: HOSTILE[1]},
        finals=(final(HOSTILE[5], BEST, (84.0, 85.0)), final(HOSTILE[0], BEST, (84.0,))),
    )
    outline = Outline(render(page))
    assert outline.open == []
    assert outline.tags["script"] == 2
    assert outline.programs == Outline(render(empty_page())).programs
    assert outline.tags["img"] == 0
    assert [name for name, _ in outline.attributes if name.startswith("on")] == []
    assert json.loads(outline.embedded)["classes"] == list(HOSTILE)
    assert all(name in outline.words for name in HOSTILE)


def test_name_that_is_no_unicode_can_still_be_written() -> None:
    assert render(empty_page(classes=("caf\udce9",))).encode("utf-8")


def test_every_number_in_a_table_is_in_the_facts() -> None:
    page = full_page()
    allowed = {str(rank) for rank in range(1, 11)}  # the places of the best candidates
    for value in leaves(facts(page)):
        formats = (str,) if isinstance(value, str) else (str, percent, count, times, correlation, duration)
        allowed |= {number for write in formats for number in NUMBER.findall(write(value))}
    cells = [NUMBER.findall(cell) for cell in Outline(render(page)).cells]
    assert sum(map(len, cells)) > 200
    assert {number for cell in cells for number in cell} <= allowed


def leaves(value: Any) -> Iterator[Any]:
    """The numbers and texts of JSON values, without signs."""
    if isinstance(value, dict):
        yield from (leaf for item in value.values() for leaf in leaves(item))
    elif isinstance(value, list):
        yield from (leaf for item in value for leaf in leaves(item))
    elif value is not None:
        yield value if isinstance(value, str) else abs(value)


def test_same_data_give_the_same_bytes(text: str) -> None:
    assert render(full_page()) == text


def test_five_thousand_candidates_keep_the_page_small() -> None:
    assert len(render(full_page(candidates=many_candidates(5000))).encode()) < 1_000_000


@pytest.mark.parametrize(
    ("section", "verb"),
    [
        ("controls", "distil"), ("plane", "search"), ("agreement", "collect"), ("curves", "teachers"),
        ("meta", "meta-train"), ("candidates", "search"), ("finals", "distil"), ("tasks", "collect"),
    ],
)  # fmt: skip
def test_empty_section_names_the_verb_that_fills_it(section: str, verb: str) -> None:
    page = render(empty_page())
    body = page[page.index(f'<section id="{section}"') :]
    assert f"<code>dass {verb}</code>" in body[: body.index("</section>")]


def test_finals_alone_say_nothing_of_how_well_the_predictor_ranks() -> None:
    claims = ("ranks these students better", "the predictor added nothing")
    assert any(claim in render(full_page()) for claim in claims)
    alone = render(full_page(observed=()))
    assert not any(claim in alone for claim in claims)
    assert "no fair sample: whether the predictor ranks well is not known" in alone


def test_only_drawing_loads_matplotlib() -> None:
    code = "import sys, dass.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_search_too_large_to_keep_says_how_many_there_were_and_how_many_are_drawn() -> None:
    candidates = many_candidates(60)
    text = render(full_page(candidates=candidates[:20], scored=100_000, sample=candidates[20:]))
    assert "100,000 candidates (40 of them, drawn at random)" in text
    assert "drawn at random" not in render(full_page(candidates=candidates, scored=60))
