"""Train what a plan still lacks, on lanes, with progress; what `teachers`, `collect`, `search` and `distil` share."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

from cluster.documents import put_document, put_latest
from cluster.plan import Plan, pending
from cluster.queue import QueueStats
from cluster.runtime import preflight, session
from cluster.teachers import check_teachers
from dass.errors import BudgetSpentError, ClusterError
from dass.records import Run
from jobs.job import Job


def train_runs(
    job: Job,
    plan: Plan,
    phase: str,
    *,
    keep_weights: bool = False,
    priority_of: Mapping[str, int] | None = None,
    exceeded: Callable[[], str | None] = lambda: None,
) -> dict[str, Any]:
    """Run what is pending; returns the counts at the end. With `dry_run` only the counts.

    Args:
        job: the verb under way.
        plan: the runs.
        phase: what the progress is called.
        keep_weights: whether the students' weights are kept.
        priority_of: by task id; tasks with a higher one go first.
        exceeded: asked again and again; once it names a limit, the lanes end from their last checkpoints.

    Raises:
        StoreError: the weights of a teacher are not in the store.
        BudgetSpentError: a limit was exceeded and runs are still pending.
        ClusterError: runs are still pending when the lanes have ended; the message names the reasons.
    """
    left = pending(plan, job.database.finished_ids())
    check_teachers(job.database, left)
    before = _counts(plan, left)
    if job.dry_run:
        return before
    if before["pending"]:
        _check_budget(exceeded(), before)
        preflight(job.store.url, job.config.lanes.gpus)
    put_document(job.store, "plan", plan.id, plan.to_document())
    put_latest(job.store, f"plan-{plan.name}", {"plan": plan.id})
    if not before["pending"]:
        return before
    from cluster.lanes import run_plan  # Ray is imported only where something trains

    reasons: dict[str, str] = {}
    limit: str | None = None
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
            if (limit := exceeded()) is not None:
                break
    after = _counts(plan, pending(plan, job.database.finished_ids()))
    _check_budget(limit, after)
    if after["pending"]:
        told = "; ".join(sorted(set(reasons.values()))[:3]) or "the lanes ended early"
        raise ClusterError(
            f"every planned run must end, got {after['pending']} of {after['planned']} still pending ({told}); see the events "
            "in the store, then submit the same job again: what is finished is kept"
        )
    return after


def _counts(plan: Plan, left: Sequence[Run]) -> dict[str, int]:
    return {"planned": len(plan.runs), "ended": len(plan.runs) - len(left), "pending": len(left)}


def _detail(stats: QueueStats) -> str:
    return ", ".join(filter(None, (f"{stats.running} running", stats.note)))


def _check_budget(limit: str | None, counted: dict[str, int]) -> None:
    if limit is not None and counted["pending"]:
        raise BudgetSpentError(
            f"a collection must stay within {limit} with {counted['pending']} of {counted['planned']} runs left; raise the "
            "limit and submit the same job again: what is finished is kept, and `collect --dry-run` quotes what is left"
        )
