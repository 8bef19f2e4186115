"""One lane's work: lease a cohort, train it, leave records; nothing here knows how the lane was started.

    task and teacher from the store -> saved states -> cohorts by position -> train

and at each yield: the records of the runs that ended, a heartbeat, and now and then a checkpoint of every run under the
lease's token. A lease that is lost is dropped at once: somebody else trains those runs now.
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import ray
import torch

from cluster.cache import load_pack, open_cache
from cluster.checkpoints import get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.database import RunDatabase
from cluster.documents import get_task
from cluster.events import EventLog
from cluster.heartbeat import Heartbeat
from cluster.objects import open_store
from cluster.plan import FailureKind, cut_cohorts
from cluster.queue import Lease, LeaseState
from cluster.runtime import code_version, device_name, versions
from cluster.schema import claim_schema
from cluster.settings import LaneConfig
from cluster.teachers import load_teacher
from cluster.weights import put_weights
from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.cohort import Cohort, Ended, Position, state_position
from dass.records import Provenance, Record, Run, Status, Task

WAIT_S = 0.5


@dataclass(frozen=True)
class LaneJob:
    """What a lane must be told; plain values, because they cross from the driver's process to the lane's."""

    store_url: str
    queue: str
    settings: LaneConfig
    keep_weights: bool = False

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "LaneJob":
        """The job whose `dataclasses.asdict` this is."""
        return cls(**{**value, "settings": LaneConfig(**value["settings"])})


class Lane:
    """Works until the queue is empty.

    Args:
        name: the lane's, as the queue and the events know it.
        job: what to do.
        queue: handle of the queue's actor.
    """

    def __init__(self, name: str, job: LaneJob, queue: Any) -> None:  # noqa: ANN401 - Ray's handles have no static type
        self._name = name
        self._job = job
        self._queue = queue
        self._store = open_store(job.store_url)
        claim_schema(self._store)  # a lane may start long after its driver: a newer version may own the store by now
        self._database = RunDatabase(self._store)
        self._events = EventLog(self._store, name)
        self._device = torch.device("cuda" if job.settings.gpus > 0 else "cpu")
        self._memory_format = (
            torch.channels_last if job.settings.memory_format == "channels_last" else torch.contiguous_format
        )
        self._pack: Pack | None = None

    def work(self) -> None:
        """Lease and train until nothing is left.

        Raises:
            StoreError: the store fails; Ray Train starts the lane again, and the runs go on from their checkpoints.
        """
        torch.set_num_threads(self._job.settings.threads)
        # what an earlier life of this lane held; it died of it, or of its node
        ray.get(self._queue.release.remote(self._name, FailureKind.LANE_LOST))
        with self._events:
            while True:
                reply = ray.get(self._queue.lease.remote(self._name, self._job.settings.cohort_size))
                if reply.state is LeaseState.EMPTY:
                    return
                if reply.state is LeaseState.WAIT:
                    time.sleep(WAIT_S)
                else:
                    self._train_lease(reply.lease)

    def _train_lease(self, lease: Lease) -> None:
        """Train the runs of a lease; when they fail the queue decides, and what is no fault of a run's own ends the lane.

        After an error of the accelerator its process can do no more work, after one of the store no lane can.
        """
        try:
            runs = self._without_record(lease)
            settings = self._job.settings
            with Heartbeat(self._queue, self._name, lease.token, settings.lease_s, settings.hang_s) as heartbeat:
                if runs:
                    self._train_runs(lease, runs, heartbeat)
        except (RuntimeError, ValueError, MemoryError, StoreError) as error:
            self._give_back(lease, error)
            if isinstance(error, StoreError | torch.AcceleratorError):
                raise

    def _give_back(self, lease: Lease, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        run_ids = [run.id for run in lease.runs]
        decisions = ray.get(self._queue.fail.remote(run_ids, lease.token, _failure_kind(error), reason))
        for run_id, decision in decisions.items():
            self._event("failed", lease, run=run_id, reason=reason, decision=str(decision))

    def _train_runs(self, lease: Lease, runs: tuple[Run, ...], heartbeat: Heartbeat) -> None:
        """Train runs of one task and teacher, those that stand at one position together."""
        task = get_task(self._store, runs[0].task)
        data = ResidentBatches.of(self._load_pack(task), task, self._device)
        teacher = None if runs[0].teacher is None else load_teacher(self._database, runs[0].teacher, task.id)
        states = self._load_states(lease, runs)
        positions = {run_id: state_position(state)[1] for run_id, state in states.items()}
        for together in cut_cohorts(runs, positions, len(runs)):
            cohort = Cohort(
                together,
                data,
                teacher,
                states={run.id: states[run.id] for run in together if run.id in states},
                keep_weights=self._job.keep_weights or teacher is None,
                yield_every=self._job.settings.yield_every,
                memory_format=self._memory_format,
            )
            if not self._train_cohort(lease, cohort, task, heartbeat):
                return

    def _train_cohort(self, lease: Lease, cohort: Cohort, task: Task, heartbeat: Heartbeat) -> bool:
        """Train to the end; False when the lease was lost on the way."""
        began = datetime.now(UTC)
        checkpointed = time.monotonic()
        self._event("cohort", lease, runs=[run.id for run in cohort.runs], task=task.name)
        for progress in cohort.train():
            heartbeat.note_life()
            for ended in progress.ended:
                self._record(ended, lease, task, began)
            saved: dict[str, Position] = {}
            if time.monotonic() - checkpointed >= self._job.settings.checkpoint_s:
                saved = self._checkpoint(lease, cohort)
                checkpointed = time.monotonic()
            if ray.get(self._queue.heartbeat.remote(self._name, lease.token, saved)) or not cohort.runs:
                continue
            if not self._take_again(lease, cohort):
                self._event("lease lost", lease, step=progress.step)
                return False
        return True

    def _take_again(self, lease: Lease, cohort: Cohort) -> bool:
        """Register with a queue that was started again and goes on with those runs that it leaves to this lane."""
        run_ids = [run.id for run in cohort.runs]
        kept = ray.get(self._queue.reregister.remote(self._name, run_ids, lease.token))
        for run_id in set(run_ids) - set(kept):
            cohort.drop(run_id)
        return bool(kept)

    def _record(self, ended: Ended, lease: Lease, task: Task, began: datetime) -> None:
        """Weights first, then the record, then the queue, then the checkpoints go: a kill in between loses nothing."""
        run = ended.run
        record = Record(
            run=run,
            result=ended.result,
            macs=count_macs(run.student, task.resolution, task.num_classes),
            params=count_params(run.student, task.num_classes),
            num_classes=task.num_classes,
            resolution=task.resolution,
            provenance=self._provenance(ended, lease, began),
            weights=None if ended.weights is None else put_weights(self._store, ended.weights),
        )
        self._database.add(record)
        status = ended.result.status
        if not ray.get(self._queue.complete.remote(run.id, lease.token, status)):
            diverged = {run.id} if status is Status.DIVERGED else set()
            ray.get(self._queue.recorded.remote({run.id}, diverged))
        remove_checkpoints(self._store, run.id)
        self._event("ended", lease, run=run.id, status=str(status), best_accuracy_pct=ended.result.best_accuracy_pct)

    def _provenance(self, ended: Ended, lease: Lease, began: datetime) -> Provenance:
        settings = self._job.settings
        return Provenance(
            started_at=began.isoformat(timespec="seconds"),
            seconds=round(ended.seconds, 3),
            incarnation=lease.token.incarnation,
            attempt=lease.token.attempt,
            lane=self._name,
            device=device_name(self._device),
            threads=settings.threads,
            memory_format=settings.memory_format,
            code_version=code_version(),
            versions=versions(),
        )

    def _checkpoint(self, lease: Lease, cohort: Cohort) -> dict[str, Position]:
        for run in cohort.runs:
            put_checkpoint(self._store, run.id, lease.token, cohort.state(run.id))
        self._events.flush()
        return {run.id: cohort.position for run in cohort.runs}

    def _event(self, kind: str, lease: Lease, **fields: Any) -> None:  # noqa: ANN401 - any JSON type
        self._events.emit(kind, token=str(lease.token), **fields)

    def _load_pack(self, task: Task) -> Pack:
        if self._pack is None or self._pack.id != task.source:
            self._pack = None  # before the next one is there, so that the cache may remove it
            loaded = load_pack(self._store, task.source, open_cache(self._job.settings))
            if loaded.problem:
                self._events.emit("cache", pack=task.source, reason=loaded.problem)
            self._pack = loaded.pack
        return self._pack

    def _without_record(self, lease: Lease) -> tuple[Run, ...]:
        """The runs that are really left: a lane that died between record and queue left some that are not."""
        recorded = {run.id: record for run in lease.runs if (record := self._database.get(run.id)) is not None}
        if recorded:
            diverged = {run_id for run_id, record in recorded.items() if record.result.status is Status.DIVERGED}
            ray.get(self._queue.recorded.remote(set(recorded), diverged))
        return tuple(run for run in lease.runs if run.id not in recorded)

    def _load_states(self, lease: Lease, runs: tuple[Run, ...]) -> dict[str, bytes]:
        """The checkpoints of those runs that have one; one that is gone costs steps, never a result."""
        states = {}
        for run in runs:
            if run.id in lease.saved:
                with suppress(ObjectNotFoundError):
                    states[run.id] = get_checkpoint(self._store, run.id, lease.saved[run.id].token)
        return states


def _failure_kind(error: Exception) -> FailureKind:
    if isinstance(error, StoreError):
        return FailureKind.STORE
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return FailureKind.OUT_OF_MEMORY if is_memory else FailureKind.ERROR
