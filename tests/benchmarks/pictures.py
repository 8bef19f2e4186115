"""The README's pictures of the benchmarks, drawn from their JSON documents.

    python -m tests.benchmarks NAME --json > tests/benchmarks/results/NAME.json
    python -m tests.benchmarks.pictures tests/benchmarks/results ratios.png scaling.png

The first shows every document's `ratio` against its reference, and `ratio_strong` where there is one; the second every
document's `points`, seconds over candidates or lanes, both axes logarithmic. Documents without them are passed over.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullLocator

from dass.report.canvas import ACCENT, CARD, CLOUD, INK, MUTED, SETTINGS, name_axes

Document = Mapping[str, Any]

WIDTH, HEIGHT = 900, 330  # pixels in a README; the files have twice as many each way
REFERENCED = ("embed", "embed-images", "cohort", "meta")  # whose ratio is a speed over that of a reference
LANES = "control-plane"  # whose points are over lanes; all others' are over candidates
LOOKS = ((ACCENT, "o"), (INK, "s"), (CLOUD, "^"), (MUTED, "D"))


def read(folder: Path) -> list[Document]:
    """The documents of a folder, in the order of their files' names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def ratios(documents: Sequence[Document]) -> Figure:
    """A pair of bars for each benchmark: how many times as fast as the published way, and as the strong one."""
    figure, axes = _sheet(1)
    found = [each for each in documents if each["name"] in REFERENCED and each.get("ratio")]
    places = {_label(each): place for place, each in enumerate(found)}
    for key, colour, shift, label in (
        ("ratio", ACCENT, 0.19, "times the reference"),
        ("ratio_strong", CLOUD, -0.19, "times a strong reference"),
    ):
        bars = [(place, float(each[key])) for place, each in enumerate(found) if each.get(key)]
        if bars:
            drawn = axes[0].barh([p + shift for p, _ in bars], [v for _, v in bars], 0.36, color=colour, label=label)
            axes[0].bar_label(drawn, [f"{value:.1f}×" for _, value in bars], padding=5, color=INK)
    axes[0].axvline(1, color=MUTED, linewidth=1, dashes=(2, 3))
    axes[0].set_yticks(list(places.values()), list(places), color=INK)
    axes[0].set(ylim=(-0.6, max(len(found), 1) - 0.4), xlim=(0, None))
    axes[0].margins(x=0.12)
    axes[0].grid(visible=False)
    axes[0].invert_yaxis()
    if found:
        axes[0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    name_axes(axes[0], "speed over that of the reference, in the same run", "")
    return figure


def scaling(documents: Sequence[Document]) -> Figure:
    """Seconds over candidates, and seconds over lanes."""
    figure, (by_candidates, by_lanes) = _sheet(2)
    over = {
        is_lanes: [each for each in documents if each.get("points") and (each["name"] == LANES) == is_lanes]
        for is_lanes in (False, True)
    }
    for axes, found, x, y in (
        (by_candidates, over[False], "candidates", "seconds to score them"),
        (by_lanes, over[True], "lanes", "seconds to collect"),
    ):
        for each, (colour, marker) in zip(found, LOOKS, strict=False):
            xs, ys = zip(*each["points"], strict=True)
            axes.plot(xs, ys, marker + "-", color=colour, ms=6, mec=CARD, mew=0.8, linewidth=1.5, label=_sized(each))
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
        if len(found) > 1:
            axes.legend(loc="upper left", frameon=True, facecolor=CARD, edgecolor=CARD, framealpha=1)
        name_axes(axes, x, y)
    if over[True]:
        lanes = sorted({x for each in over[True] for x, _ in each["points"]})
        by_lanes.set_xticks(lanes)
        _open_up(by_lanes, [y for each in over[True] for _, y in each["points"]])
    return figure


def _open_up(axes: Axes, values: Sequence[float]) -> None:
    """Give values that are close to each other a decade, with ticks at 1, 2 and 5."""
    low, high = min(values), max(values)
    ticks = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
    below, above = max(t for t in ticks if t <= low), min(t for t in ticks if t >= high)
    axes.set_yticks([tick for tick in ticks if below <= tick <= above])
    axes.set_ylim(below / 1.1, above * 1.1)


def _label(document: Document) -> str:
    """The name, and what tells documents of one name apart."""
    sizes, precision = document.get("sizes", {}), document.get("sizes", {}).get("precision")
    size = f" of {max(sizes['cohorts'])}" if "cohorts" in sizes else ""
    apart = (precision if precision != "float32" else None, document["machine"].get("gpu"))
    return ", ".join([document["name"] + size, *filter(None, apart)])


def _sized(document: Document) -> str:
    sizes = document.get("sizes", {})
    if document["name"] == LANES:
        takes = f"take {sizes['run_s']:g} s" if sizes.get("run_s") else "train nothing"
        return f"{max(sizes['runs']):,} runs that {takes}"
    return f"{_label(document)}, {sizes['resolution']} px" if "resolution" in sizes else _label(document)


def _sheet(panels: int) -> tuple[Figure, list[Axes]]:
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12)
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), layout=layout, facecolor=CARD)
    return figure, [figure.add_subplot(1, panels, place + 1, facecolor=CARD) for place in range(panels)]


def main(arguments: Sequence[str]) -> None:
    """Draw into the files named, ratios first."""
    if len(arguments) != 3:
        sys.exit("error: give RESULTS_DIR RATIOS.png SCALING.png, got " + " ".join(arguments))
    folder, *files = map(Path, arguments)
    documents = read(folder)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        for draw, path in zip((ratios, scaling), files, strict=True):
            draw(documents).savefig(path, dpi=144, metadata={} if path.suffix != ".svg" else {"Date": None})


if __name__ == "__main__":
    main(sys.argv[1:])
