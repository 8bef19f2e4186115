import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.events import Event, EventLog, Progress, read_events
from cluster.objects import FolderStore
from dass.errors import ConfigError, StoreError
from tests.cluster.builders import RemoteMemoryStore

NOON = datetime(2025, 1, 2, 12, 0, 0, 250_000, tzinfo=UTC)


def test_events_come_back_in_order(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with EventLog(store, "lane-0", clock=lambda: NOON) as log:
        log.emit("leased", run="abc", attempt="1-2")
        log.emit("finished", run="abc", step=500, accuracy_pct=62.5)
    assert list(read_events(store)) == [
        Event("2025-01-02T12:00:00.250+00:00", "lane-0", "leased", {"run": "abc", "attempt": "1-2"}),
        Event("2025-01-02T12:00:00.250+00:00", "lane-0", "finished", {"run": "abc", "step": 500, "accuracy_pct": 62.5}),
    ]


def test_times_are_utc_whatever_the_clock_says(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with EventLog(store, "lane-0", clock=lambda: NOON.astimezone(timezone(timedelta(hours=5)))) as log:
        log.emit("started")
    assert next(read_events(store)).time == "2025-01-02T12:00:00.250+00:00"


def test_segments_are_json_lines_that_roll(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    log = EventLog(store, "lane-0", segment_events=3)
    for step in range(7):
        log.emit("step", step=step)
    assert list(store.list()) == ["events/lane-0/00000001.jsonl", "events/lane-0/00000002.jsonl"]
    log.flush()
    log.flush()
    log.close()
    assert len(list(store.list())) == 3
    lines = store.get("events/lane-0/00000001.jsonl").splitlines()
    assert [json.loads(line)["fields"]["step"] for line in lines] == [0, 1, 2]
    assert [event.fields["step"] for event in read_events(store)] == list(range(7))


def test_a_restarted_lane_adds_segments_and_overwrites_none(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for restart in range(3):
        with EventLog(store, "lane-0") as log:
            log.emit("started", restart=restart)
    assert [event.fields["restart"] for event in read_events(store)] == [0, 1, 2]


def test_two_writers_of_one_lane_keep_each_others_events(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    logs = [EventLog(store, "lane-0", segment_events=1) for _ in range(2)]
    for step in range(6):
        logs[step % 2].emit("step", step=step)
    assert sorted(event.fields["step"] for event in read_events(store)) == list(range(6))


def test_threads_share_a_log(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with EventLog(store, "lane-0", segment_events=7) as log, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda step: log.emit("step", step=step), range(100)))
    assert sorted(event.fields["step"] for event in read_events(store)) == list(range(100))


def test_events_of_one_lane_are_read_alone(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for lane in ("lane-1", "lane-10"):
        with EventLog(store, lane) as log:
            log.emit("started")
    assert [event.lane for event in read_events(store, "lane-1")] == ["lane-1"]
    assert [event.lane for event in read_events(store)] == ["lane-1", "lane-10"]


def test_a_loss_that_is_not_a_number_can_be_told(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with EventLog(store, "lane-0") as log:
        log.emit("diverged", loss=math.nan)
    assert next(read_events(store)).fields == {"loss": "NaN"}


class FullStore(RemoteMemoryStore):
    is_full = True

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if self.is_full:
            raise StoreError("the disk is full")
        return super().put_if_absent(key, data)


def test_a_failed_write_loses_no_event() -> None:
    store = FullStore()
    log = EventLog(store, "lane-0")
    log.emit("first")
    with pytest.raises(StoreError):
        log.flush()
    store.is_full = False
    log.emit("second")
    log.flush()
    assert [event.kind for event in read_events(store)] == ["first", "second"]


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("events/lane-0/00000001.jsonl", b'{"time": "now"}\n')
    with pytest.raises(StoreError, match=r"events/lane-0/00000001\.jsonl must hold"):
        list(read_events(store))
    with pytest.raises(ConfigError, match="got 0"):
        EventLog(store, "lane-0", segment_events=0)


def test_progress_at_a_steady_pace_is_exact() -> None:
    progress = Progress(total=100)
    assert progress.rate_per_s is None
    assert progress.eta_s is None
    for second in range(10, 250, 10):
        progress = progress.after(done=second // 5, elapsed_s=float(second))
        assert progress.rate_per_s == pytest.approx(0.2)
        assert progress.eta_s == pytest.approx((100 - second // 5) / 0.2)


def test_nothing_done_gives_no_eta_and_all_done_gives_zero() -> None:
    waiting = Progress(total=10).after(0, 300.0)
    assert waiting.eta_s is None
    assert waiting.after(10, 400.0).eta_s == 0.0
    assert Progress(total=0).eta_s == 0.0


def test_a_slow_start_is_forgotten_by_half_lives() -> None:
    progress = Progress(total=10_000, half_life_s=100.0).after(0, 500.0)  # the cluster comes up
    for second in range(510, 1501, 10):
        progress = progress.after(second - 500, float(second))  # then 1 per second
    plain_average = 1000 / 1500
    assert progress.rate_per_s == pytest.approx(1.0, abs=0.002)
    assert plain_average < 0.7


def test_what_earlier_jobs_did_counts_as_done_and_not_as_speed() -> None:
    progress = Progress(total=1000, done=900).after(910, 100.0)
    assert progress.rate_per_s == pytest.approx(0.1)
    assert progress.eta_s == pytest.approx(900.0)


def test_a_plan_may_grow() -> None:
    assert Progress(total=10).after(5, 50.0, total=20).eta_s == pytest.approx(150.0)


@given(st.lists(st.floats(0.1, 500), min_size=2, max_size=12), st.floats(0.01, 100))
def test_the_rate_does_not_depend_on_how_often_one_looks(steps_s: list[float], rate: float) -> None:
    """A pace that changes once: looked at in every step, or only where it changes."""
    slow_s, fast_s = steps_s[0], sum(steps_s[1:])
    once = Progress(10**9, done=0).after(0, slow_s).after(1000, slow_s + fast_s)
    often, elapsed_s = Progress(10**9).after(0, slow_s), slow_s
    exact = 2.0 ** (-fast_s / 600)
    for step_s in steps_s[1:]:
        elapsed_s += step_s
        often = often.after(often.done + 1000 * step_s / fast_s, elapsed_s)
    assert once.weighted_s == pytest.approx(often.weighted_s)
    assert once.weighted_done == pytest.approx(often.weighted_done)
    closed_form_s = 600 / math.log(2) * (1 - exact * 2.0 ** (-slow_s / 600))
    assert often.weighted_s == pytest.approx(closed_form_s)
