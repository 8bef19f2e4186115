"""Train what a plan still lacks: the driver of a queue and its fleet, or an onlooker of one that already works.

What is done, the store knows; queue, fleet and this driver may be lost at any time.
"""

import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util import list_named_actors

from cluster.database import RunDatabase
from cluster.documents import get_tasks
from cluster.fleet import Fleet
from cluster.heartbeat import BEATS_PER_LEASE
from cluster.lane import LaneJob
from cluster.objects import ObjectStore, open_store
from cluster.owner import Ownership
from cluster.plan import Plan, work_of
from cluster.queue import QueueStats
from cluster.queue_actor import remote_queue
from cluster.runtime import NAMESPACE, check_room, on_this_node
from cluster.settings import LaneConfig
from dass.errors import ClusterError
from dass.records import content_id

POLL_S = 0.5


def run_plan(
    store_url: str,
    plan: Plan,
    settings: LaneConfig,
    *,
    keep_weights: bool = False,
    priority_of: Mapping[str, int] | None = None,
    takeover: bool = False,
) -> Generator[QueueStats, None, None]:
    """Train the plan's runs that have no record; yields where they stand, until nothing is left.

    Closing the iterator early ends queue and lanes; a later call goes on from the checkpoints. A second call on one
    cluster looks on, and goes on itself when the first one dies; on another cluster it is refused.
    Runs that failed for their own reasons are in the last stats; they have no record and are tried again next time.

    Args:
        store_url: where tasks, packs and teachers are, and where the records go.
        plan: the runs.
        settings: the lanes.
        keep_weights: whether the students' weights are kept; a teacher's always are.
        priority_of: by task id, see `cluster.plan.Startable`.
        takeover: whether to go on although another job may still drive the same plan, which ends it.

    Raises:
        ConfigError: no lane of this shape fits on this machine.
        ClusterError: every lane failed, more often than Ray Train was allowed to restart it, or the queue cannot start, or
            another job drives this plan.
    """
    check_room(settings)
    store = open_store(store_url)
    work = f"queue-{content_id([store.url, plan.id])}-"
    owner = Ownership(store, plan.id, settings.lease_s / BEATS_PER_LEASE)
    name = work + owner.id  # lanes of another driver do not take ours for theirs
    if takeover:
        yield from _overtake(owner, work, 2 * settings.lease_s / BEATS_PER_LEASE)
    while (queue := _find(work)) is not None:
        yield from _look_on(queue, "another job on this cluster trains them")
        if not RunDatabase(store).pending(plan.runs):
            return
    for other in owner.claim(takeover=takeover):
        yield _nothing_known(plan, f"waiting to see whether another job lives ({other})")
    try:
        job = LaneJob(store_url, name, settings, keep_weights)
        with _queue(job, plan, store, priority_of or {}) as queue:
            fleet = Fleet(job)
            try:
                while True:
                    stats = ray.get(queue.stats.remote())
                    is_busy = fleet.step(stats, time.monotonic())
                    yield replace(stats, note=fleet.note)
                    if not is_busy:
                        return
                    owner.keep()
                    time.sleep(POLL_S)
            finally:
                fleet.close()
    finally:
        owner.end()


def _look_on(queue: Any, note: str, for_s: float = math.inf) -> Iterator[QueueStats]:  # noqa: ANN401 - a Ray handle
    """Where the runs of another driver's queue stand, until it is gone, or for some seconds."""
    until = time.monotonic() + for_s
    while time.monotonic() < until:
        try:
            stats = ray.get(queue.stats.remote())
        except RayActorError:
            return
        yield replace(stats, note=note)
        time.sleep(POLL_S)


def _overtake(owner: Ownership, work: str, patience_s: float) -> Iterator[QueueStats]:
    """Take the plan, and end the queue of another driver on this cluster if that one does not in time; its lanes follow."""
    if (queue := _find(work)) is not None:
        list(owner.claim(takeover=True))  # at its next sign of life that driver sees it
        yield from _look_on(queue, "another job on this cluster is asked to end", patience_s)
        ray.kill(queue)


def _nothing_known(plan: Plan, note: str) -> QueueStats:
    return QueueStats(len(plan.runs), 0, 0, len(plan.runs), 0, {}, note=note)


def _find(work: str) -> Any:  # noqa: ANN401 - a Ray handle
    """The queue of a driver on this cluster that has the same work, or None."""
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith(work):
            with suppress(ValueError):  # gone meanwhile
                return ray.get_actor(actor["name"], namespace=NAMESPACE)
    return None


@contextmanager
def _queue(job: LaneJob, plan: Plan, store: ObjectStore, priority_of: Mapping[str, int]) -> Iterator[Any]:
    """The queue's actor, for the time of a `with` block."""
    tasks = get_tasks(store, (run.task for run in plan.runs))
    actor = (
        remote_queue()
        .options(name=job.queue, namespace=NAMESPACE, scheduling_strategy=on_this_node())
        .remote(
            job.store_url,
            plan.runs,
            grace_s=job.settings.lease_s,
            lease_s=job.settings.lease_s,
            work_of=work_of(plan.runs, tasks),
            priority_of=priority_of,
        )
    )
    try:
        ray.get(actor.stats.remote())
        yield actor
    except RayActorError as error:  # of its constructor, at first or when Ray started it again
        raise ClusterError(
            f"the queue must start, got {str(error).strip().splitlines()[-1]}; cure the cause, then submit again: what is "
            "finished is kept"
        ) from error
    finally:
        ray.kill(actor)
