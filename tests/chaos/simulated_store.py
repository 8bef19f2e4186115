"""An ObjectStore in memory whose calls take virtual time and fail as a network's do.

A call has an instant of effect somewhere between its begin and its end. Its caller may be killed before, after, or so
that a write takes effect later than its writer's death; the store may be down, or lose a single request or its answer.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from cluster.objects import Entry, check_key
from dass.errors import ObjectNotFoundError, StoreError
from tests.chaos.kernel import World
from tests.cluster.stores import Killed

EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
LATENCY_S = 0.05
PATIENCE_S = 4.0  # for how long a call tries while the store is down
STRAGGLE_S = 8.0  # for how long a request may be under way after its sender's death
STRAGGLERS = 0.3
ANSWER = 0.3  # share of the calls whose answer takes a while of its own

_T = TypeVar("_T")


class Watcher(Protocol):
    """What is told of every change at the instant of its effect."""

    def before(self, who: str, operation: str, key: str) -> None: ...

    def written(self, who: str, key: str, data: bytes) -> None: ...

    def deleted(self, who: str, key: str) -> None: ...


class SimulatedStore:
    """See the top. `objects` is what it holds; a test may look at it at any time."""

    url = "memory"
    is_remote = False

    def __init__(self, world: World, watcher: Watcher) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified_s: dict[str, float] = {}
        self.down_until = 0.0
        self.failing = 0.0  # share of the calls that fail
        self._world = world
        self._watcher = watcher

    def put(self, key: str, data: bytes) -> None:
        self._write("put", key, lambda who: self._set(who, key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._write("put_if_absent", key, lambda who: key not in self.objects and self._set(who, key, data))

    def delete(self, key: str) -> None:
        self._write("delete", key, lambda who: self._remove(who, key))

    def get(self, key: str) -> bytes:
        return self._read("get", key, lambda: self._found(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._read("get_range", key, lambda: self._found(key)[start : start + length])

    def exists(self, key: str) -> bool:
        return self._read("exists", key, lambda: key in self.objects)

    def size(self, key: str) -> int:
        return self._read("size", key, lambda: len(self._found(key)))

    def list(self, prefix: str = "") -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Page by page: what comes and goes between two pages may be seen or not."""
        last, length = "", self._world.random.choice((2, 5, 1000))
        while True:
            page = self._read("list", prefix, lambda last=last: self._page(prefix, last, length))  # type: ignore[misc]
            yield from page
            if len(page) < length:
                return
            last = page[-1].key

    def check_writable(self) -> None:
        self._read("check", "", lambda: None)

    def _page(self, prefix: str, last: str, length: int) -> Sequence[Entry]:
        keys = sorted(key for key in self.objects if key > last and key.startswith(prefix))[:length]
        return [Entry(key, len(self.objects[key]), EPOCH + timedelta(seconds=self.modified_s[key])) for key in keys]

    def _found(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectNotFoundError(f"an object must exist to be read, got none under {key!r}")
        return self.objects[key]

    def _set(self, who: str, key: str, data: bytes) -> bool:
        self.objects[key] = data
        self.modified_s[key] = self._world.now
        self._watcher.written(who, key, data)
        return True

    def _remove(self, who: str, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            self._watcher.deleted(who, key)

    def _read(self, operation: str, key: str, effect: Callable[[], _T]) -> _T:
        self._travel(operation, key)
        result = effect()
        self._answer(operation, key)
        return result

    def _write(self, operation: str, key: str, effect: Callable[[str], _T]) -> _T:
        who = self._world.process.name
        try:
            self._travel(operation, check_key(key))
        except Killed:
            if self._world.random.random() < STRAGGLERS and not self._world.is_closed:
                self._world.counts["write that outlives its writer"] += 1
                self._world.at(self._world.random.uniform(0, STRAGGLE_S), self._late, who, operation, key, effect)
            raise
        result = effect(who)
        self._world.note(who, operation, key, result)
        self._watcher.before(who, f"{operation} done", key)
        self._answer(operation, key)
        return result

    def _late(self, who: str, operation: str, key: str, effect: Callable[[str], object]) -> None:
        self._world.note(who, f"{operation} after its death", key, effect(who))

    def _travel(self, operation: str, key: str) -> None:
        world = self._world
        self._watcher.before(world.process.name, operation, key)
        world.sleep(world.random.expovariate(1 / LATENCY_S))
        if world.now < self.down_until:
            world.sleep(PATIENCE_S)
            if world.now < self.down_until:
                raise StoreError(f"the store must answer, cannot {operation} {key}: it is down; submit again later")
        self._fail("request", operation, key)

    def _answer(self, operation: str, key: str) -> None:
        world = self._world
        if world.random.random() < ANSWER:
            world.sleep(world.random.expovariate(1 / LATENCY_S))
        self._fail("answer", operation, key)

    def _fail(self, part: str, operation: str, key: str) -> None:
        if self.failing and self._world.random.random() < self.failing / 2:
            self._world.counts[f"store: lost {part}"] += 1
            self._world.note(self._world.process.name, f"{operation} failed", key, part)
            raise StoreError(f"the store must answer, lost the {part} of {operation} {key}; submit again later")
