"""Compaction: loose records become one Parquet file per task, and small files of a task become one.

It may be killed at any instant and run beside writers, readers and other compactions, on any machine. Why no record is
ever lost or changed, without clocks, locks or conditional writes:

- The name of a packed file is the hash of its sorted (run_id, incarnation, attempt) triples, so equal names mean equal
  records, whoever wrote them with whichever Parquet library.
- File B covers file A when it holds every run of A under a lease that is not higher. B replaces A when B covers A and
  either A does not cover B, or B bears its proper name and A does not. So replacing has no circles: along a chain of
  replacements the runs only grow and their leases only fall.
- An object goes only after one packed file that replaces it, or for a loose record one that holds its run, was read
  back whole and compared. That file may go too by then, but only after another one that replaces it, and so on along
  the chain: at every moment some file holds every run. Therefore the output is always ONE file with all that went in; to
  cut it into several by length would make circles possible.
- Who was killed leaves objects that a packed file holds already. The next compaction meets them as any other.

Readers that were about to read an object that goes start over (cluster/database.py). Objects wait `grace_s` before they
go, which makes that rare; it must be longer than one listing of the packed files takes.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from cluster.database import RunDatabase, loose_key, read_loose
from cluster.objects import ObjectStore
from cluster.packed import PACKED, SUFFIX, PackedFile, id_array
from cluster.parallel import each
from cluster.schema import damaged
from cluster.tables import are_same, parquet_to_table, records_to_table, table_to_parquet, table_to_records
from dass.errors import ObjectNotFoundError, SchemaTooNewError, StoreError
from dass.records import Record

GRACE_S = 60.0
FULL_ROWS = 20_000  # from this length on a file is not merged any more
HELD_ROWS = 100_000  # loose records in memory at a time

_AT_ONCE = 1_000  # records that are Python objects at a time
_MAX_TRIES = 20  # each new try means that another compaction removed a file since the last one
_NAMED = 5  # damaged objects that an error names


@dataclass(frozen=True)
class Progress:
    """How far a compaction has come; the last one is its result.

    done of total: objects of this phase. packed: loose records that are in packed files now. files: packed files that
    were written. removed: objects that are gone, loose and packed ones.
    """

    phase: Literal["read", "pack", "wait", "remove"]
    done: int
    total: int
    packed: int = 0
    files: int = 0
    removed: int = 0


def compact(
    store: ObjectStore,
    grace_s: float = GRACE_S,
    *,
    full_rows: int = FULL_ROWS,
    held_rows: int = HELD_ROWS,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[Progress]:
    """Pack all loose records, merge small files, and after `grace_s` remove what they replace; safe to run again.

    Raises:
        StoreError: loose records are damaged; everything else was packed, they stay where they are, and the message
            names them. At once when a packed file is damaged or the store fails.
        SchemaTooNewError: an object was written by a newer version of this package.
    """
    database = RunDatabase(store)
    keys = list(database.loose_keys())
    progress = Progress("read", 0, len(keys))
    yield progress
    held: dict[str, list[pa.Table]] = defaultdict(list)
    doomed: set[str] = set()
    bad: list[str] = []

    def pack(task: str) -> Progress:
        loose = pa.concat_tables([records_to_table([]), *held.pop(task, [])])
        files = _pack_task(database, task, loose, full_rows, doomed)
        return replace(progress, packed=progress.packed + loose.num_rows, files=progress.files + files)

    for start in range(0, len(keys), _AT_ONCE):
        some = keys[start : start + _AT_ONCE]
        for task, table in _read_some(store, some, bad):
            held[task].append(table)
        while sum(map(_num_rows, held.values())) > held_rows:
            progress = pack(max(held, key=lambda task: _num_rows(held[task])))
        progress = replace(progress, done=start + len(some))
        yield progress

    tasks = sorted(held.keys() | {file.task for file in database.packed().files})
    for done, task in enumerate(tasks, 1):
        progress = replace(pack(task), phase="pack", done=done, total=len(tasks))
        yield progress

    gone = sorted(doomed)
    if gone:
        yield replace(progress, phase="wait", done=0, total=len(gone))
        sleep(grace_s)
    for done, _ in enumerate(each(store, store.delete, gone), 1):
        progress = replace(progress, phase="remove", done=done, total=len(gone), removed=done)
        if done % _AT_ONCE == 0 or done == len(gone):
            yield progress
    if bad:
        raise _damaged_records(bad)


def packed_key(task: str, triples: Sequence[tuple[str, int, int]]) -> str:
    """Where the file with exactly these (run_id, incarnation, attempt) lies; their order does not matter."""
    text = "\n".join(f"{run_id} {incarnation} {attempt}" for run_id, incarnation, attempt in sorted(triples))
    return f"{PACKED}{task}/{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"


def _num_rows(tables: Collection[pa.Table]) -> int:
    return sum(table.num_rows for table in tables)


def _read_some(store: ObjectStore, keys: list[str], bad: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """The records under loose keys as tables by task; damaged ones are added to `bad`, and those gone are passed over."""

    def read(key: str) -> bytes | None:
        try:
            return store.get(key)
        except ObjectNotFoundError:  # another compaction removed it
            return None

    by_task: dict[str, list[Record]] = defaultdict(list)
    for key, data in zip(keys, each(store, read, keys), strict=True):
        if data is None:
            continue
        try:
            record = read_loose(data, key)
        except SchemaTooNewError:
            raise
        except StoreError:
            bad.append(key)
        else:
            by_task[record.run.task].append(record)
    for task, records in by_task.items():
        yield task, records_to_table(records)


def _pack_task(database: RunDatabase, task: str, loose: pa.Table, full_rows: int, doomed: set[str]) -> int:
    """Pack one task, anew until no other compaction takes a file away in between; how many files were written."""
    for _ in range(_MAX_TRIES):
        files = [file for file in database.packed().files if file.task == task and file.key not in doomed]
        try:
            return _pack_files(database.store, task, loose, files, full_rows, doomed)
        except ObjectNotFoundError:
            continue
    raise StoreError(
        f"packed files must stay in place while they are read, got {_MAX_TRIES} tries at task {task} that each lost one; "
        "let the other compactions end and try again"
    )


def _pack_files(
    store: ObjectStore, task: str, loose: pa.Table, files: Sequence[PackedFile], full_rows: int, doomed: set[str]
) -> int:
    """Find what packed files hold already, then put all else that is not full into one; adds to `doomed` what may go."""
    for file in files:
        loose_ids = id_array(loose.column("run_id").to_pylist())
        is_held = np.isin(loose_ids, file.ids) & (len(file.ids) >= full_rows)
        replaced = {other.key for other in files if other.key not in doomed and _replaces(file, other)}
        if is_held.any() or replaced:
            held_ids = loose_ids[is_held].astype(str).tolist()
            _confirm(store, file, held_ids)
            doomed |= replaced.union(map(loose_key, held_ids))
            loose = loose.filter(pa.array(~is_held))
    small = [file for file in files if len(file.ids) < full_rows and file.key not in doomed]
    if loose.num_rows == 0 and len(small) < 2:
        return 0
    merged = _merge([parquet_to_table(store.get(file.key), file.key) for file in small], loose)
    key = packed_key(task, _triples(merged))
    is_new = key not in {file.key for file in files} and store.put_if_absent(key, table_to_parquet(merged))
    if not are_same(merged, parquet_to_table(store.get(key), key)):
        raise damaged(key, "other records than were packed into it")
    doomed |= {file.key for file in small} - {key}
    doomed |= set(map(loose_key, loose.column("run_id").to_pylist()))
    return int(is_new)


def _merge(packed: Sequence[pa.Table], loose: pa.Table) -> pa.Table:
    """One row per run, sorted: a packed row wins over a loose one, then that of the lowest lease."""
    table = pa.concat_tables([*packed, loose])
    is_loose = np.repeat([0, 1], [table.num_rows - loose.num_rows, loose.num_rows])
    ids = id_array(table.column("run_id").to_pylist())
    leases = [table.column(name).to_numpy() for name in ("attempt", "incarnation")]
    order = np.lexsort((*leases, is_loose, ids))
    is_first = np.ones(len(order), bool)
    is_first[1:] = ids[order][1:] != ids[order][:-1]
    return table.take(pa.array(order[is_first])).combine_chunks()


def _triples(table: pa.Table) -> list[tuple[str, int, int]]:
    return list(zip(*(table.column(name).to_pylist() for name in ("run_id", "incarnation", "attempt")), strict=True))


def _leases(file: PackedFile) -> dict[bytes, tuple[int, int]]:
    """The lowest lease of each run of a file."""
    leases: dict[bytes, tuple[int, int]] = {}
    for run_id, *lease in zip(file.ids.tolist(), file.incarnations.tolist(), file.attempts.tolist(), strict=True):
        leases[run_id] = min((lease[0], lease[1]), leases.get(run_id, (lease[0], lease[1])))
    return leases


def _replaces(new: PackedFile, old: PackedFile) -> bool:
    """Whether `new` may stand for `old`; see the top."""
    if new.key == old.key or not np.isin(old.ids, new.ids).all():
        return False
    new_leases, old_leases = _leases(new), _leases(old)
    if any(new_leases[run_id] > lease for run_id, lease in old_leases.items()):
        return False
    return new_leases != old_leases or (_is_proper(new, new_leases) and not _is_proper(old, old_leases))


def _is_proper(file: PackedFile, leases: dict[bytes, tuple[int, int]]) -> bool:
    return file.key == packed_key(file.task, [(run_id.decode(), *lease) for run_id, lease in leases.items()])


def _confirm(store: ObjectStore, file: PackedFile, run_ids: Collection[str]) -> None:
    """Read a file back whole; StoreError unless it holds what its ids said, and sound records of `run_ids`."""
    table = parquet_to_table(store.get(file.key), file.key)
    ids = id_array(table.column("run_id").to_pylist())
    if not np.array_equal(ids, file.ids):
        raise damaged(file.key, "other runs than at the first look")
    for _ in table_to_records(table.filter(pa.array(np.isin(ids, id_array(run_ids)))), file.key):
        pass  # each run's id is computed anew on the way


def _damaged_records(keys: Sequence[str]) -> StoreError:
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return StoreError(
        f"loose records must be whole to be packed, got {len(keys)} that are damaged and stay in place: "
        f"{', '.join(keys[:_NAMED])}{more}; delete these objects and run the job that wrote them again"
    )
