"""Torch on a CPU: one thread alone, or several that each compute alone."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class Each(Protocol):
    """Like `map` with one iterable: the results in the order of the values."""

    def __call__(self, call: Callable[[T], R], values: Iterable[T], /) -> Iterable[R]:
        """What `call` gives for each value."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: with another number of them sums are added in another order, to other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def workers(device: torch.device) -> Iterator[Each]:
    """A `map` whose values are worked on at the same time, by as many workers as torch has threads, each on one.

    So results have the same bits whatever the number of threads, and work made of many small calls keeps all cores
    busy. On one thread, and on another device than the CPU, it is `map` itself.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    with one_thread(), ThreadPoolExecutor(threads, "worker", torch.set_num_threads, (1,)) as pool:
        yield pool.map
