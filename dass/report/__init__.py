"""What a search found, as facts, as one or two sentences, and as one self-contained HTML page. Writes nothing."""

from dass.report.benchmark import render_benchmark
from dass.report.model import Final, MetaPoint, Observed, PageData, Phase, RunRow, TaskRow, TuneTrial
from dass.report.page import render
from dass.report.summary import facts
from dass.report.wording import verdict

__all__ = [
    "Final",
    "MetaPoint",
    "Observed",
    "PageData",
    "Phase",
    "RunRow",
    "TaskRow",
    "TuneTrial",
    "facts",
    "render",
    "render_benchmark",
    "verdict",
]
