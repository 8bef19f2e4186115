"""Train what a plan still lacks, on lanes, with progress; what `teachers`, `collect`, `search` and `distil` share."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

from cluster.documents import put_document, put_latest
from cluster.plan import Plan
from cluster.queue import QueueStats
from cluster.runtime import check_gpus, preflight, session
from cluster.teachers import check_teachers
from dass.errors import BudgetSpentError, ClusterError
from dass.records import Run
from jobs.budget import Budget
from jobs.job import Job


def train_runs(
    job: Job,
    plan: Plan,
    phase: str,
    *,
    keep_weights: bool = False,
    priority_of: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Run what is pending; returns the counts at the end. With `dry_run` only the counts.

    Whether the job's budget is spent is asked again and again; once it is, the lanes end from their last checkpoints.

    Args:
        job: the verb under way.
        plan: the runs.
        phase: what the progress is called.
        keep_weights: whether the students' weights are kept.
        priority_of: by task id; tasks with a higher one go first.

    Raises:
        StoreError: the weights of a teacher are not in the store.
        ConfigError: lanes ask for GPUs and this local machine has none.
        BudgetSpentError: the budget is spent and runs are still pending.
        ClusterError: runs are still pending when the lanes have ended; the message names the reasons.
    """
    before = what_is_left(job, plan)
    if before["pending"]:
        check_gpus(job.config.lanes.gpus)
    if job.dry_run:
        return before
    budget = Budget(job)
    if before["pending"]:
        _check_budget(budget.exceeded(), before)
        preflight(job.store.url)
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
            if (limit := budget.exceeded()) is not None:
                break
    after = _counts(plan, job.database.pending(plan.runs))
    _check_budget(limit, after)
    if after["pending"]:
        told = "; ".join(sorted(set(reasons.values()))[:3]) or "the lanes ended early"
        raise ClusterError(
            f"every planned run must end, got {after['pending']} of {after['planned']} still pending ({told}); see the events "
            "in the store, then submit the same job again: what is finished is kept"
        )
    return after


def what_is_left(job: Job, plan: Plan) -> dict[str, int]:
    """How many runs there are, have ended and are pending; StoreError where the weights of a teacher are gone."""
    left = job.database.pending(plan.runs)
    check_teachers(job.database, left)
    return _counts(plan, left)


def check_devices(job: Job) -> None:
    """Raise ConfigError, before images are read, where lanes ask for GPUs that are not here; what is done may be looked at."""
    if not job.has_tasks:
        check_gpus(job.config.lanes.gpus)


def _counts(plan: Plan, left: Sequence[Run]) -> dict[str, int]:
    return {"planned": len(plan.runs), "ended": len(plan.runs) - len(left), "pending": len(left)}


def _detail(stats: QueueStats) -> str:
    return ", ".join(filter(None, (f"{stats.running} running", stats.note)))


def _check_budget(limit: str | None, counted: dict[str, int]) -> None:
    if limit is not None and counted["pending"]:
        raise BudgetSpentError(
            f"training must stay within {limit} with {counted['pending']} of {counted['planned']} runs left; raise the "
            "limit and submit the same job again: what is finished is kept, and `collect --dry-run` quotes what is left"
        )
