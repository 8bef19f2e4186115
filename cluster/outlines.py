"""What is quickly known of many records: enough to say where a collection stands, and what it took.

Of packed records a few columns are read, all at once. Loose ones cost a read each, so of many only the newest are.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.schema import damaged
from dass.records import Record, Status

OUTLINE_COLUMNS = ("run_id", "status", "best_accuracy_pct", "macs", "seconds", "device")


@dataclass(frozen=True, slots=True)
class Outline:
    """A record without its curve and its origin; fields as in Record, Result and Provenance."""

    run_id: str
    status: Status
    best_accuracy_pct: float | None
    macs: int
    seconds: float
    device: str


@dataclass(frozen=True)
class Outlines:
    """Of the records of a store: all run ids, the outlines of those that were read, and when loose ones were written.

    ended_at: by the store's clock; what is packed and no longer loose is not in it.
    """

    run_ids: AbstractSet[str]
    known: Mapping[str, Outline]
    ended_at: Mapping[str, datetime]


def record_outline(record: Record) -> Outline:
    """The outline of a record."""
    result, where = record.result, record.provenance
    return Outline(record.run.id, result.status, result.best_accuracy_pct, record.macs, where.seconds, where.device)


def row_outline(row: Mapping[str, Any], key: str) -> Outline:
    """The outline of a row of the packed file `key` that holds `OUTLINE_COLUMNS`; StoreError when it is damaged."""
    try:
        return Outline(**{**row, "status": Status(row["status"])})
    except ValueError as error:
        raise damaged(key, f"a row that does not fit ({error})") from error
