"""Stores around a real one: one that is killed at an operation, and one whose callers take turns."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from cluster.objects import Entry, ObjectStore

_T = TypeVar("_T")


class Killed(BaseException):
    """What a process that is killed would have done next never happens."""


class WrappedStore:
    """Every operation of a store through `during`, which a test overrides; listings are read at once."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store

    def during(self, call: Callable[[], _T]) -> _T:
        return call()

    @property
    def url(self) -> str:
        return self.store.url

    @property
    def is_remote(self) -> bool:
        return self.store.is_remote

    def put(self, key: str, data: bytes) -> None:
        self.during(lambda: self.store.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.during(lambda: self.store.put_if_absent(key, data))

    def get(self, key: str) -> bytes:
        return self.during(lambda: self.store.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.during(lambda: self.store.get_range(key, start, length))

    def exists(self, key: str) -> bool:
        return self.during(lambda: self.store.exists(key))

    def size(self, key: str) -> int:
        return self.during(lambda: self.store.size(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        return iter(self.during(lambda: [*self.store.list(prefix)]))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return iter(self.during(lambda: [*self.store.entries(prefix)]))

    def delete(self, key: str) -> None:
        self.during(lambda: self.store.delete(key))

    def check_writable(self) -> None:
        self.during(self.store.check_writable)


class KilledStore(WrappedStore):
    """Its caller is killed at the operation number `last`, just before it or just after."""

    def __init__(self, store: ObjectStore, last: int, *, is_after: bool) -> None:
        super().__init__(store)
        self.last = last
        self.is_after = is_after
        self.done = 0

    def during(self, call: Callable[[], _T]) -> _T:
        is_last = self.done == self.last
        if is_last and not self.is_after:
            raise Killed
        self.done += 1
        result = call()
        if is_last:
            raise Killed
        return result


@dataclass
class Turns:
    """Threads of which exactly one runs; at each of its operations chance decides which goes on.

    The same one goes on with the probability `patience`: only a long stretch of one lets another fall far behind.
    """

    random: Random
    patience: float

    def __post_init__(self) -> None:
        self._change = threading.Condition()
        self._waiting: set[str] = set()
        self._live: set[str] = set()
        self._chosen: str | None = None
        self._last: str | None = None
        self.errors: list[BaseException] = []

    def run(self, actors: dict[str, Callable[[], object]]) -> None:
        """Let all actors come to their end; the first error of one of them is raised."""
        self._live = set(actors)
        threads = [threading.Thread(target=self._act, args=item, name=item[0]) for item in actors.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def step(self) -> None:
        """Let chance decide who goes on; returns when it is the caller's turn."""
        name = threading.current_thread().name
        with self._change:
            self._waiting.add(name)
            self._choose()
            self._change.wait_for(lambda: self._chosen == name)
            self._chosen = None
            self._waiting.remove(name)

    def _act(self, name: str, actor: Callable[[], object]) -> None:
        try:
            self.step()
            actor()
        except BaseException as error:  # noqa: BLE001 - raised by `run`
            self.errors.append(error)
        finally:
            with self._change:
                self._live.remove(name)
                self._choose()

    def _choose(self) -> None:
        if self._waiting and self._waiting == self._live:
            if self._last not in self._waiting or self.random.random() >= self.patience:
                self._last = self.random.choice(sorted(self._waiting))
            self._chosen = self._last
            self._change.notify_all()


class TurnStore(WrappedStore):
    """A store whose callers take turns at every operation."""

    def __init__(self, store: ObjectStore, turns: Turns) -> None:
        super().__init__(store)
        self._turns = turns

    def during(self, call: Callable[[], _T]) -> _T:
        self._turns.step()
        return call()
