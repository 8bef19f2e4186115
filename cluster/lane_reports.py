"""What each lane last said of itself: lanes/<id>.json, one object for each life of a lane.

A lane overwrites its own object every `lanes.report_s` seconds, from a thread that nothing waits for, so a slow store
delays no step and a store that is down costs a report and no lane. The id is new for each life of a lane, so what an
earlier life or submission said stays: together they say how long devices were held, which is what they cost. A lane
that was killed says no more; its reports' age tells, by the store's clock and the reader's (see `is_silent`).
"""

import math
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any

import torch

from cluster.checkpoints import Token
from cluster.events import Progress
from cluster.memory import used_bytes
from cluster.objects import Entry, ObjectStore
from cluster.parallel import each
from cluster.runtime import device_name
from cluster.schema import SCHEMA_VERSION, build, decode_json, encode_json, plain
from cluster.settings import LaneConfig
from dass.errors import ObjectNotFoundError, SchemaTooNewError, StoreError
from dass.kd.cohort import Progress as CohortProgress

FOLDER = "lanes/"
SKEW_S = 60.0  # by how much the store's clock and a reader's may differ

_HALF_LIFE_S = 120.0  # of the rates


class LaneState(StrEnum):
    """What a lane does."""

    STARTING = "starting"
    TRAINING = "training"
    WAITING = "waiting"  # nothing is free for it now
    ENDED = "ended"


@dataclass(frozen=True)
class LaneReport:
    """One life of a lane; times are UTC in ISO 8601.

    devices: GPUs, or CPU cores where it has no GPU, that it holds. busy_s: seconds with a lease, loading included; idle_s:
    all others since it started. runs: those that it holds, all of the task named `task`; step, num_steps and epoch say how
    far the cohort of `cohort` students has come. student_steps and recorded: optimiser steps of students, and records left,
    in this life. The rates are those of the last minutes; an image counts once for each student. memory_bytes: in use, of
    the GPU or else of the process.
    """

    id: str
    lane: str
    queue: str
    device: str
    devices: float
    lease_s: float
    report_s: float
    started_at: str
    updated_at: str
    state: LaneState = LaneState.STARTING
    busy_s: float = 0.0
    idle_s: float = 0.0
    task: str = ""
    token: str = ""
    runs: tuple[str, ...] = ()
    cohort: int = 0
    step: int = 0
    num_steps: int = 0
    epoch: int = 0
    student_steps: int = 0
    recorded: int = 0
    student_steps_per_s: float = 0.0
    images_per_s: float = 0.0
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        numbers = (self.devices, self.lease_s, self.report_s, self.busy_s, self.idle_s, self.student_steps_per_s)
        if not all(0 <= number < math.inf for number in numbers):
            raise ValueError(f"a lane's report must hold finite numbers >= 0, got {numbers}; delete the report")
        if any(datetime.fromisoformat(time).tzinfo is None for time in (self.started_at, self.updated_at)):
            raise ValueError(
                f"a lane's report must say times with their zone, got {self.started_at}; delete the report"
            )

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"{FOLDER}{self.id}.json"

    @property
    def device_s(self) -> float:
        """Device-seconds: how long it has held how many devices."""
        return self.devices * (self.busy_s + self.idle_s)

    def is_silent(self, age_s: float) -> bool:
        """Whether a lane that says nothing since `age_s` seconds must be taken for dead: so long that its lease is lost."""
        return self.state is not LaneState.ENDED and age_s > self.lease_s + 2 * self.report_s + SKEW_S


class LaneReporter:
    """Writes a lane's report during a `with` block. The lane tells what it does; no call waits for the store.

    Args:
        store: where the report goes; best one that soon gives up.
        lane: the lane's name.
        queue: the name of its queue.
        device: where it trains.
        settings: the lane's.
    """

    def __init__(self, store: ObjectStore, lane: str, queue: str, device: torch.device, settings: LaneConfig) -> None:
        self._store = store
        self._device = device
        now = _utc_now()
        self._report = LaneReport(
            id=f"{now:%Y%m%dT%H%M%S}-{lane}-{uuid.uuid4().hex[:8]}",
            lane=lane,
            queue=queue,
            device=device_name(device),
            devices=settings.num_devices,
            lease_s=settings.lease_s,
            report_s=settings.report_s,
            started_at=now.isoformat(timespec="seconds"),
            updated_at=now.isoformat(timespec="seconds"),
        )
        self._began = self._since = time.monotonic()
        self._pace = Progress(total=0, half_life_s=_HALF_LIFE_S)
        self._images_per_step = 0
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_often, name=f"report-{lane}", daemon=True)

    def hold(self, token: Token, task: str, runs: Sequence[str]) -> None:
        """The lane has a lease of these runs of the task."""
        self._enter(LaneState.TRAINING, token=str(token), task=task, runs=tuple(runs))

    def begin(self, step: int, images_per_step: int) -> None:
        """A cohort begins, or goes on, at this step; each of its students sees so many images in a step."""
        with self._lock:
            self._images_per_step = images_per_step
            self._report = replace(self._report, step=step)

    def note(self, progress: CohortProgress, size: int, left: Sequence[str]) -> None:
        """A cohort of which `size` students go on has come so far; the runs `left` of the lease have no record yet."""
        with self._lock:
            was = self._report
            self._report = replace(
                was,
                step=progress.step,
                num_steps=progress.num_steps,
                epoch=progress.epoch,
                cohort=size,
                student_steps=was.student_steps + (progress.step - was.step) * (size + len(progress.ended)),
                recorded=was.recorded + len(progress.ended),
                runs=tuple(left),
            )

    def wait(self) -> None:
        """The lane has no lease."""
        self._enter(LaneState.WAITING, token="", task="", runs=(), cohort=0, step=0, num_steps=0, epoch=0)

    def __enter__(self) -> "LaneReporter":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._enter(LaneState.ENDED, token="", task="", runs=(), cohort=0, step=0, num_steps=0, epoch=0)
        self._write()

    def _enter(self, state: LaneState, **changes: Any) -> None:  # noqa: ANN401 - fields of LaneReport
        with self._lock:
            self._report = replace(self._charged(), state=state, **changes)

    def _charged(self) -> LaneReport:
        """The report with the time since it was last charged, under the lock."""
        now, was = time.monotonic(), self._report
        seconds, self._since = now - self._since, now
        if was.state is LaneState.TRAINING:
            return replace(was, busy_s=was.busy_s + seconds)
        return replace(was, idle_s=was.idle_s + seconds)

    def _write_often(self) -> None:
        while True:
            self._write()
            if self._ended.wait(self._report.report_s):
                return

    def _write(self) -> None:
        with self._lock:
            report = self._charged()
            self._pace = self._pace.after(report.student_steps, self._since - self._began)
            rate = self._pace.rate_per_s or 0.0
            self._report = report = replace(
                report,
                updated_at=_utc_now().isoformat(timespec="seconds"),
                student_steps_per_s=round(rate, 3),
                images_per_s=round(rate * self._images_per_step, 3),
                memory_bytes=used_bytes(self._device),
            )
        with suppress(StoreError):  # the next report says it all
            self._store.put(report.key, encode_json({"schema": SCHEMA_VERSION, **plain(report)}))


@dataclass(frozen=True)
class Heard:
    """A report, and how long ago it was written."""

    report: LaneReport
    age_s: float

    @property
    def is_alive(self) -> bool:
        """Whether the lane works, as far as a reader can tell."""
        return self.report.state is not LaneState.ENDED and not self.report.is_silent(self.age_s)


class LaneReports:
    """The reports in a store, for one who looks again and again: what did not change is not read again."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._known: dict[Entry, LaneReport | None] = {}

    def read(self, now: datetime | None = None) -> list[Heard]:
        """All reports, the oldest life first; one that is damaged is left out: it is no truth about any run.

        Raises:
            StoreError: the store cannot be read.
        """
        entries = [entry for entry in self._store.entries(FOLDER) if entry.key.endswith(".json")]
        new = [entry for entry in entries if entry not in self._known]
        read = zip(new, each(self._store, self._read, new), strict=True)
        self._known = {entry: self._known[entry] for entry in entries if entry in self._known} | dict(read)
        known = [(entry, report) for entry in entries if (report := self._known[entry]) is not None]
        return [Heard(report, ((now or _utc_now()) - entry.modified_at).total_seconds()) for entry, report in known]

    def _read(self, entry: Entry) -> LaneReport | None:
        try:
            data = self._store.get(entry.key)
        except ObjectNotFoundError:  # gone meanwhile
            return None
        try:
            value = decode_json(data, entry.key)
            del value["schema"]
            return build(LaneReport, value, entry.key)
        except SchemaTooNewError:
            raise
        except StoreError:  # damaged
            return None


def _utc_now() -> datetime:
    return datetime.now(UTC)
