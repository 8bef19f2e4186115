"""`gc`: show what nothing in the store refers to, and remove it when asked."""

from collections import defaultdict
from datetime import timedelta
from typing import Any

from cluster.garbage import Garbage, find_garbage, remove
from dass.errors import ConfigError
from jobs.job import Job


def run(job: Job, older_than_h: float) -> dict[str, Any]:
    """List the garbage by reason; with `dry_run` it stays."""
    min_age = checked_age(older_than_h)
    with job.console.phase("look"):
        garbage = find_garbage(job.store, min_age)
    groups: dict[tuple[str, str], list[Garbage]] = defaultdict(list)
    for piece in garbage:
        groups[piece.key.partition("/")[0], piece.reason].append(piece)
    job.console.table(
        f"Nothing refers to these, {older_than_h:g} h old or older",
        ("where", "why", "objects", "bytes"),
        [(*name, len(group), sum(piece.size_bytes for piece in group)) for name, group in sorted(groups.items())],
        num_texts=2,
    )
    if not job.dry_run:
        with job.console.phase("remove") as bar:
            for done in remove(job.store, garbage):
                bar.update(done, len(garbage))
    size_bytes = sum(piece.size_bytes for piece in garbage)
    verb = "would be removed; add --delete" if job.dry_run and garbage else "removed"
    job.console.tell(f"{len(garbage)} objects of {size_bytes} bytes {verb}")
    found = [{"key": piece.key, "size_bytes": piece.size_bytes, "reason": piece.reason} for piece in garbage]
    return {"garbage": found, "objects": len(garbage), "size_bytes": size_bytes, "removed": not job.dry_run}


def checked_age(hours: float) -> timedelta:
    """The age as a time; ConfigError when it is none."""
    if not 0 <= hours <= 24 * 365 * 100:
        raise ConfigError(
            f"--older-than must be >= 0 hours and less than a century, got {hours:g}; give hours such as 24"
        )
    return timedelta(hours=hours)
