"""One lane's work: lease a cohort, train it, leave records; nothing here knows how the lane was started.

    task and teacher from the store -> saved states -> cohorts by position and size -> train

and at each yield: the records of the runs that ended, a heartbeat, and now and then a checkpoint of every run under the
lease's token. A lease that is lost is dropped at once: somebody else trains those runs now. A cohort that breaks the
memory goes on from its checkpoints in halves, under the same lease.
"""

import gc
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import ray
import torch

from cluster import s3_observer
from cluster.cache import load_pack, open_cache
from cluster.checkpoints import Saved, find_saved, get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.database import RunDatabase
from cluster.documents import get_task
from cluster.events import EventLog
from cluster.heartbeat import Heartbeat
from cluster.lane_meter import LaneMeter
from cluster.lane_reports import LaneReporter
from cluster.memory import MemoryMeter, bound_memory, share_of
from cluster.metrics import CHECKPOINT_SECONDS, S3Metrics
from cluster.objects import open_store
from cluster.parallel import each
from cluster.plan import FailureKind, cut_cohorts
from cluster.queue import Lease, LeaseState
from cluster.runtime import code_version, compute_on, device_name, versions
from cluster.schema import claim_schema
from cluster.settings import LaneConfig
from cluster.sizing import Measured, Pace, Sizing
from cluster.teachers import load_teacher
from cluster.weights import put_weights
from dass.allocator import keep_freed_memory
from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.cohort import Cohort, Ended, Position, state_position
from dass.kd.logits import TeacherLogits
from dass.kd.teacher import Teacher
from dass.memory import is_out_of_memory
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


@dataclass(frozen=True)
class _Work:
    """A lease under way: what its runs share, those that are left, and their checkpoints, both by run id."""

    lease: Lease
    task: Task
    data: ResidentBatches
    teacher: Teacher | None
    heartbeat: Heartbeat
    left: dict[str, Run]
    saved: dict[str, Saved]

    @property
    def kind(self) -> tuple[str, int, bool]:
        """Work of one kind takes equal memory and time, so it shares one size of cohorts."""
        run = next(iter(self.lease.runs))
        return run.recipe.id, self.task.resolution, run.teacher is None


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
        self._meter = LaneMeter(name)
        s3_observer.observe(S3Metrics())
        self._store = open_store(job.store_url)
        claim_schema(self._store)  # a lane may start long after its driver: a newer version may own the store by now
        self._database = RunDatabase(self._store)
        self._events = EventLog(self._store, name)
        self._device = job.settings.device
        reports = open_store(
            job.store_url, job.settings.report_s
        )  # soon gives up: the next report says the same and more
        self._reporter = LaneReporter(reports, name, job.queue, self._device, job.settings)
        self._logits = TeacherLogits()  # the cohorts of one task ask the teacher once
        self._pack: Pack | None = None
        self._step: int | None = None  # of the cohort under training
        self._sizings: dict[tuple[str, int, bool], Sizing] = {}
        self._is_preempted: Callable[[], bool] = lambda: False
        self._last = Sizing.first(job.settings.cohort_size)  # what comes next is most likely of the last kind

    def work(self, *, stays: bool = True, is_preempted: Callable[[], bool] = lambda: False) -> None:
        """Lease and train until nothing is left.

        Args:
            stays: whether to wait for work as long as any may come; else the lane ends after `idle_s` without.
            is_preempted: whether the machine is about to go; asked between two yields. Then the runs are checkpointed and
                given back, and the lane ends, so that another one takes its place elsewhere.

        Raises:
            StoreError: the store fails; Ray Train starts the lane again, and the runs go on from their checkpoints.
        """
        keep_freed_memory()
        compute_on(self._job.settings.threads)
        bound_memory(self._device, share_of(self._job.settings))
        self._is_preempted = is_preempted
        ray.get(self._queue.arrive.remote(self._name))
        with self._events, self._reporter:
            self._events.emit(
                "lane started", device=device_name(self._device), code_version=code_version(), versions=versions()
            )
            self._events.flush()  # the only sign of a lane that dies in its first cohort
            try:
                reason = self._lease_all(stays=stays)
            except Exception as error:
                self._events.emit("lane ended", reason=_reason(error))
                raise
            self._meter.spent("other")
            self._events.emit("lane ended", reason=reason)

    def _lease_all(self, *, stays: bool) -> str:
        """Lease and train; why there is nothing more to do here."""
        busy_at = time.monotonic()
        while stays or time.monotonic() - busy_at < self._job.settings.idle_s:
            if self._is_preempted():
                return "the machine is about to go"
            reply = ray.get(self._queue.lease.remote(self._name, self._last.size, uuid.uuid4().hex))
            if reply.state is LeaseState.EMPTY:
                return "nothing is left"
            if reply.state is LeaseState.WAIT:
                self._reporter.wait()
                time.sleep(WAIT_S)
                self._meter.spent("waiting")
            else:
                self._train_lease(reply.lease)
                busy_at = time.monotonic()
        return f"no work for {self._job.settings.idle_s:g} s"

    def _train_lease(self, lease: Lease) -> None:
        """Train the runs of a lease; when they fail the queue decides, and what is no fault of a run's own ends the lane.

        After an error of the accelerator its process can do no more work, after one of the store no lane can.
        """
        self._step = None
        try:
            settings = self._job.settings
            with Heartbeat(self._queue, self._name, lease.token, settings.lease_s, settings.hang_s) as heartbeat:
                if runs := self._without_record(lease):
                    self._train_runs(lease, runs, heartbeat)
        except (RuntimeError, ValueError, MemoryError, StoreError) as error:
            self._give_back(lease, lease.runs, _failure_kind(error), _reason(error))
            if isinstance(error, StoreError | torch.AcceleratorError):
                raise

    def _give_back(self, lease: Lease, runs: Sequence[Run], kind: FailureKind, reason: str) -> None:
        """Let the queue decide what follows for those of the runs that the lease still holds."""
        decisions = ray.get(self._queue.fail.remote([run.id for run in runs], lease.token, kind, reason))
        event = "returned" if kind is FailureKind.RETURNED else "failed"
        for run_id, decision in decisions.items():
            self._event(event, lease, run=run_id, failure=str(kind), reason=reason, decision=str(decision))
        if kind is not FailureKind.STORE:  # of which the end of the lane will tell, when it can
            self._events.flush()

    def _train_runs(self, lease: Lease, runs: tuple[Run, ...], heartbeat: Heartbeat) -> None:
        """Train runs of one task and teacher, those that stand at one position together, as many as the memory bears."""
        task = get_task(self._store, runs[0].task)
        self._reporter.hold(lease.token, task.name, [run.id for run in runs])
        data = ResidentBatches.of(self._load_pack(task), task, self._device)
        teacher = None if runs[0].teacher is None else load_teacher(self._database, runs[0].teacher, task.id)
        left = {run.id: run for run in runs}
        work = _Work(lease, task, data, teacher, heartbeat, left, dict(lease.saved))
        self._last = self._sizings.setdefault(work.kind, Sizing.first(self._job.settings.cohort_size))
        while work.left:
            together, states = self._next_cohort(work)
            if broken := self._train_unless_broken(work, together, states):
                self._after_out_of_memory(work, together, broken)

    def _next_cohort(self, work: _Work) -> tuple[tuple[Run, ...], dict[str, bytes]]:
        """The runs to train next and the states of those that have one; the states of the others are left in the store.

        The queue may not know of the last checkpoint of a lane that died, or know one that is gone: then cut anew.
        """
        while True:
            positions = {run_id: saved.position for run_id, saved in work.saved.items()}
            together = cut_cohorts(tuple(work.left.values()), positions, self._last.size)[0]
            known = {run.id: work.saved.pop(run.id) for run in together if run.id in work.saved}
            states = self._load_states(known)
            found = {run_id: Saved(known[run_id].token, state_position(states[run_id])[1]) for run_id in states}
            work.saved.update(found)
            if found == known:
                return together, states

    def _train_unless_broken(self, work: _Work, runs: tuple[Run, ...], states: dict[str, bytes]) -> str:
        """Train a cohort; the reason when it breaks the memory, and by then nothing of it is held any more."""
        try:
            self._train_cohort(work, runs, states)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _reason(error)
        return ""

    def _after_out_of_memory(self, work: _Work, runs: tuple[Run, ...], reason: str) -> None:
        """Halve the cohorts of this kind of work; a run that breaks the memory alone goes back to the queue."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        broken = [run for run in runs if run.id in work.left]
        if len(broken) > 1:
            self._last = self._sizings[work.kind] = self._last.after_out_of_memory(len(broken))
            sizes = {"from": len(broken), "to": self._last.size}
            self._event("cohort halved", work.lease, runs=[run.id for run in broken], reason=reason, **sizes)
            work.saved.update(find_saved(self._store, work.left))
        elif broken:
            self._give_back(work.lease, broken, FailureKind.OUT_OF_MEMORY, reason)
            work.left.pop(broken[0].id)

    def _train_cohort(self, work: _Work, runs: tuple[Run, ...], states: dict[str, bytes]) -> None:
        """Train to the end or until the lease is lost; what is done or lost leaves `work.left`. Uses the states up."""
        began = datetime.now(UTC)
        checkpointed = time.monotonic()
        self._step = None
        self._event("cohort", work.lease, runs=[run.id for run in runs], size=len(runs), task=work.task.name)
        memory, pace = MemoryMeter(self._device, share_of(self._job.settings)), Pace()
        cohort = Cohort(
            runs,
            work.data,
            work.teacher,
            # taken out: the cohort keeps a copy of its own, and only for a moment there are two
            states={run_id: states.pop(run_id) for run_id in list(states)},
            keep_weights=self._job.keep_weights or work.teacher is None,
            yield_every=self._job.settings.yield_every,
            memory_format=self._job.settings.layout,
            logits=self._logits,
        )
        self._reporter.begin(cohort.step, cohort.images_per_step)
        for progress in self._meter.train(cohort, work.task, memory):
            work.heartbeat.note_life()
            self._step = progress.step
            pace.note(progress.step, len(cohort.runs), time.perf_counter())
            for ended in progress.ended:
                self._record(ended, work.lease, work.task, began)
                work.left.pop(ended.run.id)
            self._reporter.note(progress, len(cohort.runs), list(work.left))
            saved: dict[str, Position] = {}
            if time.monotonic() - checkpointed >= self._job.settings.checkpoint_s:
                saved = self._checkpoint(work.lease, cohort)
                checkpointed = time.monotonic()
            is_held = ray.get(self._queue.heartbeat.remote(self._name, work.lease.token, saved))
            if not is_held and work.left:
                self._take_again(work, cohort)
                ray.get(self._queue.heartbeat.remote(self._name, work.lease.token, saved))
            if cohort.runs and self._is_preempted():
                self._leave(work, cohort)
            if not cohort.runs:
                break
        self._choose_size(work, Measured(len(runs), pace.rate, **asdict(memory.read())))

    def _choose_size(self, work: _Work, cohort: Measured) -> None:
        self._last = self._sizings[work.kind] = self._last.after(cohort)
        choice = {"size": self._last.size, "reason": self._last.reason}
        self._event("cohort size", work.lease, **choice, measured=asdict(cohort))

    def _take_again(self, work: _Work, cohort: Cohort) -> None:
        """Register with a queue that was started again and go on with those runs that it leaves to this lane."""
        kept = ray.get(self._queue.reregister.remote(self._name, list(work.left), work.lease.token))
        lost = sorted(work.left.keys() - set(kept))
        for run_id in lost:
            run = work.left.pop(run_id)
            if run in cohort.runs:
                cohort.drop(run_id)
        self._event("lease lost" if lost else "lease kept", work.lease, runs=lost or list(kept))

    def _leave(self, work: _Work, cohort: Cohort) -> None:
        """Save what is trained here, and hand back all that is leased."""
        saved = self._checkpoint(work.lease, cohort)
        ray.get(self._queue.heartbeat.remote(self._name, work.lease.token, saved))
        self._give_back(work.lease, list(work.left.values()), FailureKind.RETURNED, "the machine is about to go")
        for run in tuple(cohort.runs):
            cohort.drop(run.id)
        work.left.clear()

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
        status = ended.result.status
        if self._database.add(record):
            self._meter.ended(task.name, status)
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
        def save(run: Run) -> None:
            put_checkpoint(self._store, run.id, lease.token, cohort.state(run.id))

        with CHECKPOINT_SECONDS.timed():
            list(each(self._store, save, cohort.runs))
        self._events.flush()
        return {run.id: cohort.position for run in cohort.runs}

    def _event(self, kind: str, lease: Lease, **fields: Any) -> None:  # noqa: ANN401 - any JSON type
        step = {} if self._step is None else {"step": self._step}
        self._events.emit(kind, token=str(lease.token), **step, **fields)

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
        recorded = {record.run.id: record for record in self._database.scan({run.id for run in lease.runs})}
        if recorded:
            diverged = {run_id for run_id, record in recorded.items() if record.result.status is Status.DIVERGED}
            ray.get(self._queue.recorded.remote(set(recorded), diverged))
        return tuple(run for run in lease.runs if run.id not in recorded)

    def _load_states(self, saved: Mapping[str, Saved]) -> dict[str, bytes]:
        """Checkpoints by run id; one that is gone costs steps, never a result."""
        states = {}
        for run_id, checkpoint in saved.items():
            with suppress(ObjectNotFoundError):
                states[run_id] = get_checkpoint(self._store, run_id, checkpoint.token)
        return states


def _failure_kind(error: Exception) -> FailureKind:
    if isinstance(error, StoreError):
        return FailureKind.STORE
    return FailureKind.OUT_OF_MEMORY if is_out_of_memory(error) else FailureKind.ERROR


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
