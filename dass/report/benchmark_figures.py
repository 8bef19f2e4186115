"""The pictures of a comparison of methods as SVG text, each in both sizes of `canvas`."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dass.evaluation import Benchmark, Interval, Summary
from dass.report.canvas import ACCENT, CARD, CLOUD, INK, MUTED, WIDTH, Size, add_legend, draw, make_axes, name_axes
from dass.report.wording import brief

LOOKS = {
    "meta-learned": (ACCENT, "o"),
    "zero-cost": (MUTED, "s"),
    "short training": (INK, "D"),
    "trivial": (CLOUD, "^"),
}
ROW, NAMES = 20, 150  # pixels of a method's row, and of the column with its name

LIMIT = 1.1  # an interval by Student's t may reach beyond what a correlation can be


def by_method(benchmark: Benchmark, index: int, size: Size) -> str:
    """Spearman of every method on one target with its interval, the best method of all targets on top."""
    target = benchmark.targets[index]
    rows = [(each, each.by_target[target.name]["spearman"]) for each in benchmark.summaries]
    height = ROW * len(rows) + 100

    def paint(figure: Figure) -> None:
        left, right, bottom, top = NAMES, 14, 40, 50
        box = (left / WIDTH[size], bottom / height, 1 - (left + right) / WIDTH[size], 1 - (bottom + top) / height)
        axes = figure.add_axes(box)
        axes.grid(visible=False, axis="y")
        axes.grid(visible=True, axis="x")
        if target.ceiling is not None and (most := target.ceiling.of_perfect.mean) is not None:
            axes.axvline(most, color=MUTED, linewidth=1, dashes=(2, 3), label="label-noise ceiling")
        for row, (summary, value) in enumerate(rows):
            _draw_interval(axes, summary, value, row)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -LIMIT), min(high, LIMIT))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [summary.name for summary, _ in rows])
        axes.xaxis.set_major_locator(MaxNLocator(6 if size == "wide" else 3))
        axes.set_xlabel("Spearman", loc="right")
        add_legend(figure, axes, columns=5 if size == "wide" else 2)

    return draw(f"target{index}-{size}", size, height, paint)


def speed(benchmark: Benchmark, size: Size) -> str:
    """Mean Spearman over the targets against the seconds that a method takes for a student, logarithmic."""

    def paint(figure: Figure) -> None:
        (axes,) = make_axes(figure)
        named: set[str] = set()
        for summary in benchmark.summaries:
            cost, value = summary.overall["seconds_per_candidate"].mean, summary.overall["spearman"]
            if cost is None or value.mean is None:
                continue
            colour, marker = LOOKS[summary.group]
            if value.low is not None and value.high is not None:
                axes.plot([cost, cost], [value.low, value.high], color=colour, linewidth=1, zorder=3)
            axes.plot(
                cost, value.mean, marker, ms=8, color=colour, mec=CARD, mew=1, ls="", label=summary.group, zorder=4
            )
            if summary.group not in named:  # the best of its group
                named.add(summary.group)
                axes.annotate(
                    summary.name, (cost, value.mean), (0, 8), textcoords="offset points", ha="center", color=MUTED
                )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: brief(seconds)))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.margins(0.1)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -LIMIT), min(high, LIMIT))
        name_axes(axes, "time per candidate, logarithmic", "mean Spearman")
        add_legend(figure, axes, columns=4 if size == "wide" else 2)

    return draw(f"speed-{size}", size, 420 if size == "wide" else 380, paint)


def _draw_interval(axes: Axes, summary: Summary, value: Interval, row: int) -> None:
    if value.mean is None:
        return
    colour, marker = LOOKS[summary.group]
    if value.low is not None and value.high is not None:
        axes.plot([value.low, value.high], [row, row], color=colour, linewidth=1.5, zorder=3)
    axes.plot(value.mean, row, marker, ms=7, color=colour, mec=CARD, mew=1, ls="", label=summary.group, zorder=4)
