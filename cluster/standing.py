"""Where collections stand: runs by task, failures, slow runs, lanes, pace and ETA. Pure: everything is handed in.

A run counts as running when a living lane says that it holds it, as failed when its last attempt ended in giving it up or
when its teacher diverged, and as pending otherwise. The ETA is the work that is left over the pace of the last hours;
work is seconds as the finished runs of the same kind took them, so that a teacher counts for more than a student.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cluster.effort import Line, fit_line
from cluster.events import Event, Progress
from cluster.lane_reports import Heard
from cluster.outlines import Kind, Outline, Outlines, kind_of
from cluster.plan import Decision, blocked
from dass.records import Run, Status

HALF_LIFE_S = 3600.0  # of the pace
SLOW = 1.5  # times what its line says
_LEAST_FIT = 8  # runs that a line is fitted to
_MOST_SLOW = 5


@dataclass(frozen=True)
class TaskStanding:
    """Numbers of a task's runs, which add up to `planned`; the teacher's accuracy is None until it is there."""

    id: str
    teacher_accuracy_pct: float | None
    planned: int
    finished: int
    diverged: int
    running: int
    pending: int
    failed: int


@dataclass(frozen=True)
class Failing:
    """A run without a record whose attempts failed, or that can never start; `attempts` are those in the events read."""

    run: str
    task: str
    attempts: int
    reason: str
    is_given_up: bool
    last_at: str


@dataclass(frozen=True)
class Slow:
    """A run that took much longer than its MACs and the others of its task and recipe let expect."""

    run: str
    task: str
    seconds: float
    expected_s: float


@dataclass(frozen=True)
class Standing:
    """All of it. runs_per_hour: of the last hours, None as long as no run ended. eta_s: None when nobody works."""

    tasks: tuple[TaskStanding, ...]
    failing: tuple[Failing, ...]
    slow: tuple[Slow, ...]
    runs_per_hour: float | None
    eta_s: float | None


def standing(
    runs: Sequence[Run],
    outlines: Outlines,
    macs_of: Mapping[str, int],
    heard: Sequence[Heard],
    events: Sequence[Event],
    now: datetime,
) -> Standing:
    """Where the planned `runs` stand at `now`.

    macs_of: by run id, of the runs that have no record.
    heard: the reports of all lanes. events: what lanes told, in the order of time.
    """
    alive = [each for each in heard if each.is_alive]
    running = {run_id for each in alive for run_id in each.report.runs} - outlines.run_ids
    failing = _failing(runs, outlines, events)
    given_up = {each.run for each in failing if each.is_given_up} - running
    lines = fit_lines(outlines.known.values())
    by_task: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_task[run.task].append(run)
    runs_per_hour, eta_s = _pace(runs, outlines, events, macs_of, lines, alive, given_up, now)
    return Standing(
        tasks=tuple(_task(task, mine, outlines, running, given_up) for task, mine in by_task.items()),
        failing=tuple(failing),
        slow=tuple(_slow(runs, outlines.known, lines)),
        runs_per_hour=runs_per_hour,
        eta_s=eta_s,
    )


def device_seconds(heard: Iterable[Heard], known: Iterable[Outline]) -> dict[str, float]:
    """Device-seconds so far by the device's name: what lanes say that they held, and at least what records took."""
    held: dict[str, float] = defaultdict(float)
    for each in heard:
        held[each.report.device] += each.report.device_s
    took: dict[str, float] = defaultdict(float)
    for outline in known:
        took[outline.device] += outline.seconds
    return {device: max(held[device], took[device]) for device in sorted(held.keys() | took.keys())}


def idle_share(heard: Iterable[Heard]) -> float | None:
    """The share of the device-seconds of these lanes in which they had no lease; None where there are none."""
    reports = [each.report for each in heard]
    total = sum(report.device_s for report in reports)
    return sum(report.devices * report.idle_s for report in reports) / total if total else None


def fit_lines(known: Iterable[Outline]) -> dict[Kind, Line]:
    """The lines of all kinds of work of which a run has finished."""
    finished: dict[Kind, list[Outline]] = defaultdict(list)
    for outline in known:
        if outline.is_measured:
            finished[outline.kind].append(outline)
    return {
        kind: fit_line([each.macs for each in some], [each.seconds for each in some]) for kind, some in finished.items()
    }


def _task(task: str, runs: Sequence[Run], outlines: Outlines, running: set[str], given_up: set[str]) -> TaskStanding:
    ids = {run.id for run in runs}
    ended = len(ids & outlines.run_ids)
    known = [(run, outlines.known[run.id]) for run in runs if run.id in outlines.known]
    diverged = sum(outline.status is Status.DIVERGED for _, outline in known)
    teacher = next((outline for run, outline in known if run.teacher is None), None)
    num_running, num_failed = len(ids & running), len(ids & given_up)
    return TaskStanding(
        id=task,
        teacher_accuracy_pct=None if teacher is None else teacher.best_accuracy_pct,
        planned=len(runs),
        finished=ended - diverged,
        diverged=diverged,
        running=num_running,
        pending=len(runs) - ended - num_running - num_failed,
        failed=num_failed,
    )


def _failing(runs: Sequence[Run], outlines: Outlines, events: Sequence[Event]) -> list[Failing]:
    """The runs whose attempts failed, the last failure first, then those that can never start.

    A queue that starts tries those again that one before it had given up.
    """
    left = {run.id: run for run in runs if run.id not in outlines.run_ids}
    found: dict[str, Failing] = {}
    for event in events:
        if event.kind == "queue started":
            found = {run_id: replace(each, is_given_up=False) for run_id, each in found.items()}
        run = left.get(str(event.fields.get("run")))
        if event.kind == "failed" and run is not None:
            before = found.get(run.id)
            found[run.id] = Failing(
                run=run.id,
                task=run.task,
                attempts=1 + (before.attempts if before else 0),
                reason=str(event.fields.get("reason", "")),
                is_given_up=event.fields.get("decision") == Decision.GIVE_UP,
                last_at=event.time,
            )
    diverged = {run_id for run_id, outline in outlines.known.items() if outline.status is Status.DIVERGED}
    stuck = blocked(list(left.values()), outlines.run_ids, diverged)
    never = [Failing(run_id, left[run_id].task, 0, why, True, "") for run_id, why in stuck.items()]
    tried = [each for each in found.values() if each.run not in stuck]
    return sorted(tried, key=lambda each: each.last_at, reverse=True) + never


def _slow(runs: Sequence[Run], known: Mapping[str, Outline], lines: Mapping[Kind, Line]) -> list[Slow]:
    """The slowest runs against their line, the worst first."""
    found = []
    for run in runs:
        outline, line = known.get(run.id), lines.get(kind_of(run))
        if outline is not None and line is not None and line.num >= _LEAST_FIT:
            expected_s = line.seconds(outline.macs)
            if outline.seconds > SLOW * expected_s:
                found.append(Slow(run.id, run.task, outline.seconds, expected_s))
    return sorted(found, key=lambda slow: slow.expected_s / slow.seconds)[:_MOST_SLOW]


def _pace(
    runs: Sequence[Run],
    outlines: Outlines,
    events: Sequence[Event],
    macs_of: Mapping[str, int],
    lines: Mapping[Kind, Line],
    alive: Sequence[Heard],
    given_up: set[str],
    now: datetime,
) -> tuple[float | None, float | None]:
    """Runs per hour, and seconds until the last run that can still end has ended."""
    hoped = [run for run in runs if run.id not in given_up]
    left = [run for run in hoped if run.id not in outlines.run_ids]
    if not left:
        return None, 0.0
    if not alive:
        return None, None
    work = _work(hoped, outlines, macs_of, lines)
    began = min(datetime.fromisoformat(each.report.started_at) for each in alive)
    ended_at = _ended_at(hoped, outlines, events)
    ends = sorted((at, run_id) for run_id, at in ended_at.items() if began < at <= now)
    counted, weighed = Progress(len(hoped), half_life_s=HALF_LIFE_S), Progress(0, half_life_s=HALF_LIFE_S)
    for number, (at, run_id) in enumerate(ends, 1):
        elapsed_s = (at - began).total_seconds()
        counted = counted.after(number, elapsed_s)
        weighed = weighed.after(weighed.done + work[run_id], elapsed_s)
    elapsed_s = (now - began).total_seconds()
    counted = counted.after(len(ends), elapsed_s)
    left_work = sum(work[run.id] for run in left) - _part_done(alive, work, {run.id for run in left})
    weighed = weighed.after(weighed.done, elapsed_s, total=weighed.done + max(0.0, left_work))
    rate = counted.rate_per_s
    return None if rate is None else 3600 * rate, weighed.eta_s


def _work(
    runs: Sequence[Run], outlines: Outlines, macs_of: Mapping[str, int], lines: Mapping[Kind, Line]
) -> dict[str, float]:
    """By run id the seconds that it takes by its line; 1 for each where a kind of work that is left has no line yet."""
    if any(kind_of(run) not in lines for run in runs if run.id not in outlines.run_ids):
        return dict.fromkeys((run.id for run in runs), 1.0)
    work = {}
    for run in runs:
        line, outline = lines.get(kind_of(run)), outlines.known.get(run.id)
        macs = macs_of[run.id] if run.id not in outlines.run_ids else outline.macs if outline else math.nan
        work[run.id] = line.seconds(macs) if line and math.isfinite(macs) else 0.0
    return work


def _ended_at(runs: Sequence[Run], outlines: Outlines, events: Sequence[Event]) -> dict[str, datetime]:
    """When runs ended: the time of the loose record, or else what the lane told."""
    ids = {run.id for run in runs}
    told = {str(event.fields.get("run")): event.time for event in events if event.kind == "ended"}
    at = {run_id: datetime.fromisoformat(time) for run_id, time in told.items() if run_id in ids & outlines.run_ids}
    return at | {run_id: time for run_id, time in outlines.ended_at.items() if run_id in ids}


def _part_done(alive: Sequence[Heard], work: Mapping[str, float], left: set[str]) -> float:
    """The work in the steps of the cohorts under way; a lease may hold more runs than its cohort has."""
    done = 0.0
    for each in alive:
        report = each.report
        held = [work[run_id] for run_id in report.runs if run_id in left]
        if held and report.num_steps:
            share = min(1.0, report.step / report.num_steps)
            done += share * min(len(held), report.cohort) * sum(held) / len(held)
    return done
