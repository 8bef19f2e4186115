"""The run database: which runs are done, and what they left. The only truth about either.

A record is one loose object from a single put. Compaction gathers loose records in packed Parquet files and deletes
them later, so a reader that lists loose objects first and packed files second misses none; an object that is gone
between listing and reading has been packed meanwhile, and the reader starts over. A run may be there more than once: a
packed record wins over a loose one, and among packed ones that of the lowest lease (incarnation, attempt).
"""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import TypeVar

from cluster.objects import ObjectStore
from cluster.outlines import OUTLINE_COLUMNS, Outlines, record_outline, row_outline
from cluster.packed import PACKED, SUFFIX, PackedIndex, read_columns, read_ids, read_rows
from cluster.parallel import PARALLEL, each
from cluster.schema import damaged, record_from_json, record_to_json
from cluster.tables import table_to_records
from dass.errors import ObjectNotFoundError, StoreError
from dass.records import Record, Run

LOOSE = "records/loose/"

_MAX_PASSES = 20  # each new pass means that a compaction removed objects since the last one
_FEW = 1000  # keys: one page of a listing; with fewer of them, one round trip does what 256 do
_SHARDS = tuple(f"{number:02x}" for number in range(256))

_Out = TypeVar("_Out")


def loose_key(run_id: str) -> str:
    """Where the record of a run is first written."""
    return f"{LOOSE}{run_id[:2]}/{run_id}.json"


def loose_id(key: str) -> str:
    """The run whose record lies under a loose key."""
    return key.rpartition("/")[2].removesuffix(".json")


def read_loose(data: bytes, key: str) -> Record:
    """The record under a loose key.

    Raises:
        StoreError: the bytes are damaged, or hold the record of another run.
        SchemaTooNewError: they were written by a newer version of this package.
    """
    record = record_from_json(data, key)
    if loose_key(record.run.id) != key:
        raise damaged(key, f"the record of run {record.run.id}")
    return record


class RunDatabase:
    """All records of a store. Keeps nothing but the id columns of the packed files, which never change."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._index = PackedIndex()

    def add(self, record: Record) -> bool:
        """Write the record in one step unless the run has one; True when this one is now the visible one.

        Safe to retry. Where a store cannot refuse a second writer, the last of them stays, and they agree but for
        their provenance.
        """
        if record.run.id in self.packed():
            return False
        return self.store.put_if_absent(loose_key(record.run.id), record_to_json(record))

    def finished_ids(self) -> set[str]:
        """The ids of all runs with a record, diverged ones included, from listings and packed id columns alone."""
        finished = set(map(loose_id, self.loose_keys()))  # loose before packed: see the top
        finished.update(self.packed().run_ids())
        return finished

    def pending(self, runs: Sequence[Run]) -> list[Run]:
        """Those of the runs that have no record, in their order; the ids of other runs are not held."""
        left = {run.id for run in runs}
        left.difference_update(map(loose_id, self.loose_keys()))  # loose before packed: see the top
        left.difference_update(self.packed().run_ids())
        return [run for run in runs if run.id in left]

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

    def loose_keys(self) -> Iterator[str]:
        """The keys of all loose records, sorted."""
        return self._listed(self.store.list)

    def outlines(self, always: Collection[str] = (), most_loose: int = 2000) -> Outlines:
        """Which runs have a record and what is quickly known of them, in seconds for 100,000 records.

        always: runs whose record is read in any case. most_loose: how many other loose records are read, the newest.

        Raises:
            StoreError, SchemaTooNewError: as in `scan`.
        """
        return self._settled(lambda: self._outlines(frozenset(always), most_loose))

    def packed(self) -> PackedIndex:
        """Where the packed records lie now; reads the ids of the files that are new since the last call."""
        return self._settled(self._look_at_packed)

    def _outlines(self, always: frozenset[str], most_loose: int) -> Outlines:
        loose = {loose_id(entry.key): entry.modified_at for entry in self._listed(self.store.entries)}
        index = self._look_at_packed()
        known = [
            row_outline(row, file.key)
            for file, rows in index.rows(None)
            for row in read_columns(self.store, file.entry, rows, OUTLINE_COLUMNS).to_pylist()
        ]
        left = sorted(loose.keys() - set(index.run_ids()), key=lambda run_id: (run_id in always, loose[run_id]))
        read = left[max(0, len(left) - most_loose - len(always)) :]
        known += map(record_outline, self._read_loose(read))
        return Outlines(loose.keys() | set(index.run_ids()), {each.run_id: each for each in known}, loose)

    def _listed(self, listing: Callable[[str], Iterator[_Out]]) -> Iterator[_Out]:
        """What `listing` gives of all loose records, in their keys' order; a long remote one in shards."""
        if not self.store.is_remote:
            return listing(LOOSE)
        first = list(itertools.islice(listing(LOOSE), _FEW))
        if len(first) < _FEW:
            return iter(first)
        prefixes = [f"{LOOSE}{shard}/" for shard in _SHARDS]
        return itertools.chain.from_iterable(each(self.store, lambda prefix: list(listing(prefix)), prefixes))

    def _pass(self, wanted: frozenset[str] | None, seen: set[str]) -> Iterator[Record]:
        """Every wanted record that was not seen; ObjectNotFoundError when a compaction came in between."""
        loose = self._loose(wanted) - seen
        index = self._look_at_packed()
        loose -= {run_id for run_id, is_packed in zip(loose, index.has(list(loose)), strict=True) if is_packed}
        for file, rows in index.rows(wanted, seen):
            yield from table_to_records(read_rows(self.store, file.entry, rows), file.key)
        yield from self._read_loose(sorted(loose))

    def _loose(self, wanted: frozenset[str] | None) -> set[str]:
        """The ids of the loose records, of all runs or of the wanted ones."""
        if wanted is not None and len(wanted) <= PARALLEL:
            return {run_id for run_id in wanted if self.store.exists(loose_key(run_id))}
        ids = set(map(loose_id, self.loose_keys()))
        return ids if wanted is None else ids & wanted

    def _look_at_packed(self) -> PackedIndex:
        entries = [entry for entry in self.store.entries(PACKED) if entry.key.endswith(SUFFIX)]
        known = {file.key: file for file in self._index.files}
        if known.keys() != {entry.key for entry in entries}:
            new = [entry for entry in entries if entry.key not in known]
            known |= {file.key: file for file in read_ids(self.store, new)}
            self._index = PackedIndex(known[entry.key] for entry in entries)
        return self._index

    def _read_loose(self, ids: Iterable[str]) -> Iterator[Record]:
        keys = [loose_key(run_id) for run_id in ids]
        yield from map(read_loose, each(self.store, self.store.get, keys), keys)

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
