"""`evaluate`: how well every method ranks the students of the targets, all on the same records.

The keys of the JSON document:

    methods     name -> {spearman, spearman_in_bands, kendall, regret_1, regret_5, seconds_per_candidate, adapt_s}
                -> target -> {mean, low, high}; null is undefined, and the ends of a method's only value
    overall     name -> the same seven -> {mean, low, high} over the targets; the interval is over seeds
    order       names by mean Spearman, the best first
    redrawn     name -> {spearman, behind} -> {mean, low, high}: over draws of the students anew, the mean Spearman over targets
                and what it lacks to that of the first in `order`
    failed      target -> name -> students without a score, which rank last (the most of any seed)
    groups      name -> trivial, zero-cost, short training or meta-learned
    records     target -> hash of all records that its results depend on, and how many students were ranked
    ceiling     target -> what the noise of the labels allows (dass/evaluation.py), null where no student ran twice;
                students and runs are those that tell the noise
    coverage    target -> {level, half_width_pct, share, winner_half_width_pct, winner_share}: how the predictor's intervals
                held, of all students and of that ranked first; null without `calibrate`
    protocol    seeds, records of the meta-training, recipes, device, code: what another evaluation must share
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cluster.runtime import code_version, versions
from dass.baselines import FAILED
from dass.baselines.catalog import Catalog
from dass.baselines.registry import check_recipe
from dass.errors import ConfigError
from dass.evaluation import (
    METRICS,
    Benchmark,
    BenchmarkTarget,
    Coverage,
    Judged,
    Redrawn,
    ceiling,
    judge,
    ranked,
    redraw,
    summarise,
)
from dass.meta.calibration import Calibration
from dass.meta.novelty import novelty
from dass.predictor import METHOD
from dass.records import content_id
from dass.report import render_benchmark
from dass.report.wording import TIMES, allowed, brief, correlation, percent, ranged, told_apart
from dass.search.advice import LEVEL, TOP_SHARE
from jobs.evaluation_records import Target, find_targets, freeze
from jobs.evaluation_scores import Evaluation, Place, Scored
from jobs.job import Job
from jobs.meta_train import learnable
from jobs.output import check_place

SUFFIX = ".html"
COLUMNS = ("in bands", "Kendall", "regret@1", "regret@5", "per candidate", "to adapt")


def run(
    job: Job,
    *,
    names: Sequence[str] | None = None,
    seeds: int = 3,
    sources: Sequence[str] = (),
    output: Path | None = None,
    is_anew: bool = False,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Score what is pending, then print and return the comparison; with `dry_run` only what is pending.

    calibration: of a predictor that was meta-trained like the method `dass`; its intervals are checked on the targets.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds must be >= 1, got {seeds}; intervals need 2 or more")
    if output is not None:
        check_output(output)
    methods = Catalog(job.config.meta, job.config.meta_d2a, job.config.tans).choose(names)
    check_recipe([method.name for method in methods], job.config.student, "student")
    found = learnable(job)
    targets = find_targets(job, sources, (record.run.id for record in found.records))
    freeze(job, targets, is_anew=is_anew)
    evaluation = Evaluation(job, methods, seeds, targets, found)
    results = evaluation.known()
    num_pending = len(evaluation.wanted) - len(results)
    if job.dry_run:
        job.console.tell(f"would score {num_pending} of {len(evaluation.wanted)} results; the store has the others")
        return {"pending": num_pending, "records": _records(targets), "dry_run": True}
    with job.console.phase("evaluate") as bar:
        for done, scored in enumerate(evaluation.measure(results), start=1):
            results[scored.place] = scored
            bar.update(done, num_pending, f"{scored.method} on {scored.target}")
    benchmark = _benchmark(evaluation, results, calibration)
    if output is not None:
        _write(output, render_benchmark(benchmark))
    _tell(job, benchmark)
    return _document(benchmark)


def split_names(methods: Sequence[str]) -> list[str]:
    """The names in `--methods a,b --methods c`."""
    return [name.strip() for each in methods for name in each.split(",") if name.strip()]


def check_output(output: Path) -> None:
    """Raise ConfigError, before anything is scored, unless a page could be written there."""
    if output.suffix != SUFFIX or output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(
            f"--output must be a file ending in {SUFFIX} in a folder that exists, got {output}; correct it"
        )
    check_place(output)


def _benchmark(evaluation: Evaluation, results: Mapping[Place, Scored], calibration: Calibration | None) -> Benchmark:
    summaries = [
        summarise(
            method.name,
            method.group.value,
            {
                target.task.name: [
                    _judged(evaluation.job, target, results[method.name, seed, target.task.name])
                    for seed in evaluation.seeds_of(method)
                ]
                for target in evaluation.targets
            },
        )
        for method in evaluation.methods
    ]
    order = ranked(summaries)
    return Benchmark(
        summaries=tuple(order),
        targets=tuple(
            BenchmarkTarget(
                name=target.task.name,
                records=target.set_id,
                students=len(target.ranked),
                shown=len(target.shown),
                diverged=target.diverged,
                failed={
                    method.name: num
                    for method in evaluation.methods
                    if (
                        num := max(
                            _num_failed(results[method.name, seed, target.task.name])
                            for seed in evaluation.seeds_of(method)
                        )
                    )
                },
                ceiling=ceiling(target.runs_pct),
                coverage=None if calibration is None else _coverage(evaluation, results, calibration, target),
            )
            for target in evaluation.targets
        ),
        protocol=_protocol(evaluation),
        redrawn=_redrawn(evaluation, results, [summary.name for summary in order]),
    )


def _redrawn(evaluation: Evaluation, results: Mapping[Place, Scored], order: Sequence[str]) -> dict[str, Redrawn]:
    seeds = {method.name: evaluation.seeds_of(method) for method in evaluation.methods}
    targets = {target.task.name: target for target in evaluation.targets}
    scores = {
        name: {target: [results[name, seed, target].scores for seed in seeds[name]] for target in targets}
        for name in order
    }
    accuracies = {
        name: dict(zip((each.run.student.canonical for each in target.ranked), target.accuracies_pct, strict=True))
        for name, target in targets.items()
    }
    return redraw(scores, accuracies)


def _coverage(
    evaluation: Evaluation, results: Mapping[Place, Scored], calibration: Calibration, target: Target
) -> Coverage | None:
    """None where DaSS is not compared, or the calibration has too few groups for the level.

    A target by which the calibration was made is left out of it, and where it is unlike all meta tasks the others of its
    kind are asked, as `search` does.
    """
    seeds = [seed for method in evaluation.methods if method.name == METHOD for seed in evaluation.seeds_of(method)]
    for known in calibration.elsewhere:
        if known.name == target.task.name:
            unlike = novelty(calibration.teachers, known.teacher, target.task.num_classes)
            calibration = calibration.judging(LEVEL, is_unlike_all=unlike.is_unlike_all, but=known.name)
    if calibration.reachable_level < LEVEL or not seeds:
        return None
    scores = torch.tensor([results[METHOD, seed, target.task.name].scores for seed in seeds])
    accuracies = torch.tensor(target.accuracies_pct)
    best, places = scores.max(1)
    return Coverage(
        LEVEL,
        *calibration.coverage(scores, accuracies, LEVEL),
        *calibration.coverage(best, accuracies[places], LEVEL, TOP_SHARE),
    )


def _judged(job: Job, target: Target, scored: Scored) -> Judged:
    return judge(
        scored.scores,
        target.accuracies_pct,
        target.macs,
        num_bands=job.config.evaluate.bands,
        seconds_per_candidate=scored.seconds_per_candidate,
        adapt_s=scored.adapt_s,
    )


def _num_failed(scored: Scored) -> int:
    return scored.scores.count(FAILED)


def _protocol(evaluation: Evaluation) -> dict[str, Any]:
    config = evaluation.job.config
    return {
        "seeds": evaluation.seeds,
        "meta_records": len(evaluation.found.records),
        "meta_records_hash": content_id(sorted(record.run.id for record in evaluation.found.records)),
        "space": config.space,
        "resolution": config.data.resolution,
        "student": asdict(config.student),
        "bands": config.evaluate.bands,
        "short_epochs": config.evaluate.short_epochs,
        "times": "wall clock, one thread, images and weights already in memory",
        "device": evaluation.device_name,
        "code": code_version(),
        "versions": dict(versions()),
    }


def _document(benchmark: Benchmark) -> dict[str, Any]:
    summaries = benchmark.summaries
    return {
        "methods": {
            each.name: {
                metric: {target: asdict(found[metric]) for target, found in each.by_target.items()}
                for metric in METRICS
            }
            for each in summaries
        },
        "overall": {each.name: {metric: asdict(each.overall[metric]) for metric in METRICS} for each in summaries},
        "order": [each.name for each in summaries],
        "redrawn": {name: asdict(found) for name, found in benchmark.redrawn.items()},
        "groups": {each.name: each.group for each in summaries},
        "records": {
            each.name: {"hash": each.records, "students": each.students, "shown": each.shown, "diverged": each.diverged}
            for each in benchmark.targets
        },
        "failed": {each.name: dict(each.failed) for each in benchmark.targets},
        "ceiling": {each.name: None if each.ceiling is None else asdict(each.ceiling) for each in benchmark.targets},
        "coverage": {each.name: None if each.coverage is None else asdict(each.coverage) for each in benchmark.targets},
        "protocol": dict(benchmark.protocol),
        "dry_run": False,
    }


def _records(targets: Sequence[Target]) -> dict[str, Any]:
    return {target.task.name: {"hash": target.set_id, "students": len(target.ranked)} for target in targets}


def _tell(job: Job, benchmark: Benchmark) -> None:
    names = [target.name for target in benchmark.targets]
    rows = [
        (
            each.name,
            each.group,
            *(ranged(each.by_target[name]["spearman"]) for name in names),
            *([ranged(each.overall["spearman"])] if len(names) > 1 else []),
            ranged(each.overall["spearman_in_bands"]),
            correlation(each.overall["kendall"].mean),
            *(percent(each.overall[metric].mean) for metric in ("regret_1", "regret_5")),
            *(brief(each.overall[metric].mean) for metric in ("seconds_per_candidate", "adapt_s")),
        )
        for each in benchmark.summaries
    ]
    columns = ("method", "group", *names, *(["mean"] if len(names) > 1 else []), *COLUMNS)
    title = "Spearman with the accuracy after distillation (95 % over seeds)" + (
        "; other columns: means over targets" if len(names) > 1 else ""
    )
    job.console.table(title, columns, rows, num_texts=2)
    if sentence := told_apart(benchmark):
        job.console.tell(sentence)
    for target in benchmark.targets:
        job.console.tell(allowed(target))
    job.console.tell(TIMES)


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"--output must be a file that can be written, got {output} ({error.strerror}); correct the path"
        ) from error
