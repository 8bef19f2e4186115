import re
from collections.abc import Callable
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from dass.records import Student
from dass.report import MetaPoint, PageData
from dass.report.canvas import PALETTE, Size
from dass.report.figures import agreement, architecture, curves, meta, plane, tuning
from dass.report.findings import frontier
from tests.dass.report.example import BEST, RANDOM, TEACHER, final, full_page, many_candidates, record

SVG = "{http://www.w3.org/2000/svg}"
SIZES: tuple[Size, ...] = ("wide", "compact")


def tuning_of(page: PageData, size: Size) -> str:
    return tuning(page.tuning, size)


PICTURES = (plane, agreement, curves, meta, tuning_of)


def drawn(size: Size) -> list[str]:
    return [
        architecture(BEST, TEACHER, 32, size),
        *(picture(full_page(), size) for picture in PICTURES),
    ]


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_well_formed_and_scale(size: Size) -> None:
    for svg in drawn(size):
        root = ET.fromstring(svg)  # noqa: S314 - our own text
        assert root.tag == f"{SVG}svg"
        assert root.attrib.keys() >= {"viewBox"}
        assert not root.attrib.keys() & {"width", "height"}
        assert root.find(f".//{SVG}style") is None


@pytest.mark.parametrize("size", SIZES)
def test_every_colour_is_a_variable_of_the_page(size: Size) -> None:
    for svg in drawn(size):
        bare = re.sub(r"var\(--\w+, #[0-9a-f]{6}\)|xlink:href=\"[^\"]*\"|url\(#[^)]*\)", "", svg)
        assert re.findall(r"#[0-9a-f]{6}\b", bare) == []


def bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """Width and height of the rectangles that are filled with a colour of the palette."""
    paths = re.findall(rf'<path d="([^"]*)"[^>]*style="fill: var\(--{colour},', svg)
    boxes = [[float(number) for number in re.findall(r"-?[\d.]+", path)] for path in paths]
    return [(max(b[0::2]) - min(b[0::2]), max(b[1::2]) - min(b[1::2])) for b in boxes]


@pytest.mark.parametrize(("size", "axis"), [("wide", 1), ("compact", 0)])
def test_bars_are_as_long_as_the_blocks_are_wide(size: Size, axis: int) -> None:
    widths = [width for stage in BEST.widths for width in stage]
    lengths = [bar[axis] for bar in bars(architecture(BEST, TEACHER, 32, size), "accent")]
    longest = max(lengths)
    assert [length / longest for length in lengths] == pytest.approx([width / 256 for width in widths], abs=1e-3)


def test_architecture_names_widths_and_map_sizes() -> None:
    svg = architecture(BEST, TEACHER, 32, "wide")
    for words in ("16", "96", "256", "Stage 4", "32 × 32 px", "4 × 4 px"):
        assert f">{words}</text>" in svg


def test_teacher_alone_is_drawn_without_the_accent() -> None:
    assert bars(architecture(TEACHER, TEACHER, 32, "wide"), "accent") == []


def test_student_may_be_deeper_than_the_outline_behind_it() -> None:
    deep = Student(((8, 8, 8), (8,), (8,), (8,)))
    assert len(bars(architecture(deep, Student(((8,),) * 4), 32, "compact"), "accent")) == 6


@pytest.mark.parametrize("size", SIZES)
def test_cloud_of_many_candidates_stays_small(size: Size) -> None:
    assert len(plane(full_page(candidates=many_candidates(20_000)), size)) < 1_000_000


def test_budget_line_is_drawn_only_where_there_is_a_budget() -> None:
    assert ">budget</text>" in plane(full_page(), "wide")
    assert ">budget</text>" not in plane(full_page(max_macs=None), "wide")


def test_each_role_stands_once_in_the_legend() -> None:
    svg = curves(full_page(), "wide")
    assert [svg.count(f">{role}</text>") for role in ("teacher", "recommended", "random", "largest")] == [1] * 4


@pytest.mark.parametrize("picture", PICTURES)
def test_scarce_data_are_drawn_without_a_warning(picture: Callable[[PageData, Size], str]) -> None:
    page = full_page(
        candidates=many_candidates(1),
        finals=(final("recommended", BEST, (84.0,)),),
        observed=(),
        meta=(MetaPoint(1, float("nan"), None),),
        teacher=record(RANDOM, None),
    )
    assert ET.fromstring(picture(page, "compact")).tag == f"{SVG}svg"  # noqa: S314 - our own text


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(mpl.rcParams)
    plane(full_page(), "compact")
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("size", SIZES)
def test_ring_has_a_place_on_the_drawn_frontier_for_each_of_its_points(size: Size) -> None:
    page = full_page()
    svg = plane(page, size)
    corners = [tuple(map(float, place.split(","))) for place in re.findall(r'data-points="([^"]*)"', svg)[0].split()]
    assert len(corners) == len(frontier(page)) > 3
    assert corners == sorted(corners) == sorted(corners, key=lambda corner: -corner[1])
    drawn = {tuple(map(float, pair)) for pair in re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", svg)}
    assert all(any(abs(x - a) + abs(y - b) < 0.2 for a, b in drawn) for x, y in corners)


def test_trials_end_in_the_legend_as_they_ended() -> None:
    svg = tuning(full_page().tuning, "wide")
    assert [svg.count(f">{label}</text>") for label in ("winner", "finished", "stopped", "failed")] == [1, 1, 1, 0]
    assert svg.count("stroke-width: 2.4") == 1


def test_palette_has_one_colour_per_name() -> None:
    assert len(set(PALETTE.values())) == len(PALETTE)
