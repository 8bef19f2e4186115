"""`compact`: gather the loose records in one Parquet file per task."""

from dataclasses import asdict
from typing import Any

from cluster.compaction import Progress, compact
from dass.errors import ConfigError
from jobs.job import Job


def run(job: Job, grace_s: float) -> dict[str, Any]:
    """Pack and merge; says what changed."""
    check_grace(grace_s)
    last = Progress("read", 0, 0)
    with job.console.phase("compact") as bar:
        for last in compact(job.store, grace_s):
            waits = f", waiting {grace_s:g} s" if last.phase == "wait" else ""
            bar.update(last.done, last.total, f"{last.phase}{waits}")
    done = {key: value for key, value in asdict(last).items() if key in ("packed", "files", "removed")}
    job.console.tell("Compaction: " + ", ".join(f"{value} {key}" for key, value in done.items()))
    return {**done, "store": job.store.url}


def check_grace(grace_s: float) -> None:
    """Raise ConfigError unless the wait is a number of seconds."""
    if not 0 <= grace_s < float("inf"):
        raise ConfigError(f"--grace must be >= 0 seconds, got {grace_s:g}; leave it out for the default")
