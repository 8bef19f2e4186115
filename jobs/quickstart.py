"""`quickstart`: the whole way from images to a distilled student, and an honest word on what came of it."""

from dataclasses import replace
from functools import partial
from typing import Any

from cluster.documents import put_latest
from cluster.runtime import session
from jobs import collect, data, distil, meta_train, report, search
from jobs.job import Job


def _distil_on_one_lane(job: Job) -> dict[str, Any]:
    """A second lane takes longer to start than it could save on so few runs."""
    lanes = replace(job.config.lanes, num=1)
    return distil.run(replace(job, config=replace(job.config, lanes=lanes)))


STEPS = (partial(data.run, refresh=False), collect.run, meta_train.run, search.run, _distil_on_one_lane)


def run(job: Job) -> dict[str, Any]:
    """Every step in turn; what is done already is not done again."""
    if job.dry_run:
        return {"data": data.run(job), "collect": collect.run(job), "dry_run": True}
    search.wanted(job.reader, None)  # images, target and budget are checked before Ray starts
    before = report.phases(job)
    with session():
        for step in STEPS:
            step(job)
            spent = job.console.phases
            put_latest(
                job.store,
                report.PHASES,
                {
                    name: round(before.get(name, 0.0) + spent.get(name, 0.0), 2)
                    for name in dict.fromkeys([*before, *spent])
                },
            )
    return {**report.run(job), "phases": report.phases(job)}
