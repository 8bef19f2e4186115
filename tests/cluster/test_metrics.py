"""Metrics as Prometheus sees them: scraped over HTTP from a real local Ray, compared with the store."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import pytest
import ray
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from cluster import s3_observer
from cluster.events import Event, read_events
from cluster.lanes import run_plan
from cluster.metrics import METRICS, Counter, Gauge, Histogram, Metric, S3Metrics
from cluster.plan import FailureKind, Plan
from cluster.s3 import S3Store
from dass.records import Record, Run, Status
from tests.cluster.faulty_server import Answer, FaultyServer
from tests.cluster.lane_site import LANES, RECIPE, SPACE, TEACHER, in_process, make_site, queue_of
from tests.cluster.s3_faulty import faulty, proxy, store
from tests.cluster.s3_server import s3_server, use_endpoint
from tests.ports import free_port

__all__ = ["faulty", "proxy", "s3_server", "store", "use_endpoint"]  # fixtures

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

ROOT = Path(__file__).resolve().parents[2]
EXPORT_MS = 1000  # Ray's shortest
PATIENCE_S = 30.0
TYPES = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


@dataclass
class Scraper:
    """Reads the metrics port; `seen` are all families of ours that ever came, by name, with Ray's prefix."""

    url: str
    seen: dict[str, Family] = field(default_factory=dict)

    def families(self) -> dict[str, Family]:
        with urllib.request.urlopen(self.url, timeout=10) as answer:  # noqa: S310 - a port of our own
            families = text_string_to_metric_families(answer.read().decode())
            now = {family.name: family for family in families if family.name.startswith("ray_dass_")}
        self.seen.update(now)
        return now

    def total(self, name: str, **labels: str) -> float:
        """The sum of all processes' samples with these labels."""
        samples = [sample for family in self.families().values() for sample in family.samples if sample.name == name]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def awaited(self, expected: float, name: str, **labels: str) -> float:
        """The total when it is as expected, or what it is after a time."""
        ends = time.monotonic() + PATIENCE_S
        while (total := self.total(name, **labels)) != pytest.approx(expected) and time.monotonic() < ends:
            time.sleep(0.2)
        return total


@pytest.fixture(scope="module")
def scraper() -> Iterator[Scraper]:
    port = free_port()
    settings = {"RAY_metrics_report_interval_ms": str(EXPORT_MS), "RAY_enable_metrics_collection": "1"}
    with mock.patch.dict(os.environ, settings):
        ray.init("local", namespace="dass", num_cpus=2, include_dashboard=False, _metrics_export_port=port)
    try:
        yield Scraper(f"http://{ray.nodes()[0]['NodeManagerAddress']}:{port}/metrics")
    finally:
        s3_observer.observe(None)
        ray.shutdown()


@dataclass
class Collected:
    """What an undisturbed collection of a teacher and four students left, and the queue's gauges while it ran."""

    plan: Plan
    records: dict[str, Record]
    events: list[Event]
    steps_per_epoch: int
    queue_runs: list[dict[str, float]]


@pytest.fixture(scope="module")
def collected(scraper: Scraper, tmp_path_factory: pytest.TempPathFactory) -> Collected:
    site = make_site(tmp_path_factory.mktemp("collected"))
    plan = site.plan(replace(RECIPE, epochs=12))
    queue_runs = []
    for _ in run_plan(site.store.url, plan, LANES):
        family = scraper.families().get("ray_dass_queue_runs")
        if family is not None:
            queue_runs.append({sample.labels["state"]: sample.value for sample in family.samples})
    steps = len(site.task.train) // RECIPE.batch_size
    return Collected(plan, site.records(), list(read_events(site.store)), steps, queue_runs)


def test_totals_are_those_of_the_records(scraper: Scraper, collected: Collected) -> None:
    records = collected.records.values()
    assert len(records) == 5
    assert scraper.awaited(5, "ray_dass_runs_ended_total", task="task", status="finished") == 5
    steps = collected.steps_per_epoch * sum(record.run.recipe.epochs for record in records)
    assert scraper.awaited(steps, "ray_dass_student_steps_total", task="task") == steps
    images = steps * RECIPE.batch_size
    assert scraper.awaited(images, "ray_dass_student_images_total", task="task") == images
    leases = {(record.provenance.incarnation, record.provenance.attempt) for record in records}
    assert scraper.awaited(len(leases), "ray_dass_leases_granted_total") == len(leases)
    assert scraper.total("ray_dass_leases_expired_total") == pytest.approx(0)
    assert scraper.total("ray_dass_failed_attempts_total") == pytest.approx(0)


def test_a_lane_spends_no_more_time_on_training_than_its_runs_took(scraper: Scraper, collected: Collected) -> None:
    took_s = sum(record.provenance.seconds for record in collected.records.values())
    training_s = scraper.total("ray_dass_lane_seconds_total", lane="lane0", activity="training")
    assert 0 < training_s <= took_s + 0.1
    assert scraper.total("ray_dass_lane_seconds_total", lane="lane0") > training_s


def test_checkpoints_are_timed(scraper: Scraper, collected: Collected) -> None:
    count = scraper.total("ray_dass_checkpoint_seconds_count")
    assert count >= 1
    assert scraper.total("ray_dass_checkpoint_seconds_bucket", le="+Inf") == count


def test_the_queue_tells_where_all_runs_stand(collected: Collected) -> None:
    whole = [counts for counts in collected.queue_runs if len(counts) == 5]
    assert 4 in {counts["waiting"] for counts in whole}  # for their teacher; the rest may be over between two looks
    for counts in whole:
        assert sum(counts.values()) == len(collected.plan.runs)
        assert (counts["waiting"], counts["failed"]) == (0 if counts["finished"] else 4, 0)


def test_events_tell_run_lease_lane_and_step(collected: Collected) -> None:
    events = [event for event in collected.events if event.lane == "lane0"]
    started, *about_runs, ended = events
    record = collected.records[collected.plan.runs[0].id]
    assert (started.kind, started.fields["device"]) == ("lane started", record.provenance.device)
    assert started.fields["versions"] == dict(record.provenance.versions)
    assert (ended.kind, ended.fields["reason"]) == ("lane ended", "nothing is left")
    assert about_runs
    steps = {}
    for event in about_runs:
        if event.kind == "ended":
            record = collected.records[event.fields["run"]]
            assert event.fields["token"] == f"{record.provenance.incarnation}-{record.provenance.attempt}"
            steps[record.run.id] = event.fields["step"]
        else:
            assert event.fields["token"]
    records = collected.records.items()
    assert steps == {run_id: record.run.recipe.epochs * collected.steps_per_epoch for run_id, record in records}


def test_what_diverges_is_counted_apart(scraper: Scraper, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    wild = Run(site.task.id, None, SPACE.smallest, replace(TEACHER, lr=1e30))
    before = scraper.total("ray_dass_runs_ended_total", status="finished")
    in_process(site, queue_of(site, Plan("teachers", (wild,)))).work()
    assert site.records()[wild.id].result.status is Status.DIVERGED
    assert scraper.awaited(1, "ray_dass_runs_ended_total", status="diverged") == 1
    assert scraper.total("ray_dass_runs_ended_total", status="finished") == pytest.approx(before)


def test_failures_are_counted_by_kind_and_expired_leases_by_lease(scraper: Scraper, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    plan = Plan("teachers", tuple(replace(site.plan().runs[0], seed=seed) for seed in range(3)))
    queue = queue_of(site, plan, lease_s=0.5)
    names = ("ray_dass_failed_attempts_total", "ray_dass_leases_expired_total")
    before = {kind: scraper.total(names[0], kind=str(kind)) for kind in FailureKind}
    broken, _, returned = [ray.get(queue.lease.remote(f"lane{number}", 1)).lease for number in range(3)]
    ray.get(queue.fail.remote([run.id for run in broken.runs], broken.token, FailureKind.ERROR, "broken"))
    ray.get(queue.fail.remote([run.id for run in returned.runs], returned.token, FailureKind.RETURNED, "unharmed"))
    while ray.get(queue.stats.remote()).running:
        time.sleep(0.1)
    expected = {FailureKind.ERROR: 1, FailureKind.RETURNED: 1, FailureKind.LANE_LOST: 1}
    for kind in FailureKind:
        total = before[kind] + expected.get(kind, 0)
        assert scraper.awaited(total, names[0], kind=str(kind)) == pytest.approx(total)
    assert scraper.awaited(1, names[1]) == pytest.approx(1)


def test_requests_to_s3_are_timed_counted_and_their_repetitions_told(
    scraper: Scraper, store: S3Store, faulty: FaultyServer
) -> None:
    s3_observer.observe(S3Metrics())
    faulty.faults.append(Answer("PUT", times=2, status=503, code="SlowDown"))
    store.put("key", b"12345")
    assert store.get("key") == b"12345"
    assert list(store.list()) == ["key"]
    assert not store.exists("other")
    methods = [method for method, _ in faulty.requests]
    assert methods == ["PUT", "PUT", "PUT", "GET", "GET", "HEAD"]
    name = "ray_dass_s3_request_seconds_count"
    for operation, num in {"PutObject": 3, "GetObject": 1, "ListObjectsV2": 1, "HeadObject": 1}.items():
        assert scraper.awaited(num, name, operation=operation) == num
    assert scraper.awaited(2, "ray_dass_s3_retries_total", reason="SlowDown") == 2
    assert scraper.awaited(15, "ray_dass_s3_sent_bytes_total") == 15
    assert scraper.total("ray_dass_s3_received_bytes_total") >= 5


def test_exactly_the_documented_metrics_are_exported(scraper: Scraper, collected: Collected) -> None:
    """Runs last: each of the tests above has brought some of them about."""
    scraper.families()
    documented = {f"ray_{metric.name}": metric for metric in METRICS}
    exported = {family_name(family): family for family in scraper.seen.values()}
    assert exported.keys() == documented.keys()
    for name, metric in documented.items():
        assert exported[name].type == TYPES[type(metric)]
        assert exported[name].documentation == metric.description
        assert all(labels_of(metric) <= sample.labels.keys() for sample in exported[name].samples)


def family_name(family: Family) -> str:
    """The parser takes the suffix of a counter off."""
    return f"{family.name}_total" if family.type == "counter" else family.name


def labels_of(metric: Metric) -> set[str]:
    return set(metric.labels)


def test_nothing_of_ray_is_imported_where_nobody_uses_it() -> None:
    """A laptop reads the store without Ray, and records nothing."""
    code = (
        "import sys; from cluster import metrics, s3, s3_observer; s3_observer.observe(metrics.S3Metrics())\n"
        "metrics.S3_RETRIES.add(reason='SlowDown'); metrics.QUEUE_RUNS.set(1, state='pending')\n"
        "metrics.CHECKPOINT_SECONDS.observe(1); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
