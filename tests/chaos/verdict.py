"""What a collection left, compared with one that nobody disturbed."""

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Collection as Group
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.database import RunDatabase
from cluster.objects import FolderStore, ObjectStore
from cluster.schema import record_from_json
from cluster.tables import parquet_to_table, table_to_records
from dass.errors import ObjectNotFoundError
from dass.records import Record, Status
from tests.chaos.site import ACTORS, ROOT, Collection, Site, wait_until

GONE_S = 30.0  # within which what belonged to a driver is gone after it

# what Ray itself knows of that was not given back; Ray Train's own coordinator, one for a whole cluster, stays
_LEFT = """
import json, sys, ray
from ray.util import list_named_actors, placement_group_table
sys.stdout, out = sys.stderr, sys.stdout
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
held = {name: ray.cluster_resources()[name] - free for name, free in ray.available_resources().items()
        if name in ("CPU", "dass_driver") and ray.cluster_resources()[name] - free > 1e-6}
groups = [group["placement_group_id"] for group in placement_group_table().values() if group["state"] != "REMOVED"]
actors = [actor for actor in list_named_actors(all_namespaces=True) if actor["namespace"] != "AutoscalingCoordinator"]
json.dump({"actors": actors, "groups": groups, "held": held}, out)
"""


@dataclass(frozen=True)
class Seen:
    """The visible records at one moment against those expected: ids of those there, with two records, or other than expected."""

    ids: frozenset[str]
    duplicated: frozenset[str]
    wrong: frozenset[str]


def undisturbed(collection: Collection, folder: Path) -> dict[str, Record]:
    """The records of the same collection on local Ray and a folder, by run id; kept in the folder for the next time."""
    command = collection.command(str(folder))
    ours = ("AWS_", "RAY_", "__RAY_")  # of the site that is to be disturbed
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    if done.returncode:
        raise RuntimeError(f"the undisturbed collection must end, got {done.stderr}")
    return {record.run.id: record for record in RunDatabase(FolderStore(folder)).scan()}


def look(store: ObjectStore, expected: Mapping[str, Record], diverged: Group[str]) -> Seen:
    """What a reader sees, and whether what lies in the store leaves it any choice.

    A run may lie there several times, loose and packed or under several leases. It has two records where copies of the
    first of its leases, which is the one that counts, say different things. One that nobody planned is wrong.

    Args:
        store: of the collection.
        expected: the undisturbed records by run id.
        diverged: runs that were made to diverge, of which nothing else is expected than that their record says so.
    """
    copies = defaultdict(list)
    for record in _copies(store):
        copies[record.run.id].append(record)
    records = {record.run.id: record for record in RunDatabase(store).scan()}
    wrong = {run_id for run_id, record in records.items() if not _is_as_expected(record, expected, diverged)}
    duplicated = set()
    for run_id, of_run in copies.items():
        first = min(map(_lease, of_run))
        told = [record for record in of_run if _lease(record) == first]
        if any(record != told[0] for record in told):
            duplicated.add(run_id)
        if run_id not in records or _lease(records[run_id]) > first:
            wrong.add(run_id)  # the reader has none, or that of a later lease
    return Seen(frozenset(records), frozenset(duplicated), frozenset(wrong))


def _copies(store: ObjectStore) -> Iterator[Record]:
    """Every record that lies in the store, object by object; those that a compaction removes meanwhile are left out."""
    for key in list(store.list("records/")):
        with suppress(ObjectNotFoundError):
            data = store.get(key)
            if key.endswith(".json"):
                yield record_from_json(data, key)
            else:
                yield from table_to_records(parquet_to_table(data, key), key)


def _lease(record: Record) -> tuple[int, int]:
    return record.provenance.incarnation, record.provenance.attempt


def left_behind(site: Site) -> dict[str, Any]:
    """What is still there after the drivers ended, which should be nothing."""
    left: dict[str, Any] = {}
    if not wait_until(lambda: not _processes(site), GONE_S, pause_s=0.5):
        left["processes"] = sorted(_processes(site))
    script = subprocess.run(
        [sys.executable, "-c", _LEFT, site.cluster.address], capture_output=True, text=True, check=True, timeout=60
    )
    left |= {what: found for what, found in json.loads(script.stdout).items() if found}
    objects = [key for folder in ("checkpoints/", "owners/") for key in site.store.list(folder)]
    return left | ({"objects": objects} if objects else {})


def _processes(site: Site) -> Iterable[str]:
    return [f"{title} {pid}" for title in ACTORS for pid in site.workers(title)]


def _is_as_expected(record: Record, expected: Mapping[str, Record], diverged: Group[str]) -> bool:
    """Planned, and equal but for times, attempt and hardware; the code may be that of a later version of these tests."""
    if record.run.id in diverged:
        return record.result.status is Status.DIVERGED
    if (known := expected.get(record.run.id)) is None:
        return False
    free = ("started_at", "seconds", "attempt", "incarnation", "lane", "device", "code_version")
    changed = {name: getattr(record.provenance, name) for name in free}
    return replace(known, provenance=replace(known.provenance, **changed)) == record
