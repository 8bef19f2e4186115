"""The run database: how long adding, resuming, scanning and compacting take, and by how much memory grows.

    python -m tests.benchmarks store [--json] [--store folder|s3|ceph] [--records N ...] [--packed N ...] [--repeats R]

Every phase runs in a process of its own, so that its peak of memory is its own. `resume` is what a job does before it
trains: make the plan's ids, ask the database what is finished, and take the difference; its memory is what that adds to
the plan with its ids, which a queue keeps in any case: libraries and their pools, some 70 MB, and then as many bytes a record as
`resume_bytes_per_record` says. With `--packed N` a store begins with N records that are compacted
already, so that no N objects need to be written one by one. `s3` is moto's server on loopback and `ceph` a real gateway
there, if Debian's packages of it are installed: both show round trips and not the speed of a real bucket.

`ratio`: the scan before compaction over the scan after it, at most records. `limit_share` is null, because nothing here
convolves.
"""

import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.compaction import compact, packed_key
from cluster.database import RunDatabase, loose_key
from cluster.objects import FolderStore, ObjectStore, open_store
from cluster.plan import Plan
from cluster.schema import record_to_json
from cluster.tables import records_to_table, table_to_parquet
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student, content_id
from tests.benchmarks.measure import document, memory_mb, parser, tell
from tests.cluster import ceph_server, s3_server

NUM_TASKS = 20
NUM_ADDED = 500  # records that are added one after the other to measure the rate
LOOSE_SIZES = {"folder": (1_000, 10_000, 100_000), "s3": (1_000, 10_000), "ceph": (1_000, 10_000)}
PACKED_SIZES = {"folder": (300_000,), "s3": (100_000, 300_000), "ceph": (100_000, 300_000)}
UNITS = {
    "add": "records/s",
    "resume_loose": "s",
    "scan_loose": "s",
    "compact": "s",
    "resume_packed": "s",
    "scan_packed": "s",
}
VERSIONS = {"torch": "2.13.0+cpu", "ray": "2.60.0", "numpy": "2.3.0", "python": "3.11.7"}
MB = 2**20

Phase = Callable[[ObjectStore, int, int], "Measured"]


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


def fill_packed(store: ObjectStore, num: int) -> None:
    """One file per task, as a compaction of all these records leaves it."""
    by_task: dict[str, list[Record]] = defaultdict(list)
    for record in records(num):
        by_task[record.run.task].append(record)
    for task, some in by_task.items():
        some.sort(key=lambda record: record.run.id)
        triples = [(each.run.id, each.provenance.incarnation, each.provenance.attempt) for each in some]
        store.put(packed_key(task, triples), table_to_parquet(records_to_table(some)))


def add(store: ObjectStore, num: int, repeats: int) -> Measured:
    """Records added in a second, one after the other, in an empty store."""
    some = list(records(min(NUM_ADDED, num)))
    database = RunDatabase(store)

    def call() -> float:
        began = time.perf_counter()
        for record in some:
            database.add(record)
        return len(some) / (time.perf_counter() - began)

    return _once(call)


def resume(store: ObjectStore, num: int, repeats: int) -> Measured:
    """Seconds until it is known that nothing is pending, of a plan whose runs know no id yet."""
    values, grown_mb = [], []
    for _ in range(repeats):
        planned = tuple(runs(num))
        began = time.perf_counter()
        plan = Plan("benchmark", planned)
        before_mb = memory_mb("VmRSS")
        left = RunDatabase(store).pending(plan.runs)
        values.append(time.perf_counter() - began)
        grown_mb.append(memory_mb() - before_mb)
        assert left == []
        del planned, plan
    return Measured(statistics.median(values), max(grown_mb))


def scan(store: ObjectStore, num: int, repeats: int) -> Measured:
    """Seconds to read all records."""

    def call() -> float:
        began = time.perf_counter()
        found = sum(1 for _ in RunDatabase(store).scan())
        assert found == num
        return time.perf_counter() - began

    return _once(call)


def pack(store: ObjectStore, num: int, repeats: int) -> Measured:
    """Seconds to compact, without the wait."""

    def call() -> float:
        began = time.perf_counter()
        *_, last = compact(store, 0.0)
        assert last.packed == num
        return time.perf_counter() - began

    return _once(call)


def _once(call: Callable[[], float]) -> Measured:
    before_mb = memory_mb("VmRSS")
    return Measured(call(), memory_mb() - before_mb)


def _phase(call: Phase, url: str, num: int, repeats: int) -> Measured:
    return call(open_store(url), num, repeats)


def in_process(call: Phase, url: str, num: int, repeats: int) -> Measured:
    """`call` in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_phase, (call, url, num, repeats))


def measure_loose(url: str, num: int, repeats: int) -> dict[str, Measured]:
    """All phases, from loose records to packed ones."""
    measured = {"add": in_process(add, f"{url}/added-{num}", num, repeats)}
    place = f"{url}/{num}"
    fill(open_store(place), num)
    for name, phase in (("resume_loose", resume), ("scan_loose", scan), ("compact", pack)):
        measured[name] = in_process(phase, place, num, repeats)
    return measured | measure_packed(place, num, repeats)


def measure_packed(place: str, num: int, repeats: int) -> dict[str, Measured]:
    """What is left to measure once all records are packed."""
    return {
        "resume_packed": in_process(resume, place, num, repeats),
        "scan_packed": in_process(scan, place, num, repeats),
    }


@contextmanager
def served(kind: str) -> Iterator[str]:
    """The url of an empty store."""
    with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
        if kind == "folder":
            yield folder
        elif kind == "s3":
            with _moto() as endpoint:
                yield _bucket(endpoint, s3_server.KEYS)
        else:
            missing = [program for program in ceph_server.PROGRAMS if shutil.which(program) is None]
            if missing:
                sys.exit(
                    f"error: Ceph must be installed, got no {missing[0]}; {ceph_server.PACKAGES} have its programs"
                )
            cluster = ceph_server.Ceph(Path(folder))
            try:
                cluster.start()
                yield _bucket(cluster.endpoint, ceph_server.KEYS)
            finally:
                cluster.stop()


@contextmanager
def _moto() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.cluster.s3_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def _bucket(endpoint: str, keys: tuple[str, str]) -> str:
    os.environ |= s3_server.environment(endpoint, keys)
    return s3_server.make_bucket(endpoint, keys)


def figures(kind: str, measured: Mapping[int, Mapping[str, Measured]]) -> dict[str, Any]:
    """The document."""
    sizes = sorted(measured)
    both = [num for num in sizes if measured[num].keys() >= {"scan_loose", "scan_packed"}]
    last = measured[both[-1]] if both else None
    return document(
        "store",
        store=kind,
        sizes=sizes,
        ratio=round(last["scan_loose"].value / last["scan_packed"].value, 2) if last else None,
        limit_share=None,
        peak_mb=round(max(each.peak_mb for phases in measured.values() for each in phases.values())),
        resume_bytes_per_record=_slope({num: phases["resume_packed"].peak_mb for num, phases in measured.items()}),
        medians={name: {"unit": unit} | _by_size(measured, name, "value") for name, unit in UNITS.items()},
        growth_mb={name: _by_size(measured, name, "peak_mb") for name in UNITS},
    )


def _slope(peaks_mb: Mapping[int, float]) -> int | None:
    """By how many bytes memory grows with each record between the two largest sizes: what pools take once is in both."""
    *_, some, many = [0, *sorted(peaks_mb)]
    return round((peaks_mb[many] - peaks_mb[some]) * MB / (many - some)) if some else None


def _by_size(measured: Mapping[int, Mapping[str, Measured]], name: str, what: str) -> dict[str, float]:
    return {str(num): round(getattr(measured[num][name], what), 3) for num in sorted(measured) if name in measured[num]}


def lines(found: Mapping[str, Any], sizes: Sequence[int]) -> Iterator[str]:
    """The table, a row for each phase."""
    yield f"store: {found['store']}; median, and growth of memory in MB in brackets"
    yield f"{'':14}{'':10}" + "".join(f"{num:>18,}" for num in sizes)
    for name, unit in UNITS.items():
        values, grown = found["medians"][name], found["growth_mb"][name]
        cells = (f"{values[str(n)]:.4g} ({grown[str(n)]:.0f})" if str(n) in values else "-" for n in sizes)
        yield f"{name:14}{unit:>10}" + "".join(f"{cell:>18}" for cell in cells)
    if found["resume_bytes_per_record"]:
        yield f"resume of packed records: {found['resume_bytes_per_record']} bytes of memory for each"
    if found["ratio"]:
        yield f"scan before compaction / after it: {found['ratio']}"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options = parser("store", __doc__)
    options.add_argument("--store", choices=LOOSE_SIZES, default="folder", help="where the records lie")
    options.add_argument(
        "--records", type=int, nargs="*", metavar="N", help="numbers of records that begin as loose ones"
    )
    options.add_argument("--packed", type=int, nargs="*", metavar="N", help="numbers of records that begin packed")
    options.add_argument("--repeats", type=int, default=3, metavar="R", help="of a resume; the median is shown")
    chosen = options.parse_args(arguments)
    measured: dict[int, dict[str, Measured]] = {}
    with served(chosen.store) as url:
        for num in LOOSE_SIZES[chosen.store] if chosen.records is None else chosen.records:
            measured[num] = measure_loose(url, num, chosen.repeats)
        for num in PACKED_SIZES[chosen.store] if chosen.packed is None else chosen.packed:
            fill_packed(open_store(f"{url}/packed-{num}"), num)
            measured[num] = measure_packed(f"{url}/packed-{num}", num, chosen.repeats)
    found = figures(chosen.store, measured)
    tell(found, as_json=chosen.json, lines=lines(found, found["sizes"]))
