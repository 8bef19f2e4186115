"""What is told to Prometheus: every metric's name, meaning and labels, in one place.

Ray exports them on the metrics port of each node, every ten seconds, under these names with the prefix `ray_` and with
labels of its own. Without a running Ray nothing is recorded and Ray is not imported. No label holds a run id: a series
is kept for as long as its node lives. Of a histogram only the buckets and the count are exact; Ray makes its sum from
the middles of the buckets.

A killed process takes what it counted since the last export with it, up to ten seconds: the store tells what is done.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

_NEARLY_ZERO = 1e-300  # Ray refuses 0, and added to any count this vanishes
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


@dataclass(frozen=True)
class Metric:
    """One metric: its name without Ray's prefix, what it measures, and the names of its labels."""

    name: str
    description: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Counter(Metric):
    """A total that only grows; each process counts its own, so queries sum them."""

    def add(self, value: float = 1.0, **labels: str) -> None:
        """Count `value` more; 0 changes nothing."""
        if value > 0 and _has_ray():
            _instrument(self).inc(value, labels)

    def start(self, **labels: str) -> None:
        """Export the series from 0 on: `increase` and `rate` do not see the value that a series begins with."""
        self.add(_NEARLY_ZERO, **labels)


@dataclass(frozen=True)
class Gauge(Metric):
    """A value that comes and goes; it is gone twenty seconds after it was last set, so it has to be set again and again."""

    def set(self, value: float, **labels: str) -> None:
        """Say what it is now."""
        if _has_ray():
            _instrument(self).set(value, labels)


@dataclass(frozen=True)
class Histogram(Metric):
    """How often values fell into each bucket; `buckets` are their upper ends."""

    buckets: tuple[float, ...] = _SECONDS

    def observe(self, value: float, **labels: str) -> None:
        """Count one value."""
        if _has_ray():
            _instrument(self).observe(value, labels)

    @contextmanager
    def timed(self, **labels: str) -> Iterator[None]:
        """Count the seconds that a `with` block takes, whether it fails or not."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - began, **labels)


RUNS_ENDED = Counter(
    "dass_runs_ended_total", "Records written, by task and by status: finished or diverged.", ("task", "status")
)
FAILED_ATTEMPTS = Counter(
    "dass_failed_attempts_total",
    "Attempts at runs that ended without a record, by kind of failure; a run may fail several times.",
    ("kind",),
)
QUEUE_RUNS = Gauge(
    "dass_queue_runs",
    "Planned runs by state: pending, running, waiting (for their teacher), finished, failed (given up).",
    ("state",),
)
LEASES_GRANTED = Counter("dass_leases_granted_total", "Leases given to lanes; each is for one cohort.")
LEASES_EXPIRED = Counter("dass_leases_expired_total", "Leases taken back from lanes that sent no heartbeat in time.")
STUDENT_STEPS = Counter("dass_student_steps_total", "Optimiser steps, counted once for each student.", ("task",))
STUDENT_IMAGES = Counter(
    "dass_student_images_total", "Training images, counted once for each student that saw them.", ("task",)
)
COHORT_STUDENTS = Gauge("dass_cohort_students", "Students that the lane trains together now.", ("lane",))
LANE_SECONDS = Counter(
    "dass_lane_seconds_total",
    "Seconds of the lane by activity: training (evaluation included), waiting (no run is free), other (loading, saving).",
    ("lane", "activity"),
)
MEMORY_PEAK = Gauge(
    "dass_device_memory_peak_bytes", "The most memory in use since the lane's cohort began; see limit.", ("lane",)
)
MEMORY_LIMIT = Gauge(
    "dass_device_memory_limit_bytes",
    "Memory that the lane may use: its share of the GPU, or of the machine.",
    ("lane",),
)
CHECKPOINT_SECONDS = Histogram("dass_checkpoint_seconds", "Seconds to checkpoint all runs of a cohort.")
S3_REQUEST_SECONDS = Histogram(
    "dass_s3_request_seconds",
    "Seconds of a request to S3 by operation, each try on its own, until the head of the answer is there.",
    ("operation",),
)
S3_RETRIES = Counter("dass_s3_retries_total", "Requests to S3 that were repeated, by the error before.", ("reason",))
S3_SENT = Counter("dass_s3_sent_bytes_total", "Bytes of the bodies of requests to S3, repeated ones included.")
S3_RECEIVED = Counter("dass_s3_received_bytes_total", "Bytes of the bodies that S3 announced in its answers.")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class S3Metrics:
    """Counts a process's requests to S3; see cluster/s3_observer.py."""

    def answered(self, operation: str, seconds: float, sent_bytes: int, received_bytes: int) -> None:
        """See Observer."""
        S3_REQUEST_SECONDS.observe(seconds, operation=operation)
        S3_SENT.add(sent_bytes)
        S3_RECEIVED.add(received_bytes)

    def repeated(self, reason: str) -> None:
        """See Observer."""
        S3_RETRIES.add(reason=reason)


def _has_ray() -> bool:
    """Whether this process takes part in a running Ray; one that never imported it does not."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@cache
def _instrument(metric: Metric) -> Any:  # noqa: ANN401 - Ray's metrics have no static type
    """Ray's own counter, gauge or histogram of this process."""
    from ray.util import metrics as ray_metrics

    if isinstance(metric, Histogram):
        return ray_metrics.Histogram(metric.name, metric.description, list(metric.buckets), metric.labels)
    make = ray_metrics.Counter if isinstance(metric, Counter) else ray_metrics.Gauge
    return make(metric.name, metric.description, metric.labels)
