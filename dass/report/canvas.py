"""The sheet that pictures are drawn on: sizes, colours, letters, axes, and how a figure becomes SVG text.

Each picture comes in two sizes: `wide` for a column of text and `compact` for a telephone; one unit is one CSS pixel,
so letters keep their size. Text stays text. Every colour of `PALETTE` becomes a CSS variable with that colour as its
fallback, so a picture follows the page from light to dark and is complete without it. matplotlib's pyplot, which has
a global state, is never touched.
"""

import io
import re
from collections.abc import Callable
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dass.report.wording import count

Size = Literal["wide", "compact"]

PALETTE = {
    "ink": "#1b2330",
    "muted": "#5b6676",
    "cloud": "#8b97a8",
    "line": "#dde2e9",
    "accent": "#0b7f78",
    "card": "#fdfdfe",
}
INK, MUTED, CLOUD, LINE, ACCENT, CARD = PALETTE.values()
WIDTH: dict[Size, int] = {"wide": 820, "compact": 340}
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0,
    "legend.handletextpad": 0.5,
    "legend.columnspacing": 1.6,
}
"""rcParams, since the font type and the salt of the ids can be set nowhere else; they hold only while one draws."""


def make_axes(figure: Figure, *, panels: int = 1, size: Size = "wide") -> list[Axes]:
    """Axes with fixed margins in pixels: side by side when wide, one under the other when compact."""
    columns, rows = (panels, 1) if size == "wide" else (1, panels)
    width, height = figure.get_size_inches() * 72
    left, right, bottom, top = 38, 14, 40, 30
    return [
        figure.add_axes(
            (
                (panel % columns) / columns + left / width,
                1 - (panel // columns + 1) / rows + bottom / height,
                1 / columns - (left + right) / width,
                1 / rows - (bottom + top) / height,
            )
        )
        for panel in range(panels)
    ]


def name_axes(axes: Axes, x: str, y: str, *, has_macs: bool = False) -> None:
    """Names the horizontal axis at its end and the vertical one on top of it; MACs get ticks with a unit."""
    axes.set_xlabel(x, loc="right")
    axes.set_title(y)
    if has_macs:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if value >= 0 else ""))


def add_legend(figure: Figure, axes: Axes, columns: int) -> None:
    """One entry per label, above the axes, which give up the height that its rows need."""
    handles, labels = axes.get_legend_handles_labels()
    by_label = dict(zip(labels, handles, strict=True))
    if not by_label:
        return
    width, height = figure.get_size_inches() * 72
    figure.legend(
        by_label.values(), by_label.keys(), loc="upper left", ncols=columns, bbox_to_anchor=(8 / width, 1 - 4 / height)
    )
    box = axes.get_position()
    rows = -(-len(by_label) // columns)
    axes.set_position((box.x0, box.y0, box.width, box.height - (rows * 17 + 4) / height))


def place(figure: Figure, axes: Axes, x: float, y: float) -> tuple[float, float]:
    """Where a point of the data lies in the SVG, once nothing will move the axes or their limits any more."""
    axes.get_xlim(), axes.get_ylim()  # settles limits that still follow the data
    right, up = axes.transData.transform((x, y)) * 72 / figure.dpi
    return float(right), float(figure.get_size_inches()[1] * 72 - up)


def draw(name: str, size: Size, height: int, paint: Callable[[Figure], str | None]) -> str:
    """The painted figure as an `<svg>` element: no XML prologue, no metadata, ids that are unique on a page.

    What `paint` returns is SVG text to put on top, as it is.
    """
    text = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        mpl.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(WIDTH[size] / 72, height / 72))
        on_top = paint(figure) or ""
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", dpi=144, transparent=True, metadata=nothing)
    svg = text.getvalue()[text.getvalue().index("<svg") :].rstrip()
    for pattern, replacement in (
        (r' (?:width|height)="[\d.]+pt"', ""),  # the page decides how large it is
        (r"<defs>\s*<style.*?</style>\s*</defs>", ""),  # inline, its rule for `*` would style the whole page
        (r"font-family: [^;]*;", "font-family: var(--sans, sans-serif);"),
        (r'(?<= id=")|(?<=href="#)|(?<=url\(#)', f"{name}-"),
        *((colour, f"var(--{variable}, {colour})") for variable, colour in PALETTE.items()),
    ):
        svg = re.sub(pattern, replacement, svg)
    return svg.removesuffix("</svg>") + on_top + "</svg>"
