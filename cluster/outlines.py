"""What is quickly known of many records: enough to say where a collection stands, and what it took.

Of packed records a few columns are read, all at once. Loose ones cost a read each, so of many only the newest are.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cluster.schema import damaged, read_recipe
from cluster.sound import measure_faults
from dass.records import Record, Run, Status

OUTLINE_COLUMNS = (
    "run_id",
    "task",
    "teacher",
    "recipe_json",
    "status",
    "best_accuracy_pct",
    "macs",
    "seconds",
    "device",
)

Kind = tuple[str, str, bool]
"""What runs share whose seconds differ by their MACs alone: task, id of the recipe, and whether they train a teacher."""


def kind_of(run: Run) -> Kind:
    """The kind of a run."""
    return run.task, run.recipe.id, run.teacher is None


@dataclass(frozen=True, slots=True)
class Outline:
    """A record without its curve and its origin; fields as in Record, Result and Provenance.

    Raises:
        ValueError: a value is none that a run can leave; see `cluster.sound`.
    """

    run_id: str
    kind: Kind
    status: Status
    best_accuracy_pct: float | None
    macs: int
    seconds: float
    device: str

    def __post_init__(self) -> None:
        accuracies = () if self.best_accuracy_pct is None else (self.best_accuracy_pct,)
        if fault := next(measure_faults(accuracies, self.macs, self.seconds), ""):
            raise ValueError(f"an outline must be that of a sound record, got {fault}")

    @property
    def is_measured(self) -> bool:
        """Whether its seconds are those of a whole training."""
        return self.status is Status.FINISHED and self.seconds > 0 and self.macs > 0


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
    run, result, where = record.run, record.result, record.provenance
    return Outline(
        run.id, kind_of(run), result.status, result.best_accuracy_pct, record.macs, where.seconds, where.device
    )


def row_outline(row: Mapping[str, Any], key: str) -> Outline:
    """The outline of a row of the packed file `key` that holds `OUTLINE_COLUMNS`; StoreError when it is damaged."""
    try:
        return Outline(
            run_id=row["run_id"],
            kind=(row["task"], read_recipe(row["recipe_json"]).id, row["teacher"] is None),
            status=Status(row["status"]),
            **{name: row[name] for name in ("best_accuracy_pct", "macs", "seconds", "device")},
        )
    except ValueError as error:
        raise damaged(key, f"a row that does not fit ({error})") from error
