"""`learning-curve`: what more records would buy, told from short meta-trainings on parts of those that there are."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import numpy as np

from dass.meta.learning_curve import REPETITIONS, SHARES, CurvePoint, gain, measure
from jobs.job import Job
from jobs.meta_train import features, learnable, spec_of

MORE = (100, 1000)


def run(job: Job) -> dict[str, Any]:
    """Measure and tell; nothing is written."""
    found = learnable(job)
    train, valid = features(job, found)
    points: list[CurvePoint] = []
    with job.console.phase("learning curve") as bar:
        for point in measure(spec_of(job, found.tasks.meta[0].resolution), job.config.meta, train, valid):
            points.append(point)
            bar.update(
                len(points), REPETITIONS * len(SHARES), f"{point.records} records, Spearman {point.spearman:.2f}"
            )
    by_size: dict[int, list[float]] = defaultdict(list)
    for point in points:
        by_size[point.records].append(point.spearman)
    rows = [
        (records, f"{np.mean(some):.3f}", f"{min(some):.3f} to {max(some):.3f}")
        for records, some in sorted(by_size.items())
    ]
    job.console.table("Spearman on meta-validation after a short meta-training", ("records", "mean", "range"), rows)
    gains = [each for more in MORE if (each := gain(points, more)) is not None]
    for each in gains:
        job.console.tell(
            f"{each.more} more runs buy about {each.spearman:+.3f} ({each.low:+.3f} to {each.high:+.3f}) Spearman"
        )
    if not gains:
        job.console.tell("There are too few records to tell what more would buy; collect more students per task.")
    return {"points": [asdict(point) for point in points], "gains": [asdict(each) for each in gains], **found.summary}
