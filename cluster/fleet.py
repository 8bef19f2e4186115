"""As many lanes as the work needs, on devices as they come.

A lane is a long-lived Ray Train run of one worker, which leases runs from the queue until none is left. One device is the
failure domain: a lane that dies costs its own cohort, from its last checkpoints.

    wanted: one lane per cohort that is under way or could start, between lanes.min and lanes.num
    missing -> ticket (a placement group: a device, and a place for a driver) -> lane starts -> lane leases -> lane ends

Tickets ask for devices before anything is started on them, because a Train run whose device does not come gives up and
tries again every minute. They are placement groups and no requests to the autoscaler's SDK, because those outlive a
driver that is killed and would hold its GPUs for ever. While lanes start no ticket is held, for it could take the device
that a lane is about to take.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_preemption_info
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util import placement_group, placement_group_table, remove_placement_group

from cluster.lane import Lane, LaneJob
from cluster.queue import QueueStats
from cluster.runtime import NAMESPACE, cancel_running, driver_options, driver_place
from cluster.settings import LaneConfig
from dass.errors import ClusterError

START_S = 120.0  # after which a lane that has not come to the queue is no longer waited for


@dataclass
class _Driven:
    """A lane that was started: the task that drives it, and what the queue knew before of the lane, and of the plan."""

    outcome: Any
    started: float
    lives: int
    finished: int
    has_come: bool = False


@dataclass
class Fleet:
    """The lanes of one plan; `step` again and again, and `close` at the end.

    Each lane is driven by a task beside the driver and not by a thread in it: Ray ends a process at once, without a word,
    when a thread of it calls Ray after its shutdown, as one that waits in fit() does when the user interrupts.
    """

    job: LaneJob
    causes: list[str] = field(default_factory=list)  # of the lanes that failed, in that order
    _lanes: dict[str, _Driven] = field(default_factory=dict)
    _tickets: list[Any] = field(default_factory=list)
    # restarts of the lanes of a name since a run ended last: more than Ray Train's own are not tried
    _restarts: Counter[str] = field(default_factory=Counter)
    _finished: int = 0

    @property
    def note(self) -> str:
        """What is waited for, in words; nothing when every lane works."""
        starting = sum(not lane.has_come for lane in self._lanes.values())
        waits = [(starting, "starting"), (len(self._tickets), "waiting for a device")]
        return ", ".join(f"{num} {'lane' if num == 1 else 'lanes'} {what}" for num, what in waits if num)

    def step(self, stats: QueueStats, now: float) -> bool:
        """Start and end what has to be; False when no lane is left and none is wanted.

        now: seconds of one monotonic clock.

        Raises:
            ClusterError: as many lanes as are wanted failed, each more often than Ray Train may restart it, and no run ended
                meanwhile.
        """
        self._look(stats)
        settings = self.job.settings
        wanted = min(settings.num, max(settings.min, stats.cohorts)) if stats.left else 0
        closed = {name for name, num in self._restarts.items() if num > settings.max_failures}
        names = [name for index in range(settings.num) if (name := f"lane{index}") not in self._lanes.keys() | closed]
        missing = min(max(0, wanted - len(self._lanes)), len(names))
        if wanted and not self._lanes and len(closed) >= wanted:
            raise ClusterError(
                f"a lane must end by itself within {settings.max_failures} restarts, got {self.causes[-1]}; cure the cause, "
                "then submit again: what is finished is kept"
            )
        is_starting = any(not lane.has_come and now - lane.started < START_S for lane in self._lanes.values())
        ready = sum(placement_group_table(ticket)["state"] == "CREATED" for ticket in self._tickets)
        if ready:
            self._drop_tickets(0)
            for name in names[: min(ready, missing)]:
                self._start(name, stats, now)
        elif is_starting:
            self._drop_tickets(0)
        else:
            self._drop_tickets(missing)
            while len(self._tickets) < missing:
                self._tickets.append(placement_group(places_of(settings)))
        return bool(self._lanes or self._tickets or missing)

    def close(self) -> None:
        """End the lanes that still run, and ask for nothing any more."""
        self._drop_tickets(0)
        cancel_running([lane.outcome for lane in self._lanes.values()])

    def _look(self, stats: QueueStats) -> None:
        """Who has come, who has ended, and whether those that failed may start again: when a run has ended since."""
        if stats.finished > self._finished:
            self._finished = stats.finished
            self._restarts.clear()
        outcomes = {lane.outcome: name for name, lane in self._lanes.items()}
        ended, _ = ray.wait(list(outcomes), num_returns=len(outcomes), timeout=0) if outcomes else ([], [])
        for outcome in ended:
            name = outcomes[outcome]
            lane = self._lanes.pop(name)
            if (failure := _failure(outcome)) is not None:
                self.causes.append(failure.cause)
                if stats.finished == lane.finished:
                    self._restarts[name] += 1 if failure.is_of_driver else self.job.settings.max_failures + 1
        for name, lane in self._lanes.items():
            lane.has_come = lane.has_come or stats.lives.get(name, 0) > lane.lives

    def _start(self, name: str, stats: QueueStats, now: float) -> None:
        drive = ray.remote(num_cpus=0, max_retries=0, **driver_options())(_drive_lane)
        stays = int(name.removeprefix("lane")) < self.job.settings.min
        outcome = drive.remote(name, asdict(self.job), stays)
        self._lanes[name] = _Driven(outcome, now, stats.lives.get(name, 0), stats.finished)

    def _drop_tickets(self, kept: int) -> None:
        while len(self._tickets) > kept:
            remove_placement_group(self._tickets.pop())


def resources_of(settings: LaneConfig) -> dict[str, float]:
    """What one lane holds, as Ray counts it."""
    wanted = {"CPU": settings.cpus, "GPU": settings.gpus, "memory": settings.memory_gb * 1e9}
    return {name: amount for name, amount in wanted.items() if amount}


def places_of(settings: LaneConfig) -> list[dict[str, float]]:
    """What must be there before a lane starts: else its device would wait, and cost, until its driver has a node."""
    return [place for place in (resources_of(settings), driver_place()) if place]


def _drive_lane(lane: str, job: dict[str, Any], stays: bool) -> str | None:
    """Drive one Ray Train run to its end; what ended it, or None when its work was done."""
    settings = LaneJob.from_dict(job).settings
    with tempfile.TemporaryDirectory(prefix="dass-train-", ignore_cleanup_errors=True) as storage:
        trainer = DataParallelTrainer(
            _train_lane,
            train_loop_config={"lane": lane, "job": job, "stays": stays},
            scaling_config=ScalingConfig(
                num_workers=1, use_gpu=settings.gpus > 0, resources_per_worker=resources_of(settings)
            ),
            run_config=RunConfig(
                name=lane,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=settings.max_failures, max_preemption_failures=-1),
            ),
        )
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001 - whatever ended the lane is told by the driver
            return _cause(error)
    return None


def _train_lane(config: Mapping[str, Any]) -> None:
    """Ray Train's train function: it runs in the lane's own process."""
    job = LaneJob.from_dict(config["job"])
    queue = ray.get_actor(job.queue, namespace=NAMESPACE)
    Lane(config["lane"], job, queue).work(stays=config["stays"], is_preempted=lambda: get_preemption_info() is not None)


@dataclass(frozen=True)
class _Failure:
    """What ended a lane. is_of_driver: the task that drove it is lost, its node say, and no restart was tried."""

    cause: str
    is_of_driver: bool


def _failure(lane: Any) -> _Failure | None:  # noqa: ANN401 - Ray's references have no static type
    """What `_drive_lane` returned, or that it could not."""
    try:
        cause = cast("str | None", ray.get(lane))
    except RayError as error:
        return _Failure(_cause(error), is_of_driver=True)
    return None if cause is None else _Failure(cause, is_of_driver=False)


def _cause(error: Exception) -> str:
    """What the worker raised, without Ray's wrapping and tracebacks."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[-1] if failures else str(cause)
