import threading
import time
from collections.abc import Iterator

import pytest
import torch

from dass.threads import one_thread, workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_one_thread_gives_back_what_it_took_after_an_error_too() -> None:
    with one_thread():
        assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="of the block"), one_thread():
        raise ValueError("of the block")
    assert torch.get_num_threads() == 3


def test_results_come_in_the_order_of_the_values_whoever_is_done_first() -> None:
    def wait(number: int) -> int:
        time.sleep(0.02 * (number == 0))
        return number

    with workers(CPU) as each:
        assert list(each(wait, range(6))) == [0, 1, 2, 3, 4, 5]


def test_as_many_values_as_threads_are_worked_on_at_once_each_on_one_thread() -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(_: int) -> int:
        together.wait()
        return torch.get_num_threads()

    with workers(CPU) as each:
        assert list(each(meet, range(6))) == [1] * 6
    assert torch.get_num_threads() == 3


def test_an_error_of_a_worker_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError), workers(CPU) as each:
        list(each(lambda number: 1 // number, [1, 0]))
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("threads", "device"), [(1, "cpu"), (3, "cuda"), (3, "meta")])
def test_one_thread_and_other_devices_need_no_workers(threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    with workers(torch.device(device)) as each:
        assert list(each(lambda _: threading.current_thread(), [0])) == [threading.main_thread()]
        assert torch.get_num_threads() == threads
