"""`status`: where the collections of a store stand, from the store alone; anybody who can read it may ask at any time.

The keys of the JSON document:

    planned finished diverged running pending failed    numbers of runs; the first is the sum of the others
    tasks       the same by task, with id, name and teacher_accuracy_pct
    runs_per_hour, eta_s    at the pace of the last hours; null when nothing ended yet, or no lane works
    cost        device_hours, usd (so far, at the price of `market`), usd_per_record, idle_share (of the device-seconds that
                lanes held), devices: by model its hours, prices and where the price is from
    lanes       what each lane that did not end last said (cluster/lane_reports.py), with age_s; is_alive: false after a long
                silence, and a day later it is gone from the list
    failing     runs without a record whose attempts failed: run, task, attempts, reason, is_given_up, last_at
    slow        runs that took much longer than their MACs let expect: run, task, seconds, expected_s
    records, records_read    how many there are, and how many of them were read; `compact` makes many quick to read
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cluster.documents import get_document, get_latest, get_tasks
from cluster.events import read_newest
from cluster.lane_reports import Heard, LaneReports, LaneState
from cluster.plan import Plan
from cluster.standing import device_seconds, idle_share, standing
from dass.cost import count_macs
from dass.errors import ObjectNotFoundError
from dass.records import Run, Task
from jobs.console import duration, usd
from jobs.job import Job

PLANS = ("teachers", "collect", "search", "distil")
COUNTS = ("planned", "finished", "diverged", "running", "pending", "failed")
MOST_SEGMENTS = 2000  # of events
SHOWN = 10
FORGOTTEN_S = 86400.0  # after so long nobody asks for a silent lane
_ID = 8  # letters of a run's id that a person reads


def run(job: Job) -> dict[str, Any]:
    """Tell where the latest plan of each kind stands."""
    runs = {run.id: run for plan in _plans(job) for run in plan.runs}
    tasks = get_tasks(job.store, (run.task for run in runs.values()))
    heard = LaneReports(job.store).read()
    outlines = job.database.outlines([run.id for run in runs.values() if run.teacher is None])
    macs_of = {run.id: _macs(run, tasks[run.task]) for run in runs.values() if run.id not in outlines.run_ids}
    events = read_newest(job.store, MOST_SEGMENTS)
    stands = standing(list(runs.values()), outlines, macs_of, heard, events, datetime.now(UTC))
    spent = device_seconds(heard, outlines.known.values())
    found = {
        **{name: sum(getattr(task, name) for task in stands.tasks) for name in COUNTS},
        "tasks": [{**asdict(task), "name": tasks[task.id].name} for task in stands.tasks],
        "runs_per_hour": stands.runs_per_hour,
        "eta_s": stands.eta_s,
        "cost": _cost(job, spent, heard, len(outlines.run_ids)),
        "lanes": [{**asdict(each.report), "age_s": each.age_s, "is_alive": each.is_alive} for each in _lanes(heard)],
        "failing": [{**asdict(each), "task": tasks[each.task].name} for each in stands.failing],
        "slow": [{**asdict(each), "task": tasks[each.task].name} for each in stands.slow],
        "records": len(outlines.run_ids),
        "records_read": len(outlines.known),
        "store": job.store.url,
    }
    _tell(job, found)
    return found


def _plans(job: Job) -> Iterator[Plan]:
    for name in PLANS:
        try:
            plan_id = get_latest(job.store, f"plan-{name}", plan=str)["plan"]
            yield Plan.from_document(get_document(job.store, "plan", plan_id))
        except ObjectNotFoundError:
            continue


def _macs(run: Run, task: Task) -> int:
    return count_macs(run.student, task.resolution, task.num_classes)


def _lanes(heard: Iterable[Heard]) -> list[Heard]:
    """The last life of each lane, unless it ended or has long been silent."""
    last = {(each.report.queue, each.report.lane): each for each in heard}
    return [each for each in last.values() if each.report.state is not LaneState.ENDED and each.age_s < FORGOTTEN_S]


def _cost(job: Job, spent: Mapping[str, float], heard: Iterable[Heard], num_records: int) -> dict[str, Any]:
    prices = job.config.prices
    usd = prices.cost(spent)
    return {
        "device_hours": sum(spent.values()) / 3600,
        "usd": usd,
        "usd_per_record": usd / num_records if num_records else None,
        "market": prices.market,
        "idle_share": idle_share(heard),
        "devices": {
            device: {"hours": seconds / 3600, **asdict(prices.of(device))} for device, seconds in spent.items()
        },
    }


def _tell(job: Job, found: Mapping[str, Any]) -> None:
    tell, table = job.console.tell, job.console.table
    tasks = [
        (row["name"], _number(row["teacher_accuracy_pct"], ".1f"), *map(row.get, COUNTS)) for row in found["tasks"]
    ]
    table(f"Store {job.store.url}", ("task", "teacher %", *COUNTS), tasks)
    hint = "" if found["planned"] else "; `collect` plans the runs of a recipe"
    tell(", ".join(f"{found[name]} {name}" for name in COUNTS) + hint)
    if found["runs_per_hour"] is not None or found["eta_s"]:
        eta = "unknown" if found["eta_s"] is None else duration(found["eta_s"])
        tell(f"Pace: {_number(found['runs_per_hour'], '.1f')} runs an hour; time left {eta}")
    _tell_cost(job, found["cost"])
    if found["lanes"]:
        columns = ("lane", "state", "task", "lease", "runs", "epoch", "step", "steps/s", "images/s", "busy %", "said")
        table("Lanes", columns, [_lane_row(lane) for lane in found["lanes"]], num_texts=4)
    if found["failing"]:
        rows = [
            (
                each["run"][:_ID],
                each["task"],
                "given up" if each["is_given_up"] else "retried",
                each["attempts"],
                each["reason"],
            )
            for each in found["failing"][:SHOWN]
        ]
        table(
            _titled("Failing", found["failing"]), ("run", "task", "state", "attempts", "last reason"), rows, num_texts=5
        )
    if found["slow"]:
        slow = [
            (each["run"][:_ID], each["task"], duration(each["seconds"]), duration(each["expected_s"]))
            for each in found["slow"]
        ]
        table("Slow for their MACs", ("run", "task", "took", "others would take"), slow, num_texts=2)
    if found["records_read"] < found["records"]:
        unread = found["records"] - found["records_read"]
        tell(f"note: {unread} older records were not read, so diverged and slow ones may be missing; run `compact`")


def _tell_cost(job: Job, cost: Mapping[str, Any]) -> None:
    if not cost["device_hours"]:
        return
    idle = "" if cost["idle_share"] is None else f", {100 * cost['idle_share']:.0f} % of them idle"
    each = "" if cost["usd_per_record"] is None else f", {usd(cost['usd_per_record'])} a record"
    market = cost["market"].replace("_", " ")
    job.console.tell(f"Cost: {cost['device_hours']:.2f} device-hours so far{idle}; {usd(cost['usd'])} {market}{each}")
    for device, row in cost["devices"].items():
        job.console.tell(f"      {device}: {usd(row[cost['market']])} an hour, {row['source']}")


def _lane_row(lane: Mapping[str, Any]) -> tuple[Any, ...]:
    total_s = lane["busy_s"] + lane["idle_s"]
    return (
        lane["lane"],
        str(lane["state"]) if lane["is_alive"] else "silent",
        lane["task"] or "-",
        lane["token"] or "-",
        len(lane["runs"]),
        lane["epoch"],
        f"{lane['step']}/{lane['num_steps']}",
        f"{lane['student_steps_per_s']:.1f}",
        f"{lane['images_per_s']:.0f}",
        f"{100 * lane['busy_s'] / total_s:.0f}" if total_s else "-",
        f"{duration(max(0.0, lane['age_s']))} ago",
    )


def _titled(title: str, rows: Sequence[Any]) -> str:
    return title if len(rows) <= SHOWN else f"{title}: {SHOWN} of {len(rows)}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
