"""The run database: which runs are done, and what they left. The only truth about either.

A record is one loose object from a single put. Compaction gathers loose records in packed Parquet files and deletes
them later, so a reader that lists loose objects first and packed files second misses none; an object that is gone
between listing and reading has been packed meanwhile, and the reader starts over. A run may be there more than once: a
packed record wins over a loose one, and among packed ones the lowest attempt wins.
"""

import contextlib
import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.objects import ObjectStore
from cluster.schema import check_version, damaged, record_from_json, record_to_json, table_to_records
from dass.errors import ObjectNotFoundError, StoreError
from dass.records import Record

LOOSE = "records/loose/"
PACKED = "records/packed/"

_PARALLEL = 32  # calls at a time on a remote store
_MAX_PASSES = 20  # each new pass means that a compaction removed objects since the last one
_SHARDS = tuple(f"{number:02x}" for number in range(256))

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def loose_key(run_id: str) -> str:
    """Where the record of a run is first written."""
    return f"{LOOSE}{run_id[:2]}/{run_id}.json"


class RunDatabase:
    """All records of a store. Keeps nothing but an index of the packed files, which never change."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._attempts: dict[str, dict[str, int]] = {}  # packed key -> run_id -> lowest attempt

    def add(self, record: Record) -> bool:
        """Write the record in one step unless the run has one; True when this one is now the visible one.

        Safe to retry. Where a store cannot refuse a second writer, the last of them stays, and they agree but for
        their provenance.
        """
        if any(record.run.id in attempts for attempts in self._settled(self._packed).values()):
            return False
        return self.store.put_if_absent(loose_key(record.run.id), record_to_json(record))

    def finished_ids(self) -> set[str]:
        """The ids of all runs with a record, diverged ones included, from listings and packed id columns alone."""
        return self._settled(lambda: self._loose().union(*self._packed().values()))

    def get(self, run_id: str) -> Record | None:
        """The record of one run, or None when it has none."""
        return next(self.scan({run_id}), None)

    def scan(self, run_ids: Collection[str] | None = None) -> Iterator[Record]:
        """The records of `run_ids`, or of all runs, one for each run that has one, in no particular order.

        Records that are added while the scan goes on may be missing from it.

        Raises:
            StoreError: an object is damaged; the message names it.
            SchemaTooNewError: an object was written by a newer version of this package.
        """
        wanted = None if run_ids is None else frozenset(run_ids)
        seen: set[str] = set()
        for _ in range(_MAX_PASSES):
            try:
                for record in self._pass(wanted, seen):
                    seen.add(record.run.id)
                    yield record
            except ObjectNotFoundError:
                continue
            return
        raise self._never_still()

    def _pass(self, wanted: frozenset[str] | None, seen: set[str]) -> Iterator[Record]:
        """Every wanted record that was not seen; ObjectNotFoundError when a compaction came in between."""
        loose = self._loose(wanted)
        packed = self._packed()
        winners = _winners(packed)
        chosen = winners.keys() if wanted is None else winners.keys() & wanted
        ids_of: dict[str, set[str]] = defaultdict(set)
        for run_id in chosen - seen:
            ids_of[winners[run_id]].add(run_id)
        for key, ids in sorted(ids_of.items()):
            yield from self._read_packed(key, {run_id: packed[key][run_id] for run_id in ids})
        yield from self._read_loose(sorted(loose - winners.keys() - seen))

    def _loose(self, wanted: frozenset[str] | None = None) -> set[str]:
        """The ids of the loose records, of all runs or of the wanted ones."""
        if wanted is not None and len(wanted) <= _PARALLEL:
            return {run_id for run_id in wanted if self.store.exists(loose_key(run_id))}
        prefixes = [f"{LOOSE}{shard}/" for shard in _SHARDS] if self.store.is_remote else [LOOSE]
        keys = itertools.chain.from_iterable(self._each(lambda prefix: list(self.store.list(prefix)), prefixes))
        ids = {key.rpartition("/")[2].removesuffix(".json") for key in keys}
        return ids if wanted is None else ids & wanted

    def _packed(self) -> dict[str, dict[str, int]]:
        """For each packed file its runs and their lowest attempts; reads the files that are new since the last call."""
        keys = [key for key in self.store.list(PACKED) if key.endswith(".parquet")]
        new = [key for key in keys if key not in self._attempts]
        known = self._attempts | dict(zip(new, self._each(self._read_attempts, new), strict=True))
        self._attempts = {key: known[key] for key in keys}
        return self._attempts

    def _read_attempts(self, key: str) -> dict[str, int]:
        table = _read_table(self.store.get(key), key, columns=["schema", "run_id", "attempt"])
        lowest: dict[str, int] = {}
        for row in table.to_pylist():
            check_version(row["schema"], key)
            lowest[row["run_id"]] = min(row["attempt"], lowest.get(row["run_id"], row["attempt"]))
        return lowest

    def _read_packed(self, key: str, attempts: dict[str, int]) -> Iterator[Record]:
        """The records of the runs in `attempts`, each of the attempt named there."""
        table = _read_table(self.store.get(key), key, filters=[("run_id", "in", sorted(attempts))])
        for record in table_to_records(table, key):
            if attempts.get(record.run.id) == record.provenance.attempt:
                del attempts[record.run.id]  # the same row twice is one record
                yield record

    def _read_loose(self, ids: Iterable[str]) -> Iterator[Record]:
        keys = [loose_key(run_id) for run_id in ids]
        for key, data in zip(keys, self._each(self.store.get, keys), strict=True):
            record = record_from_json(data, key)
            if loose_key(record.run.id) != key:
                raise damaged(key, f"the record of run {record.run.id}")
            yield record

    def _each(self, call: Callable[[_In], _Out], items: list[_In]) -> Iterator[_Out]:
        """`call` of each item in order; several at a time where each is a round trip."""
        if not self.store.is_remote:
            yield from map(call, items)
            return
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for start in range(0, len(items), 8 * _PARALLEL):  # bounded, so that a scan does not hold every object
                yield from pool.map(call, items[start : start + 8 * _PARALLEL])

    def _settled(self, look: Callable[[], _Out]) -> _Out:
        """What `look` gives, starting over while a compaction removes what it reads."""
        for _ in range(_MAX_PASSES):
            with contextlib.suppress(ObjectNotFoundError):
                return look()
        raise self._never_still()

    def _never_still(self) -> StoreError:
        return StoreError(
            f"records must stay in place while they are read, got {_MAX_PASSES} passes over {self.store.url} that each "
            "lost an object; let the compaction end and try again"
        )


def _winners(packed: dict[str, dict[str, int]]) -> dict[str, str]:
    """For each run the packed file with its lowest attempt; the first by name among equals."""
    best: dict[str, tuple[int, str]] = {}
    for key, attempts in packed.items():
        for run_id, attempt in attempts.items():
            best[run_id] = min(best.get(run_id, (attempt, key)), (attempt, key))
    return {run_id: key for run_id, (_, key) in best.items()}


def _read_table(
    data: bytes, key: str, columns: list[str] | None = None, filters: list[tuple[str, str, list[str]]] | None = None
) -> pa.Table:
    try:
        return pq.read_table(io.BytesIO(data), columns=columns, filters=filters)
    except (pa.ArrowException, OSError) as error:
        raise damaged(key, f"{len(data)} bytes that are not Parquet with our columns ({error})") from error
