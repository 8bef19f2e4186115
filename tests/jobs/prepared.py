"""A store in which the `smoke` recipe is done, made without a cluster: the verbs that train nothing, and cohorts."""

from collections import defaultdict
from pathlib import Path

import torch

from cluster.documents import put_document, put_latest
from cluster.plan import Plan
from cluster.schema import claim_schema
from cluster.teachers import load_teacher
from cluster.weights import put_weights
from dass.cost import count_macs, count_params
from dass.data.batches import ResidentBatches
from dass.kd.cohort import Cohort, Ended
from dass.records import Provenance, Record, Run, Task
from jobs import collect, distil, meta_train, search
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import get_recipe

PROVENANCE = Provenance("2025-01-02T03:04:05+00:00", 1.0, 1, "lane-0", "cpu", 1, "contiguous", "0.1.0", {"torch": "2"})


def open_smoke(folder: Path) -> Job:
    """The smoke recipe on this store, silent on stdout."""
    return Job.open(get_recipe("smoke"), str(folder), Console(is_json=True), dry_run=False)


def prepare(folder: Path) -> Path:
    """Do everything that the smoke recipe's quickstart does before its report; returns `folder`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    job = open_smoke(folder)
    claim_schema(job.store)
    train(job, collect.plan(job, job.tasks()))
    meta_train.run(job)
    search.run(job)
    train(job, final_plan(job), keep_weights=True)
    torch.set_num_threads(threads)
    return folder


def final_plan(job: Job) -> Plan:
    """The runs that `distil` wants for the last search."""
    task = job.tasks().target
    assert task is not None
    found = distil.latest_search(job, task)
    students = distil.chosen(job, task, found).values()
    seeds = job.config.distil.seeds
    runs = [Run(task.id, found["teacher"], student, job.config.final, seed) for student in students for seed in seeds]
    return Plan("distil", tuple(dict.fromkeys(runs)))


def train(job: Job, plan: Plan, *, keep_weights: bool = False) -> None:
    """What lanes would do with a plan, teachers first: train its runs and leave their records."""
    put_document(job.store, "plan", plan.id, plan.to_document())
    put_latest(job.store, f"plan-{plan.name}", {"plan": plan.id})
    whole = (job.whole_source(source) for source in job.config.evaluate.targets)
    tasks = {task.id: task for task in (*job.tasks().all, *whole)}
    groups: dict[tuple[str, str | None], list[Run]] = defaultdict(list)
    for run in job.database.pending(plan.runs):
        groups[run.task, run.teacher].append(run)
    for (task_id, teacher_id), runs in groups.items():
        data = ResidentBatches.of(job.pack(tasks[task_id]), tasks[task_id])
        teacher = None if teacher_id is None else load_teacher(job.database, teacher_id, task_id)
        for progress in Cohort(runs, data, teacher, keep_weights=keep_weights or teacher is None).train():
            for ended in progress.ended:
                job.database.add(record_of(job, tasks[task_id], ended))


def record_of(job: Job, task: Task, ended: Ended) -> Record:
    student = ended.run.student
    return Record(
        run=ended.run,
        result=ended.result,
        macs=count_macs(student, task.resolution, task.num_classes),
        params=count_params(student, task.num_classes),
        num_classes=task.num_classes,
        resolution=task.resolution,
        provenance=PROVENANCE,
        weights=None if ended.weights is None else put_weights(job.store, ended.weights),
    )
