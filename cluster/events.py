"""What happened and how it goes on: an append-only log of JSON lines in segments, and progress with an ETA.

An object store cannot append, so a writer gathers its events and writes them as numbered segments that never change.
What was not flushed when a writer is killed is lost, and after a failed write an event may be there twice; the run
database depends on neither.

    by         kinds of events, each with the fields that it has of: run or runs, token, step, reason, decision
    lanes      lane started, lane ended, cohort, cohort size, cohort halved, ended, failed, returned, lease lost or kept, cache
    the queue  queue started, lease expired, lease released, failed (for lanes that cannot tell any more)
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.objects import ObjectStore
from cluster.parallel import each
from cluster.schema import damaged, encode_json
from cluster.typed import read_value
from dass.errors import ConfigError, StoreError
from dass.json_text import parse_json

FOLDER = "events/"


@dataclass(frozen=True)
class Event:
    """One thing that happened: when (UTC, ISO 8601), where, what, and its details, such as run, attempt and step."""

    time: str
    lane: str
    kind: str
    fields: Mapping[str, Any]


def _utc_now() -> datetime:
    return datetime.now(UTC)


class EventLog:
    """The events of one lane; may be used from several threads, and closes itself at the end of a `with` block.

    Args:
        store: where the segments go.
        lane: the part of the key after events/; two writers may share it.
        segment_events: how many events are gathered before they are written.
        clock: the time, with its zone.
        in_background: write from a thread, for a writer that must neither wait for the store nor fail with it; what
            could not be written is tried again with the next segment.
    """

    def __init__(
        self,
        store: ObjectStore,
        lane: str,
        segment_events: int = 200,
        clock: Callable[[], datetime] = _utc_now,
        *,
        in_background: bool = False,
    ) -> None:
        if segment_events < 1:
            raise ConfigError(f"a segment must hold >= 1 events, got {segment_events}; set segment_events")
        self._store = store
        self._lane = lane
        self._segment_events = segment_events
        self._clock = clock
        self._in_background = in_background
        self._lines: list[bytes] = []
        self._next_segment: int | None = None
        self._gathering = threading.Lock()
        self._writing = threading.Lock()

    def emit(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 - JSON-able details
        """Note an event; a number that is not finite becomes a text. Writes a segment when enough are gathered."""
        now = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        line = encode_json({"time": now, "lane": self._lane, "kind": kind, "fields": fields})
        with self._gathering:
            self._lines.append(line)
            is_full = len(self._lines) >= self._segment_events
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered as a segment; after a StoreError it is still gathered."""
        if self._in_background:
            threading.Thread(target=self._write_or_keep, name=f"events-{self._lane}", daemon=True).start()
        else:
            self._write()

    def close(self) -> None:
        """Write the last segment; the log may still be used."""
        self.flush()

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_or_keep(self) -> None:
        with suppress(StoreError):
            self._write()

    def _write(self) -> None:
        with self._writing:  # held while the store is slow, so not the lock that `emit` needs
            with self._gathering:
                lines = tuple(self._lines)
            if not lines:
                return
            data = b"".join(line + b"\n" for line in lines)
            if self._next_segment is None:
                self._next_segment = self._first_free_segment()
            while not self._store.put_if_absent(self._key(self._next_segment), data):
                self._next_segment += 1
            self._next_segment += 1
            with self._gathering:
                del self._lines[: len(lines)]

    def _first_free_segment(self) -> int:
        names = [key.rpartition("/")[2].removesuffix(".jsonl") for key in self._store.list(f"{FOLDER}{self._lane}/")]
        return max((int(name) for name in names if name.isdecimal()), default=0) + 1

    def _key(self, segment: int) -> str:
        return f"{FOLDER}{self._lane}/{segment:08d}.jsonl"


def read_events(store: ObjectStore, lane: str | None = None) -> Iterator[Event]:
    """The events of one lane in the order of its segments, or of all lanes, one after another.

    Raises:
        StoreError: a segment is damaged; the message names it.
    """
    for key in store.list(f"{FOLDER}{lane}/" if lane else FOLDER):
        yield from _events(store.get(key), key)


def read_newest(store: ObjectStore, most_segments: int) -> list[Event]:
    """The events of the segments that were written last, by their time; errors as in `read_events`."""
    entries = sorted(store.entries(FOLDER), key=lambda entry: entry.modified_at)
    keys = [entry.key for entry in entries[max(0, len(entries) - most_segments) :]]
    read = zip(each(store, store.get, keys), keys, strict=True)
    return sorted((event for data, key in read for event in _events(data, key)), key=lambda event: event.time)


def _events(data: bytes, key: str) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            event = read_value(Event, parse_json(line))
            if datetime.fromisoformat(event.time).tzinfo is None:
                raise ValueError("its time has no zone")
            yield event
        except ValueError as error:
            raise damaged(key, f"the line {line[:80]!r}") from error


@dataclass(frozen=True)
class Progress:
    """How far a job has come, how fast it goes and when it ends; `after` gives the next state.

    The rate is done per second, averaged with weights that halve every `half_life_s` into the past: at first a plain
    average over all the time, later one over the recent past, so that a slow start is forgotten. It does not depend on
    how often one looks.

    Args:
        total: what there is to do, in any unit.
        done: what is done, parts of runs included if one likes, and what was done before this job began.
        elapsed_s: seconds since this job began.
        weighted_done, weighted_s: sums of what was done and of the seconds, each with its weight.
    """

    total: float
    done: float = 0
    elapsed_s: float = 0.0
    half_life_s: float = 600.0
    weighted_done: float = 0.0
    weighted_s: float = 0.0

    def after(self, done: float, elapsed_s: float, total: float | None = None) -> "Progress":
        """The state when `done` is done at `elapsed_s`; a time that does not advance only changes the counts."""
        step_s = max(elapsed_s - self.elapsed_s, 0.0)
        kept = 0.5 ** (step_s / self.half_life_s)
        return Progress(
            total=self.total if total is None else total,
            done=done,
            elapsed_s=max(elapsed_s, self.elapsed_s),
            half_life_s=self.half_life_s,
            weighted_done=self.weighted_done * kept + (done - self.done) * _mean_weight(step_s, self.half_life_s),
            weighted_s=self.weighted_s * kept + step_s * _mean_weight(step_s, self.half_life_s),
        )

    @property
    def rate_per_s(self) -> float | None:
        """Done per second; None as long as nothing was done."""
        return self.weighted_done / self.weighted_s if self.weighted_done > 0 and self.weighted_s > 0 else None

    @property
    def eta_s(self) -> float | None:
        """Seconds until all is done at this rate; None as long as there is no rate."""
        remaining = max(self.total - self.done, 0)
        if not remaining:
            return 0.0
        return remaining / self.rate_per_s if self.rate_per_s else None


def _mean_weight(step_s: float, half_life_s: float) -> float:
    """The mean over the last `step_s` seconds of the weight 2^(-age / half life)."""
    decay = step_s / half_life_s * math.log(2)
    return -math.expm1(-decay) / decay if decay > 0 else 1.0
