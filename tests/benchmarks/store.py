"""The run database: how long adding, resuming, scanning and compacting take, and how much memory, by number of records.

    python -m tests.benchmarks store [--json] [--records N ...] [--store folder|s3] [--repeats R]

Every phase runs in a process of its own, so that its peak of memory is its own. `resume` is what a job does before it
trains: make the plan's ids, ask the database what is finished, and take the difference. With `--store s3` the store is
moto's server on loopback, which shows round trips and not the speed of a real bucket.
"""

import argparse
import importlib.metadata
import json
import math
import multiprocessing
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.compaction import compact
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore, ObjectStore, open_store
from cluster.plan import Plan, pending
from cluster.schema import record_to_json
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student, content_id

NUM_TASKS = 20
NUM_ADDED = 500  # records that are added one after the other to measure the rate
SIZES = (1_000, 10_000, 100_000)
UNITS = {
    "add_per_s": "records/s",
    "resume_loose_s": "s",
    "scan_loose_s": "s",
    "compact_s": "s",
    "resume_packed_s": "s",
    "scan_packed_s": "s",
}
VERSIONS = {"torch": "2.13.0+cpu", "ray": "2.60.0", "numpy": "2.3.0", "python": "3.11.7"}


@dataclass(frozen=True)
class Measured:
    """The median of a phase's repetitions, and by how much its memory grew at most."""

    value: float
    peak_mb: float


def runs(num: int) -> Iterator[Run]:
    """Runs of 20 tasks under one recipe, each of its own student."""
    chance = random.Random(0)
    recipe = Recipe(epochs=50)
    tasks = [content_id(["task", number]) for number in range(NUM_TASKS)]
    teachers = [content_id(["teacher", number]) for number in range(NUM_TASKS)]
    for number in range(num):
        widths = tuple(tuple(chance.randrange(8, 513, 8) for _ in range(chance.randint(1, 4))) for _ in range(4))
        yield Run(tasks[number % NUM_TASKS], teachers[number % NUM_TASKS], Student(widths), recipe, number)


def records(num: int) -> Iterator[Record]:
    """A record of each run, with the ten evaluations of 50 epochs; one in fifty diverged."""
    chance = random.Random(1)
    for number, run in enumerate(runs(num)):
        points = tuple(
            CurvePoint(5 * step, 2.5 * chance.random(), 2.5 * chance.random(), 100 * chance.random())
            for step in range(1, 11)
        )
        best = max(point.valid_accuracy_pct for point in points)
        status = Status.FINISHED if number % 50 else Status.DIVERGED
        result = Result(status, points, 10.0, best, points[-1].valid_accuracy_pct, points[-1].valid_loss)
        where = Provenance(
            "2025-01-02T03:04:05+00:00", 90 * chance.random(), number, f"lane{number % 8}", "NVIDIA H100 80GB HBM3",
            1, "channels_last", "0.1.0", VERSIONS, 1,
        )  # fmt: skip
        yield Record(run, result, chance.randrange(10**6, 10**8), chance.randrange(10**4, 10**7), 10, 32, where)


def fill(store: ObjectStore, num: int) -> None:
    """All loose records at once, without waiting for the disk."""

    def put(record: Record) -> None:
        if isinstance(store, FolderStore):
            path = store.root / loose_key(record.run.id)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(record_to_json(record))
        else:
            store.put(loose_key(record.run.id), record_to_json(record))

    with ThreadPoolExecutor(16 if store.is_remote else 1) as pool:
        for _ in pool.map(put, records(num)):
            pass


def add(store: ObjectStore, num: int) -> float:
    """Records added in a second, in an empty store."""
    some = list(records(min(NUM_ADDED, num)))
    database = RunDatabase(store)
    began = time.perf_counter()
    for record in some:
        database.add(record)
    return len(some) / (time.perf_counter() - began)


def resume(store: ObjectStore, num: int) -> float:
    """Seconds until it is known that nothing is pending."""
    planned = tuple(runs(num))
    began = time.perf_counter()
    left = pending(Plan("benchmark", planned), RunDatabase(store).finished_ids())
    seconds = time.perf_counter() - began
    assert left == []
    return seconds


def scan(store: ObjectStore, num: int) -> float:
    """Seconds to read all records."""
    began = time.perf_counter()
    found = sum(1 for _ in RunDatabase(store).scan())
    assert found == num
    return time.perf_counter() - began


def pack(store: ObjectStore, num: int) -> float:
    """Seconds to compact, without the wait."""
    began = time.perf_counter()
    *_, last = compact(store, 0.0)
    assert last.packed == num
    return time.perf_counter() - began


def _phase(call: Callable[[ObjectStore, int], float], url: str, num: int, repeats: int) -> Measured:
    """Run in a process of its own."""
    store = open_store(url)
    before_mb = _memory_mb("VmRSS")
    values = [call(store, num) for _ in range(repeats)]
    return Measured(statistics.median(values), _memory_mb("VmHWM") - before_mb)


def _memory_mb(name: str) -> float:
    """What Linux says of this process; NaN elsewhere. (getrusage's peak is that of the parent too.)"""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def measure(call: Callable[[ObjectStore, int], float], url: str, num: int, repeats: int = 1) -> Measured:
    """`call` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_phase, (call, url, num, repeats))


def measure_size(url: str, num: int, repeats: int) -> dict[str, Measured]:
    """All phases at one number of records."""
    measured = {"add_per_s": measure(add, f"{url}/added-{num}", num)}
    place = f"{url}/{num}"
    fill(open_store(place), num)
    measured["resume_loose_s"] = measure(resume, place, num, repeats)
    measured["scan_loose_s"] = measure(scan, place, num)
    measured["compact_s"] = measure(pack, place, num)
    measured["resume_packed_s"] = measure(resume, place, num, repeats)
    measured["scan_packed_s"] = measure(scan, place, num)
    return measured


@contextmanager
def _place(kind: str) -> Iterator[str]:
    """The url of an empty store."""
    if kind == "folder":
        with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
            yield folder
        return
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    server = subprocess.Popen(
        [sys.executable, "-c", _MOTO], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = next(line.strip() for line in server.stdout if line.startswith("http"))
        import boto3

        boto3.client("s3").create_bucket(Bucket="benchmark")
        yield "s3://benchmark/store"
    finally:
        server.kill()
        server.wait()


_MOTO = """
import time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
print("http://%s:%d" % server.get_host_and_port(), flush=True)
time.sleep(1e9)
"""


def document(kind: str, sizes: list[int], measured: dict[int, dict[str, Measured]]) -> dict[str, Any]:
    """The figures as JSON types."""
    return {
        "name": "store",
        "store": kind,
        "sizes": sizes,
        "figures": {
            name: {"unit": unit, "values": [round(measured[num][name].value, 4) for num in sizes]}
            for name, unit in UNITS.items()
        },
        "peak_mb": {name: [round(measured[num][name].peak_mb) for num in sizes] for name in UNITS},
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("dass", "pyarrow", "numpy")},
        },
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks store", description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--records", type=int, nargs="+", default=list(SIZES), metavar="N", help="numbers of records")
    parser.add_argument("--store", choices=("folder", "s3"), default="folder", help="where the records lie")
    parser.add_argument("--repeats", type=int, default=3, metavar="R", help="of a resume; the median is shown")
    options = parser.parse_args(arguments)
    measured: dict[int, dict[str, Measured]] = {}
    with _place(options.store) as url:
        for num in options.records:
            measured[num] = measure_size(url, num, options.repeats)
            if not options.json:
                told = (f"{name} {each.value:.3g} ({each.peak_mb:.0f} MB)" for name, each in measured[num].items())
                print(f"{num} records in {options.store}: {', '.join(told)}", flush=True)  # noqa: T201
    if options.json:
        print(json.dumps(document(options.store, options.records, measured), indent=2))  # noqa: T201
