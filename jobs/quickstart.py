"""`quickstart`: the whole way from images to a distilled student, and an honest word on what came of it."""

from functools import partial
from typing import Any

from cluster.documents import put_latest
from cluster.runtime import session
from jobs import collect, data, distil, meta_train, report, search
from jobs.job import Job
from jobs.target import find_predictor
from jobs.train_runs import check_devices


def _meta_train_if_asked(job: Job) -> None:
    """Not where the predictor is the package's."""
    if job.config.predictor == "store":
        meta_train.run(job)


STEPS = (partial(data.run, refresh=False), collect.run, _meta_train_if_asked, search.run, distil.run)


def run(job: Job) -> dict[str, Any]:
    """Every step in turn; what is done already is not done again."""
    if job.config.predictor == "package":  # what could not be asked in the end is refused before anything is trained
        find_predictor(job)
    else:
        meta_train.check_recipe(job.config)
    check_devices(job)
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
