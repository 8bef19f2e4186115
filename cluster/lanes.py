"""Lanes: long-lived Ray Train runs of one worker each, which lease runs from the queue until none is left.

One device is the failure domain: a lane that dies costs its own cohort, from its last checkpoints. Ray Train restarts
the lane and reports its metrics; what is done, the store knows. A lane holds nothing that another one needs.
"""

import tempfile
import threading
import time
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.checkpoints import find_saved
from cluster.lane import Lane, LaneJob
from cluster.objects import open_store
from cluster.plan import Plan
from cluster.queue import QueueStats, remote_queue
from cluster.runtime import NAMESPACE
from cluster.settings import LaneConfig
from dass.errors import ClusterError

POLL_S = 0.5


def run_plan(
    store_url: str, plan: Plan, settings: LaneConfig, *, keep_weights: bool = False
) -> Generator[QueueStats, None, None]:
    """Train the plan's runs that have no record; yields where they stand, until the lanes end.

    A lane takes seconds to start, so there are at most `settings.num`, and no more than whole cohorts of work.
    Closing the iterator early takes the queue away; lanes then end, and a later call goes on from the checkpoints.
    Runs that failed for their own reasons are in the last stats; they have no record and are tried again next time.

    Raises:
        ClusterError: every lane failed, more often than Ray Train was allowed to restart it.
    """
    name = f"queue-{plan.id}-{uuid.uuid4().hex[:8]}"
    with _queue(name, store_url, plan, settings) as queue, tempfile.TemporaryDirectory(prefix="dass-train-") as storage:
        job = LaneJob(store_url, name, settings, keep_weights)
        stats: QueueStats = ray.get(queue.stats.remote())
        num_pending = stats.planned - stats.finished
        num_lanes = min(settings.num, max(1, num_pending // settings.cohort_size))
        lanes = [_LaneThread(f"lane{index}", job, storage) for index in range(num_lanes)]
        for lane in lanes:
            lane.start()
        while any(lane.is_alive() for lane in lanes):
            yield ray.get(queue.stats.remote())
            lanes[0].join(POLL_S)
            time.sleep(0 if lanes[0].is_alive() else POLL_S)
        yield ray.get(queue.stats.remote())
        errors = [lane.error for lane in lanes if lane.error is not None]
        if len(errors) == len(lanes):
            raise ClusterError(
                f"a lane must end by itself within {settings.max_failures} restarts, got {_cause(errors[0])}; cure the cause, "
                "then submit again: what is finished is kept"
            ) from errors[0]


class _LaneThread(threading.Thread):
    """Drives one Ray Train run; fit() blocks, so every lane has a thread of the driver."""

    def __init__(self, lane: str, job: LaneJob, storage: str) -> None:
        super().__init__(name=lane, daemon=True)
        self.error: Exception | None = None
        self._trainer = DataParallelTrainer(
            _train_lane,
            train_loop_config={"lane": lane, "job": asdict(job)},
            scaling_config=ScalingConfig(
                num_workers=1,
                use_gpu=job.settings.gpus > 0,
                resources_per_worker={"CPU": job.settings.cpus}
                | ({"GPU": job.settings.gpus} if job.settings.gpus else {}),
            ),
            run_config=RunConfig(
                name=lane,
                storage_path=str(Path(storage)),
                failure_config=FailureConfig(max_failures=job.settings.max_failures),
            ),
        )

    def run(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - whatever ended the lane is told by the driver, not lost in a thread
            self.error = error


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
    """The queue's actor, pinned to the node of the driver, for the time of a `with` block."""
    pinned = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    saved = find_saved(open_store(store_url), [run.id for run in plan.runs])
    actor = (
        remote_queue()
        .options(name=name, namespace=NAMESPACE, scheduling_strategy=pinned)
        .remote(store_url, plan.runs, lease_s=settings.lease_s, saved=saved)
    )
    try:
        yield actor
    finally:
        ray.kill(actor)
