"""Calls on a store, several at a time where each is a round trip."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cluster.objects import ObjectStore

PARALLEL = 32  # calls at a time on a remote store

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def each(store: ObjectStore, call: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    """`call` of each item in order; what is ahead of the caller is bounded, so that it never holds every object."""
    if not store.is_remote:
        yield from map(call, items)
        return
    with ThreadPoolExecutor(PARALLEL) as pool:
        for start in range(0, len(items), 8 * PARALLEL):
            yield from pool.map(call, items[start : start + 8 * PARALLEL])
