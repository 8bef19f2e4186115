"""What lanes say of themselves, how it gets into the store, and what a reader makes of it."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import ray
import torch

from cluster.checkpoints import Token
from cluster.lane_reports import FOLDER, SKEW_S, Heard, LaneReport, LaneReporter, LaneReports, LaneState
from cluster.objects import Entry, FolderStore, ObjectStore
from cluster.runtime import device_name, session
from cluster.settings import LaneConfig
from dass.errors import ConfigError, StoreError
from dass.kd.cohort import Ended, Progress
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run
from tests.cluster.lane_site import LANES, RECIPE, in_process, make_site, queue_of

CPU = torch.device("cpu")
SETTINGS = LaneConfig(cpus=2.0, report_s=0.05, lease_s=10.0)


def reporter(store: ObjectStore, settings: LaneConfig = SETTINGS) -> LaneReporter:
    return LaneReporter(store, "lane0", "queue-1", CPU, settings)


def only(store: ObjectStore) -> LaneReport:
    (heard,) = LaneReports(store).read()
    return heard.report


def until(store: ObjectStore, state: LaneState) -> LaneReport:
    """The first report of this state that arrives; the test's own timeout ends the wait."""
    while True:
        for heard in LaneReports(store).read():
            if heard.report.state is state:
                return heard.report
        time.sleep(0.01)


def test_a_report_says_what_the_lane_holds_and_how_far_it_has_come(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with reporter(store) as lane:
        first = until(store, LaneState.STARTING)
        lane.hold(Token(3, 7), "birds", ["a", "b", "c"])
        lane.begin(step=40, images_per_step=16)
        lane.note(Progress(60, 100, 2), 3, ["a", "b", "c"])
        done = make_record(make_run(0))
        lane.note(Progress(80, 100, 3, (Ended(done.run, done.result, None, 1.0),)), 2, ["a", "b"])
        while (report := until(store, LaneState.TRAINING)).step < 80:
            pass
        lane.wait()
        waiting = until(store, LaneState.WAITING)
    assert (first.device, first.devices, first.queue) == (device_name(CPU), 2.0, "queue-1")
    assert (report.task, report.token, report.runs, report.recorded) == ("birds", "3-7", ("a", "b"), 1)
    assert (report.step, report.num_steps, report.epoch, report.cohort) == (80, 100, 3, 2)
    assert report.student_steps == 3 * 20 + 3 * 20
    assert report.images_per_s == pytest.approx(16 * report.student_steps_per_s, abs=0.01)
    assert report.memory_bytes > 10**6
    assert (waiting.runs, waiting.task) == ((), "")
    assert only(store).state is LaneState.ENDED


def test_all_seconds_are_busy_or_idle(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    began = time.monotonic()
    with reporter(store) as lane:
        time.sleep(0.2)
        lane.hold(Token(1, 1), "birds", ["a"])
        time.sleep(0.4)
        lane.wait()
        time.sleep(0.1)
    took = time.monotonic() - began
    last = only(store)
    assert last.idle_s >= 0.3
    assert last.busy_s >= 0.4
    assert last.busy_s + last.idle_s == pytest.approx(took, abs=0.2)
    assert last.device_s == pytest.approx(2 * (last.busy_s + last.idle_s))


def test_every_life_of_a_lane_has_its_own_report(tmp_path: Path) -> None:
    for _ in range(3):
        with reporter(FolderStore(tmp_path)):
            pass
    assert len(LaneReports(FolderStore(tmp_path)).read()) == 3


class DownStore(RemoteMemoryStore):
    """A store that fails for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = threading.Event()
        self.failed = threading.Event()

    def put(self, key: str, data: bytes) -> None:
        if self.is_down.is_set():
            self.failed.set()
            raise StoreError("the endpoint does not answer")
        super().put(key, data)


def test_a_store_that_is_down_costs_reports_and_no_lane() -> None:
    store = DownStore()
    store.is_down.set()
    with reporter(store) as lane:
        assert store.failed.wait(30)
        lane.hold(Token(1, 1), "birds", ["a"])
        assert LaneReports(store).read() == []
        store.is_down.clear()
        assert until(store, LaneState.TRAINING).runs == ("a",)
        store.is_down.set()
    assert only(store).state is LaneState.TRAINING  # its end could not be told: its age tells


def test_a_lane_is_taken_for_dead_only_when_its_lease_must_be_lost() -> None:
    now = datetime.now(UTC).isoformat()
    report = LaneReport("id", "lane0", "queue", "cpu", 1.0, 10.0, 5.0, now, now, LaneState.TRAINING)
    assert Heard(report, -300.0).is_alive  # the reader's clock is behind
    assert Heard(report, 10.0 + 2 * 5.0 + SKEW_S).is_alive
    assert not Heard(report, 10.0 + 2 * 5.0 + SKEW_S + 1).is_alive
    assert not Heard(replace(report, state=LaneState.ENDED), 0.0).is_alive


def test_age_is_counted_by_the_time_that_the_store_gives(tmp_path: Path) -> None:
    with reporter(FolderStore(tmp_path)):
        pass
    (heard,) = LaneReports(FolderStore(tmp_path)).read(datetime.now(UTC) + timedelta(hours=1))
    assert heard.age_s == pytest.approx(3600, abs=60)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("busy_s", "Infinity"),
        ("idle_s", "NaN"),
        ("devices", -1),
        ("runs", "abc"),
        ("updated_at", "2026-01-01T00:00:00"),
    ],
)
def test_a_report_that_cannot_be_true_is_left_out(field: str, value: object, tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    with reporter(store):
        pass
    good = only(store)
    poisoned = json.loads(store.get(good.key)) | {field: value}
    store.put(f"{FOLDER}poisoned.json", json.dumps(poisoned).encode())
    store.put(f"{FOLDER}half.json", store.get(good.key)[:40])
    assert only(store) == good


class StillStore(RemoteMemoryStore):
    """A store whose objects were all written at one time."""

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        at = datetime(2026, 1, 1, tzinfo=UTC)
        return (Entry(key, len(self.objects[key]), at) for key in self.list(prefix))


def test_who_looks_again_reads_only_what_changed() -> None:
    store = StillStore()
    with reporter(store, replace(SETTINGS, report_s=1000.0)):
        pass
    reports = LaneReports(store)
    first = [heard.report for heard in reports.read()]
    before = len(store.reads)
    assert [heard.report for heard in reports.read()] == first
    assert len(store.reads) == before


def test_a_report_that_could_not_be_read_is_an_error_and_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    store = StillStore()
    with reporter(store, replace(SETTINGS, report_s=1000.0)):
        pass

    def slow_down(_: object, key: str) -> bytes:
        raise StoreError(f"the store must give {key}, got SlowDown; wait")

    reports = LaneReports(store)
    with monkeypatch.context() as patch:
        patch.setattr(StillStore, "get", slow_down)
        with pytest.raises(StoreError, match="SlowDown"):
            reports.read()
    assert [heard.report for heard in reports.read()] == [only(store)]


def test_a_pause_between_reports_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"lanes\.report_s must be > 0"):
        LaneConfig(report_s=0.0)


@pytest.fixture
def ray_session() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("ray_session")
def test_a_lane_that_trained_has_counted_every_step_and_record(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    plan = site.plan()
    queue = queue_of(site, plan)
    in_process(site, queue, replace(LANES, report_s=0.2)).work()
    report = only(site.store)
    steps_per_epoch = len(site.task.train) // RECIPE.batch_size
    assert ray.get(queue.stats.remote()).finished == len(plan.runs)
    assert (report.state, report.recorded) == (LaneState.ENDED, len(plan.runs))
    assert report.student_steps == len(plan.runs) * RECIPE.epochs * steps_per_epoch
    assert report.busy_s >= sum(record.provenance.seconds for record in site.records().values())
