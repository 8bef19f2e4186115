"""What the queue's actor tells in events; without Ray, because an actor is a plain object to itself."""

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from cluster.events import Event, EventLog, read_events
from cluster.objects import FolderStore
from cluster.plan import FailureKind
from cluster.queue import Lease
from cluster.queue_actor import QueueActor
from dass.errors import StoreError
from tests.cluster.builders import make_run
from tests.cluster.stores import WrappedStore

PATIENCE_S = 30.0
_T = TypeVar("_T")


def leased(queue: QueueActor, lane: str) -> Lease:
    lease = queue.lease(lane, 2).lease
    assert lease is not None
    return lease


def awaited(store: FolderStore | WrappedStore, kinds: Iterable[str]) -> list[Event]:
    """The queue's events when they are of these kinds, in this order; what there is after a time."""
    ends = time.monotonic() + PATIENCE_S
    while True:
        events = list(read_events(store, "queue"))
        if [event.kind for event in events] == list(kinds) or time.monotonic() > ends:
            return events
        time.sleep(0.05)


def test_an_expired_lease_is_told_with_its_lane_and_its_runs(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    runs = [make_run(number) for number in range(2)]
    queue = QueueActor(store.url, runs, lease_s=0.2)
    lease = leased(queue, "lane7")
    while queue.stats().running:
        time.sleep(0.05)
    started, expired, *failed = awaited(store, ["queue started", "lease expired", "failed", "failed"])
    assert started.fields == {"incarnation": 1, "planned": 2}
    assert expired.fields == {"token": "1-1", "holder": "lane7", "runs": sorted(run.id for run in lease.runs)}
    assert {event.fields["run"] for event in failed} == {run.id for run in runs}
    for event in failed:
        told = {key: event.fields[key] for key in ("token", "holder", "failure", "decision")}
        assert told == {"token": "1-1", "holder": "lane7", "failure": "lane lost", "decision": "retry"}


def test_what_an_earlier_life_of_a_lane_held_is_told(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    queue = QueueActor(store.url, [make_run(1)])
    leased(queue, "lane0")
    queue.arrive("lane1")
    queue.arrive("lane0")
    _, released, failed = awaited(store, ["queue started", "lease released", "failed"])
    assert released.fields == {"token": "1-1", "holder": "lane0", "failure": "lane lost", "runs": [make_run(1).id]}
    assert failed.fields["run"] == make_run(1).id


def test_what_a_lane_tells_itself_is_not_told_twice(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    queue = QueueActor(store.url, [make_run(number) for number in range(4)])
    broken, returned = leased(queue, "lane0"), leased(queue, "lane1")
    queue.fail([run.id for run in broken.runs], broken.token, FailureKind.ERROR, "broken")
    queue.arrive("lane1")
    _, released, *_ = awaited(store, ["queue started", "lease released", *["failed"] * len(returned.runs)])
    assert released.fields["runs"] == sorted(run.id for run in returned.runs)


class SlowStore(WrappedStore):
    """Answers when it may, and fails as long as it is told to."""

    def __init__(self, store: FolderStore) -> None:
        super().__init__(store)
        self.may_answer = threading.Event()
        self.fails = False

    def during(self, call: Callable[[], _T]) -> _T:
        if threading.current_thread() is not threading.main_thread():
            assert self.may_answer.wait(PATIENCE_S)
            if self.fails:
                raise StoreError("the store is down")
        return call()


def test_a_log_in_the_background_waits_for_no_store(tmp_path: Path) -> None:
    store = SlowStore(FolderStore(tmp_path))
    log = EventLog(store, "queue", segment_events=2, in_background=True)
    for number in range(5):  # would wait for ever if any of it waited
        log.emit(f"event {number}")
    log.flush()
    assert list(read_events(store)) == []
    store.may_answer.set()
    kinds = [f"event {number}" for number in range(5)]
    assert [event.kind for event in awaited(store, kinds)] == kinds


def test_a_log_in_the_background_tries_again_after_a_failure(tmp_path: Path) -> None:
    store = SlowStore(FolderStore(tmp_path))
    store.may_answer.set()
    store.fails = True
    log = EventLog(store, "queue", in_background=True)
    log.emit("first")
    log.flush()
    for thread in threading.enumerate():
        if thread.name == "events-queue":
            thread.join()
    assert list(read_events(store)) == []
    store.fails = False
    log.emit("second")
    log.flush()
    assert [event.kind for event in awaited(store, ["first", "second"])] == ["first", "second"]
