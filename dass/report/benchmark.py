"""The page of a comparison of methods: one HTML text that fetches nothing and runs no script."""

from collections.abc import Sequence

from markupsafe import Markup

from dass.evaluation import METRICS, Benchmark, Interval, Summary
from dass.report.page import make_environment, part
from dass.report.wording import TIMES, told_apart

FILTERS = ("percent", "correlation", "brief", "ranged", "allowed")


def render_benchmark(benchmark: Benchmark) -> str:
    """The whole page as HTML text, ready to be written as UTF-8."""
    text = (
        make_environment(FILTERS)
        .get_template("benchmark.html")
        .render(
            benchmark=benchmark,
            best=_best(benchmark.summaries),
            figures=[_figures(benchmark, target.name) for target in benchmark.targets],
            pictures=_pictures(benchmark),
            times=TIMES,
            told_apart=told_apart(benchmark),
            style=Markup(part("page.css")),  # noqa: S704 - it is our own file
        )
    )
    return text.encode("utf-8", "replace").decode("utf-8")


def _best(summaries: Sequence[Summary]) -> Summary | None:
    """The first, unless even its mean Spearman is undefined."""
    return summaries[0] if summaries and summaries[0].overall["spearman"].mean is not None else None


def _figures(benchmark: Benchmark, target: str) -> list[tuple[Summary, dict[str, Interval]]]:
    return [
        (summary, {metric: summary.by_target[target][metric] for metric in METRICS}) for summary in benchmark.summaries
    ]


def _pictures(benchmark: Benchmark) -> dict[str, dict[str, Markup]]:
    """By name, each in both sizes: one per target, and the speed."""
    from dass.report import benchmark_figures as figures  # matplotlib loads only for those who draw

    drawn = {
        f"target{index}": {
            "wide": figures.by_method(benchmark, index, "wide"),
            "compact": figures.by_method(benchmark, index, "compact"),
        }
        for index in range(len(benchmark.targets))
    }
    drawn["speed"] = {"wide": figures.speed(benchmark, "wide"), "compact": figures.speed(benchmark, "compact")}
    return {name: {size: Markup(svg) for size, svg in both.items()} for name, both in drawn.items()}  # noqa: S704 - our own SVG
