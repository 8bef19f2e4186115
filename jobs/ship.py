"""`ship`: a benchmark in a folder of its own, laid out as a store: records, features and results, no image and no weights.

Who has the folder meta-trains and compares methods again within minutes: the maps of all students and the features of
the images are in it, and of methods that need more, their scores.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.compaction import compact
from cluster.documents import put_document, put_latest
from cluster.features import put_features
from cluster.objects import FolderStore
from cluster.schema import claim_schema
from dass.baselines.catalog import Catalog
from dass.errors import ConfigError
from dass.records import Record, content_id
from jobs.evaluation_records import Target, find_targets
from jobs.evaluation_scores import Evaluation
from jobs.job import Job
from jobs.meta_train import Learnable, learnable
from jobs.output import check_place
from jobs.shipped import MANIFEST, Shipped, without_source


def run(job: Job, output: Path, *, names: Sequence[str] | None = None, seeds: int = 3) -> dict[str, Any]:
    """Write the folder from the store's records and from the results of its evaluation; names: of methods, else the main ones.

    Raises:
        ConfigError: the folder holds something already, or a method has no result yet.
    """
    check_output(output)
    found = learnable(job)
    targets = find_targets(job, (), (record.run.id for record in found.records))
    methods = Catalog(job.config.meta, job.config.meta_d2a, job.config.tans).choose(names)
    evaluation = Evaluation(job, methods, seeds, targets, found)
    results = evaluation.known()
    if pending := len(evaluation.wanted) - len(results):
        raise ConfigError(
            f"a benchmark ships with a result of every method, got {pending} of {len(evaluation.wanted)} pending; run "
            f"`evaluate --seeds {seeds}` with the same recipe first"
        )
    records = _records(job, found, targets)
    manifest = Shipped(
        recipe=job.config.name,
        targets=tuple(target.task.name for target in targets),
        methods=tuple(method.name for method in methods),
        seeds=seeds,
        records=content_id(sorted(record.run.id for record in records)),
    )
    if not job.dry_run:
        shipped = _shipped(job, output)
        for record in records:
            shipped.database.add(record)
        for _ in compact(shipped.store, 0.0):
            pass
        shipped.keep_tasks(replace(found.tasks, target=None))
        for target in targets:
            shipped.keep_whole(target.task.name, target.task)
        for key, task in evaluation.features():
            put_features(shipped.store, key, task)
        for method, seed, target in evaluation.wanted:
            scored = results[method.name, seed, target.task.name]
            put_document(shipped.store, "evaluation", evaluation.key_of(method, seed, target), vars(scored))
        put_latest(shipped.store, MANIFEST, vars(manifest))
    job.console.tell(
        f"{len(records)} records and {len(results)} results {'would be' if job.dry_run else 'were'} written to {output}"
    )
    return {"records": len(records), "results": len(results), "output": str(output), "dry_run": job.dry_run}


def check_output(output: Path) -> None:
    """Raise ConfigError unless the folder is new or empty."""
    if output.is_file() or (output.is_dir() and any(output.iterdir())) or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output must be a new folder in one that exists, got {output}; choose another name")
    check_place(output)


def _shipped(job: Job, output: Path) -> Job:
    """The job that whoever has the folder will have: it knows the tasks by their names, not by where images lay here."""
    store = FolderStore(output)
    claim_schema(store)
    return replace(job, config=without_source(job.config), store=store)


def _records(job: Job, found: Learnable, targets: Sequence[Target]) -> list[Record]:
    """All that the results come from: students, repeats and teachers."""
    ids = {record.run.id for record in found.records} | {run_id for target in targets for run_id in target.run_ids}
    records = list(job.records(ids).values())
    return records + list(job.records({record.run.teacher or "" for record in records}).values())
