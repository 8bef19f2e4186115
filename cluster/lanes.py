"""Lanes: long-lived Ray Train runs of one worker each, which lease runs from the queue until none is left.

One device is the failure domain: a lane that dies costs its own cohort, from its last checkpoints. Ray Train restarts
the lane and reports its metrics; what is done, the store knows. A lane holds nothing that another one needs.
"""

import tempfile
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

import ray
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from cluster.database import RunDatabase
from cluster.lane import Lane, LaneJob
from cluster.objects import open_store
from cluster.plan import Plan, cut_cohorts, pending
from cluster.queue import QueueStats, remote_queue
from cluster.runtime import NAMESPACE, cancel_running, check_room, on_this_node
from cluster.settings import LaneConfig
from cluster.sizing import Sizing
from dass.errors import ClusterError
from dass.records import Run

POLL_S = 0.5


def run_plan(
    store_url: str, plan: Plan, settings: LaneConfig, *, keep_weights: bool = False
) -> Generator[QueueStats, None, None]:
    """Train the plan's runs that have no record; yields where they stand, until the lanes end.

    Closing the iterator early ends queue and lanes; a later call goes on from the checkpoints.
    Runs that failed for their own reasons are in the last stats; they have no record and are tried again next time.

    Raises:
        ConfigError: no lane of this shape fits on this machine.
        ClusterError: every lane failed, more often than Ray Train was allowed to restart it, or the queue cannot start.
    """
    check_room(settings)
    name = f"queue-{plan.id}-{uuid.uuid4().hex[:8]}"
    job = LaneJob(store_url, name, settings, keep_weights)
    left = pending(plan, RunDatabase(open_store(store_url)).finished_ids())
    with _queue(name, store_url, plan, settings) as queue, _lanes(job, lanes_for(left, settings)) as lanes:
        running = lanes
        while running:
            yield ray.get(queue.stats.remote())
            _, running = ray.wait(running, num_returns=len(running), timeout=POLL_S)
        yield ray.get(queue.stats.remote())
        causes = [cause for lane in lanes if (cause := _outcome(lane)) is not None]
        if len(causes) == len(lanes):
            raise ClusterError(
                f"a lane must end by itself within {settings.max_failures} restarts, got {causes[0]}; cure the cause, "
                "then submit again: what is finished is kept"
            )


def lanes_for(runs: Sequence[Run], settings: LaneConfig) -> int:
    """How many lanes to start for these runs: a start takes seconds, so no more than there are cohorts of work."""
    return min(settings.num, max(1, len(cut_cohorts(runs, {}, Sizing.first(settings.cohort_size).size))))


@contextmanager
def _lanes(job: LaneJob, num: int) -> Iterator[list[Any]]:
    """References to the outcomes of `num` lanes; those that still run at the end of the `with` block are ended.

    Each is driven by a task beside the driver and not by a thread in it: Ray ends a process at once, without a word,
    when a thread of it calls Ray after its shutdown, as one that waits in fit() does when the user interrupts.
    """
    with tempfile.TemporaryDirectory(
        prefix="dass-train-", ignore_cleanup_errors=True
    ) as storage:  # lanes may still write
        drive = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(_drive_lane)
        lanes = [drive.remote(f"lane{index}", asdict(job), storage) for index in range(num)]
        try:
            yield lanes
        finally:
            cancel_running(lanes)


def _drive_lane(lane: str, job: dict[str, Any], storage: str) -> str | None:
    """Drive one Ray Train run to its end; what ended it, or None when its work was done."""
    settings = LaneJob.from_dict(job).settings
    trainer = DataParallelTrainer(
        _train_lane,
        train_loop_config={"lane": lane, "job": job},
        scaling_config=ScalingConfig(
            num_workers=1,
            use_gpu=settings.gpus > 0,
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": settings.gpus} if settings.gpus else {}),
        ),
        run_config=RunConfig(
            name=lane, storage_path=storage, failure_config=FailureConfig(max_failures=settings.max_failures)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - whatever ended the lane is told by the driver
        return _cause(error)
    return None


def _outcome(lane: Any) -> str | None:  # noqa: ANN401 - Ray's references have no static type
    """What `_drive_lane` returned, or that it could not."""
    try:
        return cast("str | None", ray.get(lane))
    except RayError as error:
        return _cause(error)


def _cause(error: Exception) -> str:
    """What the worker raised, without Ray's wrapping and tracebacks."""
    failures = getattr(error, "worker_failures", {})
    cause = next(iter(failures.values()), error)
    return f"{type(cause).__name__}: {cause}".strip().splitlines()[-1] if failures else str(cause)


def _train_lane(config: dict[str, Any]) -> None:
    """Ray Train's train function: it runs in the lane's own process."""
    job = LaneJob.from_dict(config["job"])
    Lane(config["lane"], job, ray.get_actor(job.queue, namespace=NAMESPACE)).work()


@contextmanager
def _queue(name: str, store_url: str, plan: Plan, settings: LaneConfig) -> Iterator[Any]:
    """The queue's actor, for the time of a `with` block."""
    actor = (
        remote_queue()
        .options(name=name, namespace=NAMESPACE, scheduling_strategy=on_this_node())
        .remote(store_url, plan.runs, lease_s=settings.lease_s)
    )
    try:
        ray.get(actor.stats.remote())
    except RayActorError as error:
        raise ClusterError(
            f"the queue must start, got {str(error).strip().splitlines()[-1]}; cure the cause, then submit again"
        ) from error
    try:
        yield actor
    finally:
        ray.kill(actor)
