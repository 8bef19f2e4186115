"""What a collection would take, told by `collect --dry-run`: measured here in seconds, or read from records of the recipe."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cluster.outlines import Outline
from cluster.plan import Plan
from cluster.probe import Work, probe, side_by_side
from cluster.quote import MeasuredSpeed, Pool, Quote, Range, RecordedSpeed, Speed, quote
from cluster.runtime import device_name
from cluster.schema import record_to_json
from cluster.sizing import Sizing
from dass.cost import count_macs, count_params
from dass.records import CurvePoint, Provenance, Record, Result, Run, Status, Task
from jobs.console import duration, usd
from jobs.job import Job

SECONDS = 10.0  # of measuring; starting processes comes on top
WEIGHT_BYTES = 4
MB = 2**20


@dataclass(frozen=True)
class _Source:
    """Where the speed is from: the device, and how it was learned."""

    speed: Speed
    device: str
    text: str


def run(job: Job, plan: Plan, tasks: Iterable[Task]) -> dict[str, Any]:
    """Tell what the runs of the plan that have no record will take; nothing is written."""
    outlines = job.database.outlines([run.id for run in plan.runs if run.teacher is None])
    left = [run for run in plan.runs if run.id not in outlines.run_ids]
    by_id = {task.id: task for task in tasks}
    if not left:
        job.console.tell("Nothing is left to train.")
        return {"runs": 0}
    sizes = _store_bytes(job, left, by_id)
    source = _source(job, left, by_id, outlines.known.values())
    if source is None:
        job.console.tell(
            "No quote of time and cost: lanes.gpus asks for a GPU, and there is none here nor records of this recipe; run it "
            "where there is one, or --set lanes.gpus=0"
        )
        _tell_sizes(job, sizes)
        return {"runs": len(left), "store_bytes": sizes}
    found = quote(left, by_id, source.speed, job.config.lanes)
    _tell(job, found, source)
    _tell_sizes(job, sizes)
    return {
        "runs": len(left),
        "teachers": found.num_teachers,
        "students": found.num_students,
        "device": source.device,
        "source": source.text,
        "device_hours": _hours(job, found.work_s),
        "price": asdict(job.config.prices.of(source.device)),
        "pools": [_pool(job, pool, source.device) for pool in found.pools],
        "store_bytes": sizes,
    }


def _source(job: Job, left: Sequence[Run], tasks: Mapping[str, Task], known: Iterable[Outline]) -> _Source | None:
    """Records of the recipe on the device at hand if there are enough, else a measurement, else records of any device."""
    lanes, outlines = job.config.lanes, list(known)
    is_here = lanes.gpus == 0 or torch.cuda.is_available()
    here = device_name(lanes.device) if is_here else ""
    devices = Counter(outline.device for outline in outlines if outline.is_measured)
    for device in [here] if is_here else [name for name, _ in devices.most_common()]:
        mine = [outline for outline in outlines if outline.device == device]
        recorded = RecordedSpeed(tasks, mine)
        if recorded.knows(left):
            return _Source(recorded, device, f"from the records of these recipes on {device}")
    if not is_here:
        return None
    task = tasks[left[0].task]
    students = {run.student for run in left if run.teacher is not None}
    ranked = sorted(students, key=lambda student: count_macs(student, task.resolution, task.num_classes))
    config = job.config
    work = Work(task, config.space, tuple(ranked), config.teacher, config.student, lanes, SECONDS)
    began = time.perf_counter()
    samples = probe(work, job.pack(task))
    took_s = time.perf_counter() - began
    text = (
        f"from {len(samples.steps) + len(samples.teacher_steps)} looks at training steps in {took_s:.0f} s on {here}, "
        f"{side_by_side(lanes)} lane(s) side by side"
    )
    return _Source(MeasuredSpeed(samples, lanes), here, text)


def _hours(job: Job, seconds: Range) -> dict[str, float]:
    return {name: value * job.config.lanes.num_devices / 3600 for name, value in asdict(seconds).items()}


def _pool(job: Job, pool: Pool, device: str) -> dict[str, Any]:
    hours, price = _hours(job, pool.lane_s), job.config.prices.of(device)
    return {
        "lanes": pool.lanes,
        "eta_s": asdict(pool.eta_s),
        "device_hours": hours,
        "on_demand_usd": hours["expected"] * price.on_demand,
        "spot_usd": hours["expected"] * price.spot,
    }


def _tell(job: Job, found: Quote, source: _Source) -> None:
    hours, price = _hours(job, found.work_s), job.config.prices.of(source.device)
    job.console.tell(
        f"Quote: {found.num_teachers} teachers and {found.num_students} students to train, {_between(hours, '.3g')} device-hours"
    )
    job.console.tell(f"       {source.text}")
    rows = []
    for pool in found.pools:
        row = _pool(job, pool, source.device)
        eta = row["eta_s"]
        until = f"{duration(eta['expected'])} ({duration(eta['low'])} to {duration(eta['high'])})"
        hours_text = f"{row['device_hours']['expected']:.3g}"
        rows.append((pool.lanes, until, hours_text, usd(row["on_demand_usd"]), usd(row["spot_usd"])))
    title = f"Lanes like these; {usd(price.on_demand)} on demand and {usd(price.spot)} spot an hour ({price.source})"
    job.console.table(title, ("lanes", "time", "device-hours", "on demand", "spot"), rows, num_texts=2)


def _between(values: Mapping[str, float], form: str) -> str:
    return f"{values['expected']:{form}} ({values['low']:{form}} to {values['high']:{form}})"


def _tell_sizes(job: Job, sizes: Mapping[str, int]) -> None:
    parts = ", ".join(f"{name.replace('_', ' ')} {size / MB:.1f}" for name, size in sizes.items())
    job.console.tell(f"Store, in MB: {parts}")


def _store_bytes(job: Job, left: Sequence[Run], tasks: Mapping[str, Task]) -> dict[str, int]:
    """What the runs leave in the store; the checkpoints are there only while runs train."""
    lanes = job.config.lanes
    num = lanes.num * Sizing.first(lanes.cohort_size).size
    params = [count_params(run.student, tasks[run.task].num_classes) for run in left if run.teacher is not None]
    teachers = [count_params(run.student, tasks[run.task].num_classes) for run in left if run.teacher is None]
    weights = WEIGHT_BYTES * sum(teachers)
    training = 2 * WEIGHT_BYTES * sum(sorted(params)[-num:])  # weights and momentum
    return {
        "records": sum(_record_bytes(run, tasks[run.task]) for run in left),
        "teachers": weights,
        "checkpoints_at_most": max(training, 3 * WEIGHT_BYTES * sum(sorted(teachers)[-lanes.num :])),  # and the best
    }


def _record_bytes(run: Run, task: Task) -> int:
    """The length of the record that a run will leave."""
    point = CurvePoint(run.recipe.epochs, 1 / 3, 1 / 3, 100 / 3)
    num = -(-run.recipe.epochs // run.recipe.eval_every)
    result = Result(Status.FINISHED, (point,) * num, 100 / 3, 100 / 3, 100 / 3, 1 / 3)
    versions = {"python": "3.11.11", "torch": "2.13.0+cu130", "numpy": "2.3.0", "ray": "2.60.0"}
    where = Provenance(
        "2025-01-01T00:00:00+00:00", 100.0, 100, "lane00", 30 * "x", 1, "channels_last", 20 * "x", versions, 1
    )
    cost = count_macs(run.student, task.resolution, task.num_classes), count_params(run.student, task.num_classes)
    return len(record_to_json(Record(run, result, *cost, task.num_classes, task.resolution, where)))
