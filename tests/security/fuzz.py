"""`python -m tests.security.fuzz --seconds S [--json]`: throw altered and arbitrary input at every reader.

A target takes one input and must give a value or raise one of our own errors: never another exception, never a hang,
never memory without bound. Inputs are real files and texts with a few alterations, and some that are arbitrary.
"""

import argparse
import io
import json
import math
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from cluster.database import RunDatabase
from cluster.documents import get_document, get_latest, get_task
from cluster.events import read_events
from cluster.lane_reports import LaneReports
from cluster.ledger import TrialLedger
from cluster.objects import FolderStore, is_key
from cluster.owner import Ownership
from cluster.plan import Plan
from cluster.schema import record_from_json, record_to_json
from cluster.scores import ScoreLedger
from cluster.tables import parquet_to_table, table_to_records
from dass.baselines.meta_d2a import load_meta_d2a
from dass.baselines.tans import load_tans
from dass.data.decode import decode_all
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.errors import DassError
from dass.meta.calibration_file import from_document
from dass.meta.features import unpack_task
from dass.meta.train import MetaConfig
from dass.meta.tuning import Trial
from dass.networks.files import load_student
from dass.predictor import load_predictor
from dass.tensors import unpack_tensors
from jobs.config import parse_setting, with_settings
from jobs.recipe_file import from_toml
from jobs.recipes import get_recipe
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run
from tests.security.inputs import (
    altered_bytes,
    altered_headers,
    altered_json,
    altered_tables,
    images,
    recipe_texts,
    settings_texts,
    spec_texts,
)
from tests.security.site import (
    NAME,
    STUDENT,
    calibration_json,
    features_file,
    lane_report,
    meta_d2a_file,
    pack_and_task,
    predictor_file,
    restore,
    run_and_state,
    student_file,
    tans_file,
    write_store,
)

HANG_S = 30
FLOOD_BYTES = 2 * 2**30  # more memory than at the beginning


@dataclass(frozen=True)
class Target:
    """A reader and what it is fed; `read` raises DassError or nothing."""

    read: Callable[[Any], object]
    inputs: st.SearchStrategy[Any]


def target_store(key: str, data: bytes) -> RemoteMemoryStore:
    return RemoteMemoryStore({key: data})


# What is tried


def targets(folder: Path) -> dict[str, Target]:
    """All targets by name; `folder` is theirs to write to."""
    kinds = write_store(folder / "whole")
    whole = FolderStore(folder / "whole")
    seeds = {name: whole.get(kind.key) for name, kind in kinds.items()}
    run, state = run_and_state()
    task = kinds["task"].key.rpartition("/")[2].removesuffix(".json")
    plan = kinds["plan"].key.rpartition("/")[2].removesuffix(".json")
    inside = FolderStore(folder / "keys")
    base = get_recipe("smoke")
    records = [record_to_json(make_record(make_run(number))) for number in range(2)]
    owned = RemoteMemoryStore()
    list(Ownership(owned, "x", 1.0).claim(takeover=False))

    def loose(data: bytes) -> None:
        record_from_json(data, "records/loose/aa/x.json")
        list(RunDatabase(target_store(kinds["loose record"].key, data)).scan())

    def packed(data: bytes) -> None:
        database = RunDatabase(target_store("records/packed/t/x.parquet", data))
        for read in (database.outlines, lambda: list(database.scan())):
            ours(read)
        list(table_to_records(parquet_to_table(data, "x"), "x"))

    def documents(data: bytes) -> None:
        for name, read in (
            (f"documents/task/{task}.json", lambda store: get_task(store, task)),
            (f"documents/plan/{plan}.json", lambda store: Plan.from_document(get_document(store, "plan", plan))),
            ("documents/latest/x.json", lambda store: get_latest(store, "x", plan=str | None)),
        ):
            ours(partial(read, target_store(name, data)))

    def lanes(data: bytes) -> None:
        for heard in LaneReports(target_store("lanes/x.json", data)).read():
            assert math.isfinite(heard.report.device_s)
            assert heard.is_alive in (True, False)

    def calibration(data: bytes) -> None:
        store = target_store(f"documents/latest/{NAME}.json", data)
        found = from_document(get_latest(store, NAME, calibration=dict[str, Any])["calibration"])
        reach = found.half_width_pct(0.8)
        assert reach is None or math.isfinite(reach)
        for judge in (found.judging(0.8, is_unlike_all=True), found.judging(0.8, is_unlike_all=False)):
            assert judge.probability_better(torch.ones(1)).isfinite().all()

    def pack(data: bytes) -> None:
        Pack.from_bytes(data)

    def file_of(name: str, read: Callable[[Path], object], data: bytes | str) -> None:
        path = folder / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode(errors="surrogatepass"))
        read(path)

    def source(text: str) -> None:
        for kind in ("imagefolder", "parquet", "torchvision:CIFAR10", "torchvision"):
            ours(partial(read_source, f"{kind}:{folder}/none/{text}", 8))
        read_source(text, 8)

    def key(text: str) -> None:
        is_legal = is_key(text)
        inside.put(text, b"x")
        assert is_legal
        assert inside.get(text) == b"x"
        assert (inside.root / text).resolve().is_relative_to(inside.root.resolve())
        inside.delete(text)

    def parquet_source(data: bytes) -> None:
        file_of("images.parquet", lambda path: read_source(f"parquet:{path}", 8), data)

    table = pa.table({"image": images()[:4], "label": [0, 0, 1, 1]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return {
        "record as JSON": Target(loose, altered_json([*records, seeds["loose record"]])),
        "records as Parquet": Target(packed, altered_tables()),
        "documents": Target(documents, altered_json([seeds["task"], seeds["plan"], seeds["pointer"]])),
        "events": Target(
            lambda data: list(read_events(target_store("events/a/00000001.jsonl", data))),
            altered_json([seeds["events"]]),
        ),
        "owner of a plan": Target(
            lambda data: next(Ownership(target_store("owners/x.json", data), "x", 1.0).claim(takeover=False), None),
            altered_json([owned.get("owners/x.json")]),
        ),
        "trial of a tuning": Target(
            lambda data: TrialLedger(target_store(kinds["trial"].key, data), NAME, "trials").get(
                Trial(0, MetaConfig())
            ),
            altered_json([seeds["trial"]]),
        ),
        "scores of a search": Target(
            lambda data: ScoreLedger(target_store(kinds["scores"].key, data), NAME).get(0, [STUDENT]),
            altered_bytes([seeds["scores"]]),
        ),
        "report of a lane": Target(lanes, altered_json([lane_report()])),
        "calibration": Target(calibration, altered_json([calibration_json()])),
        "features": Target(unpack_task, altered_headers([features_file()])),
        "checkpoint": Target(lambda data: restore(run, data), altered_headers([state])),
        "student file": Target(load_student, altered_headers([student_file()])),
        "predictor": Target(load_predictor, altered_headers([predictor_file()])),
        "MetaD2A": Target(load_meta_d2a, altered_headers([meta_d2a_file()])),
        "TANS": Target(load_tans, altered_headers([tans_file()])),
        "pack": Target(pack, altered_headers([small_pack().to_bytes()])),
        "tensors": Target(unpack_tensors, altered_bytes([state, student_file()])),
        "data SPEC": Target(source, spec_texts()),
        "--set": Target(lambda text: (parse_setting(text), with_settings(base, [text])), settings_texts()),
        "recipe TOML": Target(
            partial(file_of, "recipe.toml", lambda path: from_toml(path, get_recipe)),
            recipe_texts() | st.binary(max_size=60),
        ),
        "image": Target(lambda data: decode_all([data], ["x"], 8), altered_bytes(images())),
        "Parquet of images": Target(parquet_source, altered_bytes([sink.getvalue()])),
        "key": Target(key, st.text(max_size=30) | st.text("./ab_-@~%\\", max_size=12)),
    }


def small_pack() -> Pack:
    """A pack of few images: small files are altered more."""
    pack, _ = pack_and_task()
    return Pack(pack.images[:4].clone(), pack.labels[:4].clone(), pack.parts[:4].clone(), pack.class_names, pack.name)


def ours(read: Callable[[], object]) -> None:
    """Read, whatever of our own errors comes; another error goes on."""
    try:
        read()
    except DassError as error:
        if not str(error):
            raise AssertionError(f"an error of ours must say something, got {error!r}") from error


# How it is tried


def attempt(target: Target, num_inputs: int, number: int) -> int:
    """Feed about `num_inputs` inputs; how many it were.

    Raises:
        BaseException: what a target raised that is no error of ours, or _Hang, for the smallest such input.
    """
    done = 0

    @seed(number)
    @settings(
        max_examples=num_inputs,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(target.inputs)
    def feed(data: Any) -> None:
        nonlocal done
        done += 1
        with _no_hang():
            ours(partial(target.read, data))

    feed()
    return done


class _Hang(BaseException):
    """An input took longer than HANG_S."""


@contextmanager
def _no_hang() -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> NoReturn:
        raise _Hang(f"no answer in {HANG_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def memory_bytes() -> int:
    """The most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(seconds: float, first_seed: int = 0, batch: int = 200) -> list[dict[str, Any]]:
    """Go round the targets until the time is over; one row each, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        found = targets(Path(folder))
        rows = {name: {"target": name, "inputs": 0, "seconds": 0.0, "failures": []} for name in found}
        end, number, began_bytes = time.monotonic() + seconds, first_seed, memory_bytes()
        while time.monotonic() < end:
            for name, target in found.items():
                began = time.monotonic()
                row: dict[str, Any] = rows[name]
                try:
                    row["inputs"] += attempt(target, batch, number)
                except (Exception, _Hang) as error:  # noqa: BLE001 - that is what is looked for
                    notes = " ".join(getattr(error, "__notes__", []))
                    row["failures"].append(f"{type(error).__name__}: {error} {notes}"[:600])
                row["seconds"] += round(time.monotonic() - began, 2)
                grown_bytes = memory_bytes() - began_bytes
                if grown_bytes > FLOOD_BYTES:
                    row["failures"].append(f"{grown_bytes} bytes of memory more than at the beginning")
                    began_bytes += grown_bytes
            number += 1
        return list(rows.values())


def main() -> int:
    """Print the rows; 1 when anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = fuzz(options.seconds, options.seed)
    if options.json:
        sys.stdout.write(
            json.dumps({"seconds": options.seconds, "seed": options.seed, "targets": rows}, indent=2) + "\n"
        )
    else:
        for row in rows:
            sys.stdout.write(f"{row['target']:<22}{row['inputs']:>10} inputs{len(row['failures']):>4} failures\n")
            sys.stdout.writelines(f"    {failure}\n" for failure in sorted(set(row["failures"])))
    return int(any(row["failures"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
