"""What a search found, as facts, as one or two sentences, and as one self-contained HTML page. Writes nothing."""

from dass.report.model import Final, MetaPoint, Observed, PageData, Phase, ScoredPoint, TaskRow
from dass.report.page import facts, render
from dass.report.wording import verdict

__all__ = [
    "Final",
    "MetaPoint",
    "Observed",
    "PageData",
    "Phase",
    "ScoredPoint",
    "TaskRow",
    "facts",
    "render",
    "verdict",
]
