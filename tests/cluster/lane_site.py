"""A store with one task for the tests of lanes, and the same runs trained without Ray."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import cluster.lane
from cluster.database import RunDatabase
from cluster.documents import put_task
from cluster.lane import Lane, LaneJob
from cluster.lanes import run_plan
from cluster.objects import FolderStore, ObjectStore
from cluster.packs import put_pack
from cluster.plan import Plan
from cluster.queue import QueueStats
from cluster.queue_actor import remote_queue
from cluster.settings import LaneConfig
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.data.splits import assign_parts, class_splits
from dass.kd.cohort import Cohort, Ended
from dass.kd.teacher import Teacher, teacher_run
from dass.records import Recipe, Record, Run, Task
from dass.seeding import generator
from dass.spaces import get_space

SPACE = get_space("smoke")
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.02, flip=0.0, crop_padding=1, eval_every=1)
TEACHER = replace(RECIPE, loss="ce", init="scratch")
LANES = LaneConfig(num=1, threads=1, cohort_size=2, yield_every=2, checkpoint_s=0.05, lease_s=60.0)

# lanes of this process: it goes on after them, and other tests in it measure that freed memory goes back to the system
mock.patch.object(cluster.lane, "keep_freed_memory").start()


@dataclass
class Site:
    """A store that holds one packed task."""

    store: ObjectStore
    pack: Pack
    task: Task

    def plan(self, recipe: Recipe = RECIPE, num: int = 4) -> Plan:
        teacher = teacher_run(self.task, SPACE, TEACHER)
        students = SPACE.sample(num, generator("test lanes"))
        return Plan("collect", (teacher, *(Run(self.task.id, teacher.id, s, recipe) for s in students)))

    def run(self, plan: Plan, lanes: LaneConfig = LANES, *, keep_weights: bool = False) -> QueueStats:
        *_, last = run_plan(self.store.url, plan, lanes, keep_weights=keep_weights)
        return last

    def records(self) -> dict[str, Record]:
        return {record.run.id: record for record in RunDatabase(self.store).scan()}


def make_site(folder: Path) -> Site:
    """A site in a store below `folder`."""
    return site_in(FolderStore(folder / "store"))


def site_in(store: ObjectStore) -> Site:
    """Three of the digits in the store."""
    pack = assign_parts(read_source("digits", 16), valid_fraction=0.5, test_fraction=0.3)
    task = class_splits(pack, [(0, 1, 2)], ["task"])[0]
    put_pack(store, pack)
    put_task(store, task)
    return Site(store, pack, task)


def trained_without_ray(site: Site, plan: Plan) -> dict[str, Ended]:
    torch.set_num_threads(1)
    data = ResidentBatches.of(site.pack, site.task)
    teacher_run, *students = plan.runs
    (teacher,) = [
        ended for step in Cohort([teacher_run], data, None, keep_weights=True).train() for ended in step.ended
    ]
    assert teacher.weights is not None
    assert teacher.result.best_accuracy_pct is not None
    loaded = Teacher(teacher_run.id, teacher_run.student, teacher.weights, teacher.result.best_accuracy_pct)
    alone = [
        ended for run in students for step in Cohort([run], data, loaded).train() for ended in step.ended
    ]  # each student alone, where the lane trains two at a time
    return {ended.run.id: ended for ended in (teacher, *alone)}


def queue_of(site: Site, plan: Plan, lease_s: float = LANES.lease_s) -> Any:
    """A handle of the plan's queue, which reaches a bucket as this process does."""
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    queue = remote_queue().options(runtime_env={"env_vars": keys}) if site.store.is_remote else remote_queue()
    return queue.remote(site.store.url, plan.runs, lease_s=lease_s)


def in_process(site: Site, queue: Any, lanes: LaneConfig = LANES) -> Lane:
    """A lane of this process, which shares nothing with a queue's but the store."""
    return Lane("lane0", LaneJob(site.store.url, "queue", lanes), queue)
