"""Packed files, records/packed/<task>/<hash>.parquet: which runs they hold, and where each run's record lies.

A file never changes, so what its id columns say is read once. A remote file is read in ranges: its end, which tells
where the columns are, and then the wanted columns or groups of rows, a few round trips whatever the file's length.
"""

import io
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.objects import KEY_PART, Entry, ObjectStore
from cluster.parallel import each
from cluster.schema import damaged
from cluster.tables import ARROW_ERRORS, ID_COLUMNS, check_expansion, not_parquet, upgraded
from dass.errors import ObjectNotFoundError

PACKED = "records/packed/"
SUFFIX = ".parquet"

_TAIL_BYTES = 64 * 1024  # holds the footer of a file of 20,000 rows, and all of a small file
_WHOLE = 0.5  # share of a file's groups from which on one read of the whole file is cheaper

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False)
class PackedFile:
    """The id columns of one file: its i-th row is the run `ids[i]` of the lease (incarnations[i], attempts[i])."""

    entry: Entry
    ids: npt.NDArray[np.bytes_]
    incarnations: npt.NDArray[np.int64]
    attempts: npt.NDArray[np.int64]

    @property
    def key(self) -> str:
        """Where it lies."""
        return self.entry.key

    @property
    def task(self) -> str:
        """The task whose runs it holds."""
        return self.key.removeprefix(PACKED).partition("/")[0]


class PackedIndex:
    """Which row of which file is the record of a run: the one of the lowest lease, of equal ones the first by name.

    Rows are put in order when they are first asked for: which runs there are, a resume knows without.
    """

    def __init__(self, files: Iterable[PackedFile] = ()) -> None:
        self.files = tuple(sorted(files, key=lambda file: file.key))

    @cached_property
    def _chosen(self) -> "_Chosen":
        ids = _joined([file.ids for file in self.files], "S1")
        numbers = np.repeat(np.arange(len(self.files)), [len(file.ids) for file in self.files])
        rows = _joined([np.arange(len(file.ids)) for file in self.files], np.int64)
        leases = [
            _joined([getattr(file, name) for file in self.files], np.int64) for name in ("attempts", "incarnations")
        ]
        order = np.lexsort((rows, numbers, *leases, ids))
        ids = ids[order]
        is_first = np.ones(len(ids), bool)
        is_first[1:] = ids[1:] != ids[:-1]
        return _Chosen(ids[is_first], numbers[order][is_first], rows[order][is_first])

    def __len__(self) -> int:
        return len(self._chosen.ids)

    def __contains__(self, run_id: str) -> bool:
        return bool(self.has([run_id])[0])

    def has(self, run_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """For each of the runs whether a packed file holds it."""
        wanted, ids = id_array(run_ids), self._chosen.ids
        places = np.searchsorted(ids, wanted)
        found = np.zeros(len(wanted), bool)
        inside = places < len(ids)
        found[inside] = ids[places[inside]] == wanted[inside]
        return found

    def run_ids(self) -> Iterator[str]:
        """All runs, file by file; one that several files hold comes as often."""
        for file in self.files:
            yield from file.ids.astype(str).tolist()

    def rows(
        self, wanted: Collection[str] | None, unwanted: Collection[str] = ()
    ) -> Iterator[tuple[PackedFile, npt.NDArray[np.int64]]]:
        """The files that hold records of `wanted` runs (None: of all) that are not in `unwanted`, and in which rows."""
        ids = self._chosen.ids
        is_asked = np.ones(len(ids), bool) if wanted is None else np.isin(ids, id_array(wanted))
        if unwanted:
            is_asked &= ~np.isin(ids, id_array(unwanted))
        numbers, rows = self._chosen.numbers[is_asked], self._chosen.rows[is_asked]
        for number in np.unique(numbers):
            yield self.files[number], np.sort(rows[numbers == number])


@dataclass(frozen=True, eq=False)
class _Chosen:
    """All runs in their ids' order, each once, and of each the number of its file and the row there."""

    ids: npt.NDArray[np.bytes_]
    numbers: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def id_array(run_ids: Collection[str]) -> npt.NDArray[np.bytes_]:
    """Run ids, which are ASCII, as one array."""
    return np.array(list(run_ids), dtype=bytes) if run_ids else np.array([], dtype="S1")


def read_ids(store: ObjectStore, entries: Sequence[Entry]) -> Iterator[PackedFile]:
    """The id columns of files, in order.

    Several are read at a time where each is a round trip. Arrays are made of them on one thread: what a computation takes,
    Arrow keeps for each thread that ever did one.

    Raises:
        ObjectNotFoundError: one is gone. StoreError: one is damaged, or of a newer version.
    """
    for entry, table in zip(entries, each(store, lambda entry: _id_columns(store, entry), entries), strict=True):
        yield _packed_file(entry, table)


def _id_columns(store: ObjectStore, entry: Entry) -> pa.Table:
    with _opened(store, entry) as file:
        names = [name for name in ID_COLUMNS if name in file.schema_arrow.names]
        return upgraded(_read(file, entry, range(file.num_row_groups), names), entry.key, ID_COLUMNS)


def _packed_file(entry: Entry, table: pa.Table) -> PackedFile:
    names = table.column("run_id")
    if not pc.all(pc.match_substring_regex(names, rf"\A{KEY_PART.pattern}\z"), skip_nulls=False, min_count=0).as_py():
        raise damaged(entry.key, "run ids that are none")
    ids = _bytes_of(names)
    return PackedFile(entry, ids, *(table.column(name).to_numpy().astype(np.int64) for name in ID_COLUMNS[2:]))


def read_columns(store: ObjectStore, entry: Entry, rows: npt.NDArray[np.int64], names: Sequence[str]) -> pa.Table:
    """Some columns of some rows of a file; errors as in `read_rows`."""
    with _opened(store, entry) as file:
        present = [name for name in dict.fromkeys((*ID_COLUMNS, *names)) if name in file.schema_arrow.names]
        table = _read(file, entry, range(file.num_row_groups), present)
        return upgraded(table, entry.key, ("schema", *names)).select(list(names)).take(rows)


def read_rows(store: ObjectStore, entry: Entry, rows: npt.NDArray[np.int64]) -> pa.Table:
    """Some rows of a file, in the order given, which must rise; no more is read than the groups that hold them.

    Raises:
        ObjectNotFoundError: it is gone. StoreError: it is damaged, or of a newer version.
    """
    with _opened(store, entry) as file:
        lengths = np.array([file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)])
        ends = np.cumsum(lengths)
        groups, kept = np.unique(np.searchsorted(ends, rows, side="right"), return_inverse=True)
        if len(groups) >= _WHOLE * len(ends):
            file.close()
            whole = io.BytesIO(store.get(entry.key))
            with _parquet(whole, entry.key) as all_of_it:
                return upgraded(_read(all_of_it, entry, range(len(ends))), entry.key).take(rows)
        before = np.cumsum(lengths[groups]) - lengths[groups]
        places = rows - (ends - lengths)[groups][kept] + before[kept]
        return upgraded(_read(file, entry, groups.tolist()), entry.key).take(places)


def _opened(store: ObjectStore, entry: Entry) -> pq.ParquetFile:
    return _parquet(_RangeFile(store, entry), entry.key)


def _parquet(source: io.IOBase, key: str) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(source, pre_buffer=True, page_checksum_verification=True)
    except ObjectNotFoundError:
        raise
    except ARROW_ERRORS as error:
        raise not_parquet(key, error) from error
    check_expansion(file.metadata, source.seek(0, io.SEEK_END), key)
    return file


def _read(file: pq.ParquetFile, entry: Entry, groups: Sequence[int], columns: list[str] | None = None) -> pa.Table:
    try:
        return file.read_row_groups(list(groups), columns=columns)
    except ARROW_ERRORS as error:
        raise not_parquet(entry.key, error) from error


class _RangeFile(io.RawIOBase):
    """An object as the read-only file that pyarrow wants; its end is fetched once, whatever lies there."""

    def __init__(self, store: ObjectStore, entry: Entry) -> None:
        super().__init__()
        self._store = store
        self._entry = entry
        self._position = 0
        self._tail_at = max(0, entry.size_bytes - _TAIL_BYTES)
        self._tail = b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (
            offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size_bytes}[whence]
        )
        return self._position

    def read(self, size: int = -1) -> bytes:
        start = self._position
        length = self._entry.size_bytes - start if size < 0 else min(size, self._entry.size_bytes - start)
        data = self._range(start, max(0, length))
        self._position += len(data)
        return data

    def _range(self, start: int, length: int) -> bytes:
        if start < self._tail_at:
            return self._store.get_range(self._entry.key, start, length)
        if not self._tail:
            self._tail = self._store.get_range(self._entry.key, self._tail_at, _TAIL_BYTES)
        return self._tail[start - self._tail_at : start - self._tail_at + length]


def _bytes_of(names: pa.ChunkedArray) -> npt.NDArray[np.bytes_]:
    """ASCII texts as one array, without a Python object for each: padded to one length, they lie side by side."""
    length = pc.max(pc.binary_length(names)).as_py() or 1
    padded = pc.ascii_rpad(names, length, padding="\0").combine_chunks()
    return np.frombuffer(padded.buffers()[2], f"S{length}", len(padded), padded.offset * length).copy()


def _joined(arrays: list[npt.NDArray[_Scalar]], dtype: npt.DTypeLike) -> npt.NDArray[_Scalar]:
    return np.concatenate(arrays) if arrays else np.array([], dtype)
