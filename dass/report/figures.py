"""The pictures of the page as SVG text, each in both sizes of `canvas`."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from dass.records import Result, Status, Student
from dass.report.canvas import (
    ACCENT,
    CARD,
    CLOUD,
    INK,
    MUTED,
    WIDTH,
    Size,
    add_legend,
    draw,
    make_axes,
    name_axes,
    place,
)
from dass.report.findings import accuracy, cost_of, estimate, frontier, is_finite, pairs
from dass.report.model import PageData, TuneTrial
from dass.search.ranking import Candidate


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
TRIAL_ENDS = {"finished": "o", "stopped": "|", "failed": "x"}


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

    return draw(f"architecture-{size}", size, layout.height, paint)


def plane(page: PageData, size: Size) -> str:
    """Accuracy over MACs: the candidates as predicted, the finals and the teacher as they came out on valid."""

    def paint(figure: Figure) -> str:
        (axes,) = make_axes(figure)
        _draw_cloud(axes, page)
        for final in page.finals:
            actual, cost = estimate(final.records, "valid"), cost_of(page, final.student)
            if actual is not None and cost is not None:
                _draw_surprise(axes, final.role, cost.macs, final.predicted, actual.mean)
        if page.teacher is not None and (top := accuracy(page.teacher, "valid")) is not None:
            _mark(axes, "teacher", page.teacher.macs, top)
        _name_plane(figure, axes, size)
        return _choice(figure, axes, page)

    return draw(f"plane-{size}", size, 450 if size == "wide" else 400, paint)


def predictions(page: PageData, teacher: Candidate, size: Size) -> str:
    """The same before anything is distilled: the candidates and the best of them as predicted, the teacher as measured."""

    def paint(figure: Figure) -> None:
        (axes,) = make_axes(figure)
        _draw_cloud(axes, page)
        best = page.candidates[0]
        if is_finite(best.score):
            _mark_predicted(axes, "recommended", best.macs, best.score, "best")
        _mark(axes, "teacher", teacher.macs, teacher.score)
        _name_plane(figure, axes, size)

    return draw(f"predictions-{size}", size, 420 if size == "wide" else 400, paint)


def agreement(page: PageData, size: Size) -> str:
    """Two panels over the same students: actual accuracy over the predicted one, and over MACs alone."""
    known = pairs(page)

    def paint(figure: Figure) -> None:
        by_score, by_macs = make_axes(figure, panels=2, size=size)
        for axes, values in ((by_score, [p.predicted for p in known]), (by_macs, [float(p.macs) for p in known])):
            seen = [(value, pair.actual) for value, pair in zip(values, known, strict=True) if pair.role is None]
            axes.plot([x for x, _ in seen], [y for _, y in seen], "o", ms=6, color=CLOUD, mec=CARD, mew=0.6)
            for value, pair in zip(values, known, strict=True):
                if pair.role is not None:
                    _mark(axes, pair.role, value, pair.actual)
            axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))  # the last label would be cut off
        low, high = (pick(v for p in known for v in (p.predicted, p.actual)) for pick in (min, max))
        by_score.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(2, 3), zorder=1)
        name_axes(by_score, "predicted, %", "actual, %")
        name_axes(by_macs, "MACs", "actual, %", has_macs=True)

    return draw(f"agreement-{size}", size, 380 if size == "wide" else 620, paint)


def curves(page: PageData, size: Size) -> str:
    """Accuracy on valid over the epochs: one line per seed of each final, and the teacher's own training."""
    runs = [("teacher", page.teacher)] if page.teacher is not None else []
    runs += [(final.role, record) for final in page.finals for record in final.records]

    def paint(figure: Figure) -> None:
        (axes,) = make_axes(figure)
        for role, record in runs:
            _draw_curve(axes, role, record.result)
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
        name_axes(axes, "epoch", "accuracy on valid, %")
        add_legend(figure, axes, columns=6 if size == "wide" else 3)

    return draw(f"curves-{size}", size, 400 if size == "wide" else 340, paint)


def learning(result: Result, teacher_pct: float, size: Size) -> str:
    """One student's accuracy on valid over the epochs, under the accuracy of its teacher as a line."""

    def paint(figure: Figure) -> None:
        (axes,) = make_axes(figure)
        axes.axhline(teacher_pct, color=INK, linewidth=1, dashes=(2, 3), label="teacher")
        _draw_curve(axes, "recommended", result, "student")
        axes.xaxis.set_major_locator(MaxNLocator(8 if size == "wide" else 5, integer=True))
        name_axes(axes, "epoch", "accuracy on valid, %")
        add_legend(figure, axes, columns=2)

    return draw(f"learning-{size}", size, 320 if size == "wide" else 300, paint)


def meta(page: PageData, size: Size) -> str:
    """Two panels over the episodes: the loss with its running mean, and Spearman on the meta-validation tasks."""
    checks = [(p.episode, p.valid_spearman) for p in page.meta if is_finite(p.valid_spearman)]

    def paint(figure: Figure) -> None:
        loss, rank = make_axes(figure, panels=2, size=size)
        episodes, losses = [p.episode for p in page.meta], [p.loss for p in page.meta]
        loss.plot(episodes, losses, color=CLOUD, linewidth=0.8, alpha=0.55, rasterized=True)
        loss.plot(episodes, _running_mean(losses), color=INK, linewidth=1.6)
        rank.plot([e for e, _ in checks], [v for _, v in checks], color=INK, linewidth=1.6)
        if checks:
            best = max(checks, key=lambda check: check[1])
            rank.plot(*best, "o", ms=8, color=ACCENT, mec=CARD, mew=1)
        for axes, label in ((loss, "loss"), (rank, "Spearman on meta-valid")):
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            name_axes(axes, "episode", label)

    return draw(f"meta-{size}", size, 320 if size == "wide" else 540, paint)


def tuning(trials: Sequence[TuneTrial], size: Size) -> str:
    """Spearman on the meta-validation tasks over the episodes: one line per trial of the tuning, the winner's on top."""

    def paint(figure: Figure) -> None:
        (axes,) = make_axes(figure)
        for trial in trials:
            _draw_trial(axes, trial)
        axes.xaxis.set_major_locator(MaxNLocator(8 if size == "wide" else 5, integer=True))
        name_axes(axes, "episode", "Spearman on meta-valid")
        add_legend(figure, axes, columns=4 if size == "wide" else 2)

    return draw(f"tuning-{size}", size, 400 if size == "wide" else 340, paint)


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
    """The candidates as pixels, whose size does not grow with their number, under their frontier; and the budget."""
    cloud = page.sample or page.candidates
    macs, scores = [p.macs for p in cloud], [p.score for p in cloud]
    if macs:
        axes.scatter(macs, scores, s=9, c=CLOUD, alpha=0.3, linewidths=0, rasterized=True)
        axes.plot([], [], "o", ms=5, color=CLOUD, mew=0, label="candidates")
        edge = frontier(page)
        x, y = [p.macs for p in edge], [p.score for p in edge]
        axes.step(x, y, where="post", color=INK, linewidth=1.3, label="predicted frontier")
    if page.max_macs is not None:
        axes.axvline(page.max_macs, color=MUTED, linewidth=1, dashes=(2, 3), label="budget")


def _name_plane(figure: Figure, axes: Axes, size: Size) -> None:
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 4 * low else MaxNLocator(4))
    axes.xaxis.set_minor_locator(NullLocator())
    name_axes(axes, "MACs, logarithmic", "accuracy on valid, %", has_macs=True)
    add_legend(figure, axes, columns=7 if size == "wide" else 2)


def _choice(figure: Figure, axes: Axes, page: PageData) -> str:
    """A ring for the page's slider to move: the points of the predicted frontier, by rising MACs, as `x,y x,y`."""
    corners = (place(figure, axes, point.macs, point.score) for point in frontier(page))
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    ring = f"fill: none; stroke: var(--accent, {ACCENT}); stroke-width: 2.5"
    return f'<g class="choice" data-points="{points}"><circle r="9" style="{ring}"/></g>' if points else ""


def _draw_surprise(axes: Axes, role: str, macs: float, predicted: float | None, actual: float) -> None:
    """The actual accuracy, tied to a hollow mark where it was predicted."""
    look = LOOKS.get(role, OTHER)
    if predicted is not None:
        axes.plot([macs, macs], [predicted, actual], color=look.colour, linewidth=1, zorder=3)
        _mark_predicted(axes, role, macs, predicted)
    _mark(axes, role, macs, actual)


def _draw_curve(axes: Axes, role: str, result: Result, label: str | None = None) -> None:
    look, curve = LOOKS.get(role, OTHER), result.curve
    if not curve:
        return
    epochs, values = [p.epoch for p in curve], [p.valid_accuracy_pct for p in curve]
    above = 3 if role == "recommended" else 2
    axes.plot(
        epochs, values, look.dash, color=look.colour, linewidth=1.5, alpha=0.85, label=label or role, zorder=above
    )
    end = "x" if result.status == Status.DIVERGED else look.marker
    axes.plot(epochs[-1], values[-1], end, color=look.colour, ms=look.size * 0.7, mew=1, zorder=above + 2)


def _draw_trial(axes: Axes, trial: TuneTrial) -> None:
    known = [(episode, value) for episode, value in trial.curve if is_finite(value)]
    if not known:
        return
    label = "winner" if trial.is_winner else trial.status
    colour, width = (ACCENT, 2.4) if trial.is_winner else (INK, 1.1) if trial.status == "finished" else (CLOUD, 0.9)
    above = 5 if trial.is_winner else 3 if trial.status == "finished" else 2
    episodes, values = [episode for episode, _ in known], [value for _, value in known]
    axes.plot(episodes, values, color=colour, linewidth=width, zorder=above)
    axes.plot(
        episodes[-1],
        values[-1],
        TRIAL_ENDS[trial.status],
        color=colour,
        ms=6,
        mew=1.2,
        zorder=above,
        ls="",
        label=label,
    )


def _mark_predicted(axes: Axes, role: str, x: float, y: float, label: str | None = None) -> None:
    """Hollow, as nothing was measured."""
    look = LOOKS.get(role, OTHER)
    axes.plot(x, y, look.marker, ms=look.size - 1.5, mfc=CARD, mec=look.colour, mew=1.2, zorder=4, ls="", label=label)


def _mark(axes: Axes, role: str, x: float, y: float) -> None:
    look = LOOKS.get(role, OTHER)
    above = 6 if role == "recommended" else 5
    axes.plot(x, y, look.marker, ms=look.size, color=look.colour, mec=CARD, mew=1, label=role, zorder=above)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Mean over about a twentieth of the points, around each one; less at the two ends."""
    reach = len(values) // 40
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
