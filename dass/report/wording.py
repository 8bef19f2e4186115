"""Numbers and findings in words: formats, the verdict, and what is still missing."""

from dass.evaluation import Benchmark, BenchmarkTarget, Interval
from dass.report.findings import (
    Comparison,
    Estimate,
    compare,
    cost_of,
    estimate,
    is_finite,
    num_diverged,
    recommended,
    reported_part,
)
from dass.report.model import Final, PageData

NOTHING = "–"
TIMES = "Times are wall clock on one thread, with images and weights already in memory."


def percent(value: float | None) -> str:
    """`91.2`, or a dash."""
    return NOTHING if not is_finite(value) else f"{value:.1f}"


def spread(mean: float | None, sd: float | None) -> str:
    """`91.2 ± 0.3`, or `91.2` without a spread."""
    return percent(mean) if mean is None or sd is None else f"{mean:.1f} ± {sd:.1f}"


def points(value: float) -> str:
    """A difference of two accuracies without its sign: `1.1 points`."""
    size = abs(value)
    if size < 0.05:
        return "less than 0.1 points"
    return f"{size:.1f} {'point' if f'{size:.1f}' == '1.0' else 'points'}"


def signed(value: float | None) -> str:
    """`+1.1`, `−0.4` or `0.0`, or a dash."""
    if value is None:
        return NOTHING
    return f"{'−' if value < 0 else '+'}{abs(value):.1f}" if abs(value) >= 0.05 else "0.0"


def correlation(value: float | None) -> str:
    """`0.83` or `−0.12`; `undefined` where there is none."""
    return "undefined" if value is None else f"{value:.2f}".replace("-", "−")


def count(value: float | None) -> str:
    """Three significant digits with a unit: `812 k`, `110 M`, `1.46 G`."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            scaled = value / size
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f} {unit}"
    return f"{value:.0f}"


def times(ratio: float | None) -> str:
    """`13.2×`, or a dash."""
    return NOTHING if ratio is None else f"{ratio:.1f}×"


def duration(seconds: float) -> str:
    """The two largest units: `0.4 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, rest, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            left = whole % size // rest
            return f"{whole // size} {unit}" + (f" {left} {small}" if left else "")
    return f"{whole} s"


def brief(seconds: float | None) -> str:
    """Two significant digits with a unit: `12 µs`, `4.2 ms`, `0.31 s`, `95 s`; a dash for None."""
    if seconds is None:
        return NOTHING
    size, unit = next(((s, u) for s, u in ((0.1, "s"), (1e-4, "ms")) if seconds >= s), (0.0, "µs"))
    scaled = seconds * {"s": 1, "ms": 1e3, "µs": 1e6}[unit]
    return f"{scaled:.0f} {unit}" if scaled >= 9.95 else f"{scaled:.2g} {unit}" if size else f"{scaled:.1f} {unit}"


def ranged(value: Interval) -> str:
    """A correlation with its interval, `0.83 (0.79 to 0.87)`, or without where there is none."""
    mean = correlation(value.mean)
    if value.low is None or value.high is None:
        return mean
    return f"{mean} ({correlation(value.low)} to {correlation(value.high)})"


def allowed(target: BenchmarkTarget) -> str:
    """What was ranked on a target, what the noise of the labels allows, and how the predictor's intervals held."""
    parts = [f"{target.name}: {target.students} students"]
    if target.diverged:
        parts[0] += f", {target.diverged} more diverged"
    if (noise := target.ceiling) is None:
        parts.append("too few of them ran under several seeds for a label-noise ceiling")
    else:
        parts.append(
            f"label-noise ceiling {ranged(noise.of_perfect)}, between two runs {ranged(noise.between_runs)}, "
            f"with the noise of {noise.runs} runs of {noise.students} students"
        )
    if (held := target.coverage) is not None:
        parts.append(
            f"{100 * held.share:.0f} % of the students within ± {held.half_width_pct:.1f} points of what dass predicted, the one "
            f"ranked first within ± {held.winner_half_width_pct:.1f} in {100 * held.winner_share:.0f} % of the trainings, "
            f"{100 * held.level:.0f} % promised on average over tasks"
        )
    return "; ".join(parts)


def told_apart(benchmark: Benchmark) -> str | None:
    """Which methods may be level with the first one, as far as these students tell; None where that was not asked."""
    first = next(iter(benchmark.redrawn), None)
    if first is None or (value := benchmark.redrawn[first].spearman).low is None:
        return None
    level = [
        name
        for name, of_method in benchmark.redrawn.items()
        if name != first and of_method.behind.low is not None and of_method.behind.low <= 0
    ]
    others = f"{', '.join(level)} may be level with it" if level else "it is ahead of all others"
    return (
        f"With other students of the same kind (bootstrap), {first} would have {correlation(value.low)} to "
        f"{correlation(value.high)} in 95 % of cases, and {others}."
    )


def verdict(page: PageData) -> str:
    """One or two sentences: what the recommended student reaches, at what cost, and whether a control does better.

    A lead counts only beyond two standard errors of the difference, with the variance between seeds pooled over all
    finals; without repeated seeds the sentence says that the noise is not known.
    """
    chosen = recommended(page)
    if chosen is None:
        return "No student is recommended yet: run `dass search`."
    ours = estimate(chosen.records, reported_part(page))
    if ours is None:
        return _without_accuracy(page, chosen)
    seeds = f"over {ours.num} seeds" if ours.num > 1 else "in one seed"
    lost = num_diverged(chosen.records)
    diverged = f"; {lost} more diverged" if lost else ""
    cheaper = _cheaper(page, chosen)
    reached = f"The recommended student reaches {_reached(ours)} on {reported_part(page)} ({seeds}{diverged}){cheaper}."
    return f"{reached} {_against(page, chosen, compare(page))}"


def missing(page: PageData) -> dict[str, str]:
    """For each section that cannot be shown yet, what is missing and the verb that makes it."""
    is_distilled = any(final.records for final in page.finals)
    absent = {
        "teacher": (page.teacher is None, "The target's teacher is not trained here: run `dass teachers`."),
        "tasks": (not page.tasks, "No task has been collected: run `dass collect`."),
        "meta": (not page.meta, _no_meta_training(page)),
        "candidates": (not page.candidates, "No candidate has been scored: run `dass search`."),
        "finals": (not is_distilled, "No student has been distilled in full: run `dass distil`."),
        "runs": (not page.runs, "No student has been distilled: run `dass collect`."),
        "observed": (
            not page.observed,
            "No student of the target was distilled for comparison: `dass collect` does so with collect.target_students, "
            "for a target that the recipe keeps aside.",
        ),
        "phases": (not page.phases, "No times were recorded: every verb records its own when it runs."),
        "provenance": (not page.provenance, "No provenance was recorded: every verb records its own when it runs."),
    }
    return {section: text for section, (is_absent, text) in absent.items() if is_absent}


def _no_meta_training(page: PageData) -> str:
    if page.is_predictor_shipped:
        return (
            "The predictor came with the package; `dass/zoo/MODEL_CARD.md` tells how it was made and how well it ranks."
        )
    return "No predictor has been meta-trained: run `dass meta-train`."


def _reached(value: Estimate) -> str:
    return f"{spread(value.mean, value.sd)} %"


def _cheaper(page: PageData, chosen: Final) -> str:
    ours, teacher = cost_of(page, chosen.student), cost_of(page, page.largest)
    if ours is None or teacher is None or chosen.student == page.largest:
        return ""
    return f" with {times(teacher.macs / ours.macs)} fewer MACs than the teacher"


def _without_accuracy(page: PageData, chosen: Final) -> str:
    lost = num_diverged(chosen.records)
    if lost:
        seeds = f"all {lost} seeds" if lost > 1 else "its only seed"
        return f"The recommended student diverged in {seeds}, so it has no accuracy: run `dass distil` at a lower lr."
    hope = "" if chosen.predicted is None else f" is predicted to reach {percent(chosen.predicted)} %"
    described = f"The recommended student{hope}{_cheaper(page, chosen)}"
    if not hope:
        return "A student is recommended, but it has not been distilled yet: run `dass distil`."
    return f"{described}. It has not been distilled yet: run `dass distil`."


def _against(page: PageData, chosen: Final, comparison: Comparison | None) -> str:
    if comparison is None:
        return "No control was distilled, so whether the search beats chance is not known: run `dass distil`."
    ours, theirs = cost_of(page, chosen.student), cost_of(page, comparison.control.student)
    price = f", {times(theirs.macs / ours.macs)} its MACs" if ours and theirs else ""
    control = f"{comparison.control.role} ({_reached(comparison.estimate)}{price})"
    lead = points(comparison.lead)
    doubt = "" if comparison.margin is not None else "; without repeated seeds the noise is not known"
    if comparison.outcome == "behind":
        return f"A control does better: {control} is ahead by {lead}{doubt}."
    if comparison.outcome == "ahead":
        return f"It beats the best control, {control}, by {lead}{doubt}."
    if comparison.margin is None:
        return f"It equals the best control, {control}{doubt}."
    verb = "leads" if comparison.lead >= 0 else "trails"
    return f"It {verb} the best control, {control}, by {lead}, which is within the noise of ±{comparison.margin:.1f}."
