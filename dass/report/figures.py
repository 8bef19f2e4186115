"""The pictures of the page as SVG text. The only file that imports matplotlib, and it never touches pyplot.

Each picture comes in two sizes: `wide` for a column of text and `compact` for a telephone; one unit is one CSS pixel,
so letters keep their size. Text stays text. Every colour of `PALETTE` becomes a CSS variable with that colour as its
fallback, so a picture follows the page from light to dark and is complete without it.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dass.records import Record, Status, Student
from dass.report.findings import accuracy, cost_of, estimate, frontier, is_finite, pairs
from dass.report.model import PageData
from dass.report.wording import count

Size = Literal["wide", "compact"]

PALETTE = {
    "ink": "#1b2330",
    "muted": "#687385",
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
    "font.size": 11,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11,
    "axes.titlesize": 11,
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


@dataclass(frozen=True)
class Look:
    """How one role is drawn; of all roles only the recommended student has the accent."""

    colour: str
    marker: str
    dash: str
    size: float


LOOKS = {
    "recommended": Look(ACCENT, "o", "-", 9.5),
    "random": Look(INK, "s", "--", 7),
    "largest": Look(INK, "^", "-.", 8),
    "teacher": Look(INK, "*", ":", 13),
}
OTHER = Look(MUTED, "D", "--", 6.5)


def architecture(student: Student, teacher: Student, resolution: int, size: Size) -> str:
    """The student as bars, one per block and as long as the block is wide; the teacher's outline stands behind.

    Stage s, counted from 0, has maps of side `resolution` / 2**s, as in the small ResNet family. The teacher itself is
    drawn without the accent.
    """
    colour = ACCENT if student != teacher else CLOUD
    slots = [max(len(ours), len(theirs)) for ours, theirs in zip(student.widths, teacher.widths, strict=True)]
    layout = _Layout.across_page(slots) if size == "wide" else _Layout.down_page(slots)
    widest = max(max(stage) for stage in (*student.widths, *teacher.widths))

    def paint(figure: Figure) -> None:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH[size]), ylim=(layout.height, 0))
        axes.set_axis_off()
        for stage, (ours, theirs) in enumerate(zip(student.widths, teacher.widths, strict=True)):
            start = layout.starts[stage]
            side = resolution >> stage
            layout.write_head(axes, start, f"Stage {stage + 1}", f"{side} × {side} px")
            for block in range(slots[stage]):
                along = start + block * layout.step
                if block < len(theirs):
                    ghost = axes.add_patch(layout.bar(along, theirs[block] / widest))
                    ghost.set(facecolor="none", edgecolor=CLOUD, linewidth=0.8, linestyle=(0, (2, 2)))
                if block < len(ours):
                    axes.add_patch(layout.bar(along, ours[block] / widest)).set(facecolor=colour, linewidth=0)
                    layout.write_width(axes, along, str(ours[block]))

    return _svg(f"architecture-{size}", size, layout.height, paint)


def plane(page: PageData, size: Size) -> str:
    """Accuracy over MACs: the candidates as predicted, the finals and the teacher as they came out on valid."""

    def paint(figure: Figure) -> None:
        (axes,) = _axes(figure)
        _draw_cloud(axes, page)
        if page.max_macs is not None:
            axes.axvline(page.max_macs, color=MUTED, linewidth=1, dashes=(2, 3), label="budget")
        for final in page.finals:
            actual, cost = estimate(final.records, "valid"), cost_of(page, final.student)
            if actual is not None and cost is not None:
                _draw_surprise(axes, final.role, cost.macs, final.predicted, actual.mean)
        if page.teacher is not None and (top := accuracy(page.teacher, "valid")) is not None:
            _mark(axes, "teacher", page.teacher.macs, top)
        axes.xaxis.set_major_locator(MaxNLocator(6 if size == "wide" else 4))
        _name(axes, "MACs", "accuracy on valid, %", has_macs=True)
        _add_legend(figure, axes, columns=7 if size == "wide" else 2)

    return _svg(f"plane-{size}", size, 450 if size == "wide" else 400, paint)


def agreement(page: PageData, size: Size) -> str:
    """Two panels over the same students: actual accuracy over the predicted one, and over MACs alone."""
    known = pairs(page)

    def paint(figure: Figure) -> None:
        by_score, by_macs = _axes(figure, panels=2, size=size)
        for axes, values in ((by_score, [p.predicted for p in known]), (by_macs, [float(p.macs) for p in known])):
            seen = [(value, pair.actual) for value, pair in zip(values, known, strict=True) if pair.role is None]
            axes.plot([x for x, _ in seen], [y for _, y in seen], "o", ms=6, color=CLOUD, mec=CARD, mew=0.6)
            for value, pair in zip(values, known, strict=True):
                if pair.role is not None:
                    _mark(axes, pair.role, value, pair.actual)
            axes.xaxis.set_major_locator(MaxNLocator(5))
        low, high = (pick(v for p in known for v in (p.predicted, p.actual)) for pick in (min, max))
        by_score.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(2, 3), zorder=1)
        _name(by_score, "predicted, %", "actual, %")
        _name(by_macs, "MACs", "actual, %", has_macs=True)

    return _svg(f"agreement-{size}", size, 380 if size == "wide" else 620, paint)


def curves(page: PageData, size: Size) -> str:
    """Accuracy on valid over the epochs: one line per seed of each final, and the teacher's own training."""
    runs = [("teacher", page.teacher)] if page.teacher is not None else []
    runs += [(final.role, record) for final in page.finals for record in final.records]

    def paint(figure: Figure) -> None:
        (axes,) = _axes(figure)
        for role, record in runs:
            _draw_curve(axes, role, record)
        settled = [
            point.valid_accuracy_pct
            for _, record in runs
            for point in record.result.curve
            if 4 * point.epoch >= record.run.recipe.epochs
        ]
        has_diverged = any(record.result.status == Status.DIVERGED for _, record in runs)
        if settled and not has_diverged and max(settled) > min(settled):
            pad = 0.06 * (max(settled) - min(settled))
            axes.set_ylim(min(settled) - pad, max(settled) + pad)
        axes.xaxis.set_major_locator(MaxNLocator(8 if size == "wide" else 5, integer=True))
        _name(axes, "epoch", "accuracy on valid, %")
        _add_legend(figure, axes, columns=6 if size == "wide" else 3)

    return _svg(f"curves-{size}", size, 400 if size == "wide" else 340, paint)


def meta(page: PageData, size: Size) -> str:
    """Two panels over the episodes: the loss with its running mean, and Spearman on the meta-validation tasks."""
    checks = [(p.episode, p.valid_spearman) for p in page.meta if is_finite(p.valid_spearman)]

    def paint(figure: Figure) -> None:
        loss, rank = _axes(figure, panels=2, size=size)
        episodes, losses = [p.episode for p in page.meta], [p.loss for p in page.meta]
        loss.plot(episodes, losses, color=CLOUD, linewidth=0.8, alpha=0.55, rasterized=True)
        loss.plot(episodes, _running_mean(losses), color=INK, linewidth=1.6)
        rank.plot([e for e, _ in checks], [v for _, v in checks], color=INK, linewidth=1.6)
        if checks:
            best = max(checks, key=lambda check: check[1])
            rank.plot(*best, "o", ms=8, color=ACCENT, mec=CARD, mew=1)
        for axes, label in ((loss, "loss"), (rank, "Spearman on meta-valid")):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            _name(axes, "episode", label)

    return _svg(f"meta-{size}", size, 320 if size == "wide" else 540, paint)


@dataclass(frozen=True)
class _Layout:
    """Where the bars of an architecture go: `along` the way of the data, and `across` it."""

    is_down: bool
    starts: tuple[float, ...]
    step: float
    centre: float
    span: float
    height: int

    @classmethod
    def across_page(cls, slots: Sequence[int]) -> "_Layout":
        gap = 34.0
        step = min(60.0, (WIDTH["wide"] - 20 - gap * (len(slots) - 1)) / sum(slots))
        starts = [10 + sum(slots[:stage]) * step + stage * gap for stage in range(len(slots))]
        return cls(False, tuple(starts), step, centre=158, span=190, height=292)

    @classmethod
    def down_page(cls, slots: Sequence[int]) -> "_Layout":
        step, head = 17.0, 36.0
        starts = [head + sum(slots[:stage]) * step + stage * head for stage in range(len(slots))]
        return cls(True, tuple(starts), step, centre=150, span=264, height=round(starts[-1] + slots[-1] * step + 8))

    def bar(self, along: float, share: float) -> Rectangle:
        thick, across = self.step - 4, self.span * share
        edge = self.centre - across / 2
        return Rectangle((edge, along), across, thick) if self.is_down else Rectangle((along, edge), thick, across)

    def write_width(self, axes: Axes, along: float, text: str) -> None:
        middle = along + (self.step - 4) / 2
        if self.is_down:
            axes.text(WIDTH["compact"] - 8, middle, text, ha="right", va="center_baseline", color=MUTED)
        else:
            axes.text(middle, self.height - 12, text, ha="center", va="baseline", color=MUTED)

    def write_head(self, axes: Axes, along: float, title: str, detail: str) -> None:
        if self.is_down:
            axes.text(8, along - 10, title, color=INK)
            axes.text(WIDTH["compact"] - 8, along - 10, detail, ha="right", color=MUTED)
        else:
            axes.text(along, 18, title, color=INK)
            axes.text(along, 36, detail, color=MUTED)


def _draw_cloud(axes: Axes, page: PageData) -> None:
    """The candidates as pixels, whose size does not grow with their number, under their frontier as a line."""
    macs, scores = [p.macs for p in page.candidates], [p.score for p in page.candidates]
    if macs:
        axes.scatter(macs, scores, s=9, c=CLOUD, alpha=0.3, linewidths=0, rasterized=True)
        axes.plot([], [], "o", ms=5, color=CLOUD, mew=0, label="candidates")
        edge = frontier(page.candidates)
        x, y = [p.macs for p in edge], [p.score for p in edge]
        axes.step(x, y, where="post", color=INK, linewidth=1.3, label="predicted frontier")


def _draw_surprise(axes: Axes, role: str, macs: float, predicted: float | None, actual: float) -> None:
    """The actual accuracy, tied to a hollow mark where it was predicted."""
    look = LOOKS.get(role, OTHER)
    if predicted is not None:
        axes.plot([macs, macs], [predicted, actual], color=look.colour, linewidth=1, zorder=3)
        axes.plot(macs, predicted, look.marker, ms=look.size - 1.5, mfc=CARD, mec=look.colour, mew=1.2, zorder=4)
    _mark(axes, role, macs, actual)


def _draw_curve(axes: Axes, role: str, record: Record) -> None:
    look, curve = LOOKS.get(role, OTHER), record.result.curve
    if not curve:
        return
    epochs, values = [p.epoch for p in curve], [p.valid_accuracy_pct for p in curve]
    above = 3 if role == "recommended" else 2
    axes.plot(epochs, values, look.dash, color=look.colour, linewidth=1.5, alpha=0.85, label=role, zorder=above)
    end = "x" if record.result.status == Status.DIVERGED else look.marker
    axes.plot(epochs[-1], values[-1], end, color=look.colour, ms=look.size * 0.7, mew=1, zorder=above + 2)


def _mark(axes: Axes, role: str, x: float, y: float) -> None:
    look = LOOKS.get(role, OTHER)
    above = 6 if role == "recommended" else 5
    axes.plot(x, y, look.marker, ms=look.size, color=look.colour, mec=CARD, mew=1, label=role, zorder=above)


def _axes(figure: Figure, *, panels: int = 1, size: Size = "wide") -> list[Axes]:
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


def _name(axes: Axes, x: str, y: str, *, has_macs: bool = False) -> None:
    axes.set_xlabel(x, loc="right")
    axes.set_title(y)
    if has_macs:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if value >= 0 else ""))


def _add_legend(figure: Figure, axes: Axes, columns: int) -> None:
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


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over about a twentieth of the points, around each one; less at the two ends."""
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _svg(name: str, size: Size, height: int, paint: Callable[[Figure], None]) -> str:
    """The painted figure as an `<svg>` element: no XML prologue, no metadata, ids that are unique on a page."""
    text = io.StringIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        mpl.rcParams["svg.hashsalt"] = name
        figure = Figure(figsize=(WIDTH[size] / 72, height / 72))
        paint(figure)
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
    return svg
