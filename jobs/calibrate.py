"""`calibrate`: how far the store's predictor can be trusted, by tasks held out of one meta-training after the other.

For a task that is unlike all of these it goes by the targets of `evaluate.targets` whose students were distilled.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.checkpoints import remove_checkpoints
from cluster.documents import get_latest, put_latest
from cluster.weights import get_blob
from dass.errors import ConfigError, ObjectNotFoundError
from dass.evaluation import label_noise_pct
from dass.meta.calibration import Calibration, calibrate
from dass.meta.calibration_file import from_document, to_document
from dass.meta.held_out import HeldOut, by_classes, check_enough, folds, predict
from dass.meta.train import MetaConfig, MetaTraining
from dass.metrics import spearman
from dass.predictor import load_predictor
from dass.records import Status, content_id
from dass.search.advice import LEVEL
from dass.zoo.files import calibration_bytes, calibration_path
from jobs.evaluation_records import Target, targets_elsewhere
from jobs.job import Job
from jobs.meta_train import (
    Learnable,
    current,
    features,
    features_of,
    learn,
    learnable,
    shown,
    spec_of,
    training_key,
    tuning_key,
)
from jobs.output import check_output, write_output


def run(job: Job) -> dict[str, Any]:
    """Hold out each group of meta tasks once; what is done already is not done again.

    Raises:
        ConfigError: the store has no predictor that was made from its records of today, or too few groups of tasks.
    """
    found = learnable(job)
    config, predictor = _predictor(job, found)
    groups = by_classes(found.tasks.meta)
    check_enough(len(groups))
    if job.dry_run:
        job.console.tell(f"would hold out {len(groups)} groups of tasks, one meta-training each")
        return {"groups": len(groups), "dry_run": True}
    targets = targets_elsewhere(job)  # now, so that images that cannot be read are told before anything is trained
    train, valid = features(job, found)
    lessons = (*train, *valid)
    cuts = folds([[lessons[index] for index in group] for group in groups])
    done = list(_known(job, predictor))
    spec = spec_of(job, found.tasks.meta[0].resolution, config)
    for number, fold in enumerate(cuts, start=1):
        if {task.name for task in fold.held_out} <= {each.name for each in done}:
            continue
        training = MetaTraining(spec, config, fold.train, fold.valid)
        key = content_id({"calibrate": predictor, "fold": number})
        learn(job, training, key, config.episodes, f"hold out {number} of {len(cuts)}")
        done += predict(training.best(), fold.held_out)
        _keep(job, predictor, done)
        remove_checkpoints(job.store, key)
    noise, sampler = label_noise_pct(_repeats(job)), job.config.collect.sampler
    calibration = calibrate(done, elsewhere=_elsewhere(job, predictor, targets), label_noise_pct=noise, sampler=sampler)
    _keep(job, predictor, done, calibration)
    return _told(job, calibration, _mean_spearman(done))


def _elsewhere(job: Job, predictor: str, targets: Sequence[Target]) -> list[HeldOut]:
    """What the store's predictor says of the students of targets, which are images that it learned nothing from."""
    method = load_predictor(get_blob(job.store, predictor))
    found: list[HeldOut] = []
    for target in targets:
        lesson = features_of(job, target.task, target.all, job.device, target.teacher)
        found += predict(method, [replace(lesson, name=target.task.name)])
    return found


def _mean_spearman(held_out: Sequence[HeldOut]) -> float | None:
    """How well students of tasks held out were ranked: the mean over those tasks that have a correlation; None without."""
    found = [spearman(each.predicted_pct, each.accuracies_pct) for each in held_out]
    known = [value for value in found if math.isfinite(value)]
    return fmean(known) if known else None


def _repeats(job: Job) -> list[list[float]]:
    """Accuracies of every student that was distilled more than once from one teacher by the recipe, under other seeds."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for record in job.database.scan():
        run, result = record.run, record.result
        is_label = run.teacher is not None and run.recipe == job.config.student and result.status is Status.FINISHED
        if is_label and result.best_accuracy_pct is not None:
            found[run.task, run.teacher or "", run.student.key].append(result.best_accuracy_pct)
    return [runs for _, runs in sorted(found.items()) if len(runs) > 1]


def current_calibration(job: Job) -> Calibration | None:
    """That of the store's predictor, if it has both."""
    known = current(job)
    return known_calibration(job, known["predictor"]) if known else None


def check_file(output: Path) -> None:
    """Raise ConfigError, before anything is trained, unless a predictor and its calibration could be written there."""
    check_output(output)
    if calibration_path(output) == output:
        raise ConfigError(
            f"--output must be the predictor's file, beside which its calibration ends in {output.suffix}, got {output}; name "
            f"it {output.with_suffix('.safetensors').name}"
        )


def export(job: Job, output: Path) -> None:
    """Write the store's predictor as a file of its own, and its calibration beside it; `dass.zoo.load` reads both."""
    sha = current(job)["predictor"]
    calibration = known_calibration(job, sha)
    if calibration is None:
        raise ConfigError("only a calibrated predictor can be written, got one without; run `calibrate` first")
    write_output(output, get_blob(job.store, sha))
    write_output(calibration_path(output), calibration_bytes(calibration, sha))
    job.console.tell(f"predictor written to {output}, its calibration beside it")


def known_calibration(job: Job, predictor: str) -> Calibration | None:
    """That of the predictor with this SHA-256, if the store has it."""
    try:
        value = get_latest(job.store, _name(predictor), calibration=dict[str, Any] | None)
    except ObjectNotFoundError:
        return None
    return None if value["calibration"] is None else from_document(value["calibration"])


def _name(predictor: str) -> str:
    return f"calibration-{predictor}"


def _keep(job: Job, predictor: str, done: Sequence[HeldOut], calibration: Calibration | None = None) -> None:
    """Note what was found yet, and at the end the calibration."""
    value = {"predictor": predictor, "held_out": [asdict(each) for each in done]}
    document = {} if calibration is None else {"calibration": to_document(calibration)}
    put_latest(job.store, _name(predictor), {**value, **document})


def _known(job: Job, predictor: str) -> tuple[HeldOut, ...]:
    """What an earlier call found already."""
    try:
        return tuple(get_latest(job.store, _name(predictor), held_out=tuple[HeldOut, ...])["held_out"])
    except ObjectNotFoundError:
        return ()


def _predictor(job: Job, found: Learnable) -> tuple[MetaConfig, str]:
    """How the store's predictor was meta-trained, and its SHA-256."""
    known = current(job)
    tuning = known.get("tuning")
    if tuning is not None and tuning.key == tuning_key(job, found):
        return tuning.config, known["predictor"]
    if tuning is None and known.get("key") == training_key(job, found):
        return job.config.meta, known["predictor"]
    raise ConfigError(
        "only a predictor that was made from the records of today by this recipe can be calibrated, got "
        f"{'another' if known else 'none'} in the store; run `meta-train` first"
    )


def _told(job: Job, calibration: Calibration, ranked: float | None) -> dict[str, Any]:
    reach = calibration.half_width_pct(LEVEL)
    interval = f"± {reach:.1f} points at {100 * LEVEL:.0f} %" if reach is not None else "none at this level"
    job.console.tell(
        f"Calibrated on {len(calibration.tasks)} tasks in {len(calibration.groups)} groups: a student's accuracy {interval}; "
        f"errors within a task {calibration.within_sd_pct:.1f} points (sd); students of tasks held out were ranked with Spearman "
        f"{shown(ranked)} on average."
    )
    away = calibration.away(LEVEL)
    if calibration.elsewhere:
        by_them = "too few for an interval" if away is None else f"± {away.half_width_pct(LEVEL):.1f} points"
        job.console.tell(
            f"A task that is unlike all of these, by {len(calibration.elsewhere)} of other images: {by_them}."
        )
    return {
        "tasks": len(calibration.tasks),
        "groups": len(calibration.groups),
        "half_width_pct": reach,
        "elsewhere": [task.name for task in calibration.elsewhere],
        "elsewhere_half_width_pct": None if away is None else away.half_width_pct(LEVEL),
        "level": LEVEL,
        "within_sd_pct": calibration.within_sd_pct,
        "pair_log_loss": calibration.pair_log_loss,
        "spearman": ranked,
        "label_noise_pct": calibration.label_noise_pct,
        "dry_run": False,
    }
