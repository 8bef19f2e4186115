"""The stop rules of whatever trains runs: what a store may use in device-hours or in money, earlier submissions included."""

import math
import time

from cluster.lane_reports import LaneReports
from cluster.objects import open_store
from cluster.standing import device_seconds
from dass.errors import StoreError
from jobs.console import usd
from jobs.job import Job

_PATIENCE_S = 3.0  # who looks is the driver, whose lanes and lease need it meanwhile


class Budget:
    """What the lanes of a store have used against collect.max_device_hours and collect.max_cost.

    It counts all that lanes on this store ever held, whatever for, as they last reported it: so it is behind by at most
    `lanes.report_s` for each lane, and a job may exceed its budget by as much.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reports = LaneReports(open_store(job.store.url, _PATIENCE_S))
        self._is_limited = job.config.collect.max_device_hours is not None or job.config.collect.max_cost is not None
        # lanes of earlier versions reported nothing: their records tell what they took
        self._recorded = list(job.database.outlines().known.values()) if self._is_limited else []
        self._looked_at = -math.inf
        self._answer: str | None = None

    def exceeded(self) -> str | None:
        """Which limit is used up, in words, or None; looks into the store every `lanes.report_s` seconds, not more often.

        Raises:
            StoreError: the store fails at the first look. Later the last answer stands until it works again.
        """
        if self._is_limited and time.monotonic() - self._looked_at >= self._job.config.lanes.report_s:
            try:
                self._answer = self._look()
            except StoreError as error:
                if math.isinf(self._looked_at):
                    raise
                self._job.console.say(
                    f"note: what was used up could not be read, and is looked at again later: {error}"
                )
            self._looked_at = time.monotonic()
        return self._answer

    def _look(self) -> str | None:
        limits = self._job.config.collect
        used = device_seconds(self._reports.read(), self._recorded)
        hours, cost = sum(used.values()) / 3600, self._job.config.prices.cost(used)
        if limits.max_device_hours is not None and hours >= limits.max_device_hours:
            return f"collect.max_device_hours={limits.max_device_hours:g}, got {hours:.3g} device-hours used"
        if limits.max_cost is not None and cost >= limits.max_cost:
            return f"collect.max_cost={limits.max_cost:g}, got {usd(cost)} used"
        return None
