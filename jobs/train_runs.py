"""Train what a plan still lacks, on lanes, with progress; what `teachers`, `collect`, `search` and `distil` share."""

from collections.abc import Mapping
from contextlib import closing
from typing import Any

from cluster.documents import put_document, put_latest
from cluster.plan import Plan, pending
from cluster.queue import QueueStats
from cluster.runtime import preflight, session
from dass.errors import ClusterError
from jobs.job import Job


def counts(job: Job, plan: Plan) -> dict[str, int]:
    """How many runs of the plan are done and how many are left."""
    num_pending = len(pending(plan, job.database.finished_ids()))
    return {"planned": len(plan.runs), "ended": len(plan.runs) - num_pending, "pending": num_pending}


def train_runs(
    job: Job,
    plan: Plan,
    phase: str,
    *,
    keep_weights: bool = False,
    priority_of: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Run what is pending; returns the counts at the end. With `dry_run` only the counts.

    priority_of: by task id; tasks with a higher one go first.

    Raises:
        ClusterError: runs are still pending when the lanes have ended; the message names the reasons.
    """
    before = counts(job, plan)
    if job.dry_run:
        return before
    if before["pending"]:
        preflight(job.store.url, job.config.lanes.gpus)
    put_document(job.store, "plan", plan.id, plan.to_document())
    put_latest(job.store, f"plan-{plan.name}", {"plan": plan.id})
    if not before["pending"]:
        return before
    from cluster.lanes import run_plan  # Ray is imported only where something trains

    reasons: dict[str, str] = {}
    lanes = run_plan(
        job.store.url,
        plan,
        job.config.lanes,
        keep_weights=keep_weights,
        priority_of=priority_of,
        takeover=job.takeover,
    )
    with session(), job.console.phase(phase) as bar, closing(lanes):
        bar.update(before["ended"], before["planned"], "starting lanes")
        for stats in lanes:
            bar.update(max(stats.finished, before["ended"]), before["planned"], _detail(stats))
            reasons = dict(stats.failed)
    after = counts(job, plan)
    if after["pending"]:
        told = "; ".join(sorted(set(reasons.values()))[:3]) or "the lanes ended early"
        raise ClusterError(
            f"every planned run must end, got {after['pending']} of {after['planned']} still pending ({told}); see the events "
            "in the store, then submit the same job again: what is finished is kept"
        )
    return after


def _detail(stats: QueueStats) -> str:
    return ", ".join(filter(None, (f"{stats.running} running", stats.note)))
