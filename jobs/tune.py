"""`meta-train --tune N`: find the hyper-parameters of meta-training, then keep the best predictor of the best ones.

N trials under ASHA, then several seeds of the best few, then one winner. The ledger in the store says what is done, so a
tuning that was killed goes on, and a larger N later adds trials to those there are.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from cluster.checkpoints import remove_checkpoints
from cluster.documents import put_latest
from cluster.ledger import Phase, TrialLedger
from cluster.runtime import check_gpus, preflight, session
from cluster.trial import TrialTasks
from dass.errors import ClusterError, ConfigError
from dass.meta.tuning import Trial, best_seed, draws, finalists, mean_spearman, seeded, varying, winner
from dass.records import content_id
from dass.report.model import TrialStatus
from jobs.job import Job
from jobs.meta_train import Learnable, current, features, learnable, shown, spec_of, tuning_key

Finals = Mapping[int, Sequence[Trial]]  # by number: one run per seed


@dataclass(frozen=True)
class TrialRow:
    """What a report shows of a trial; curve: episode and Spearman on meta-validation."""

    number: int
    settings: dict[str, Any]
    status: TrialStatus
    reason: str
    curve: tuple[tuple[int, float | None], ...]
    seed_spearmans: tuple[float | None, ...]
    seconds: float


TUNING = {"winner": int, "trials": tuple[TrialRow, ...]}  # the fields of the document that a report reads


def run(job: Job, num_trials: int) -> dict[str, Any]:
    """Tune, or go on with it; the winner's predictor becomes the store's current one.

    Raises:
        ConfigError: `num_trials` is less than 1.
        ClusterError: every trial failed, or every seed of every finalist; the message names the reasons.
    """
    if num_trials < 1:
        raise ConfigError(f"--tune must be >= 1, got {num_trials}; give the number of settings to try")
    found = learnable(job)
    summary = {**found.summary, "trials": num_trials, "dry_run": job.dry_run}
    if job.dry_run:
        return {**summary, **_told(job, num_trials)}
    key = tuning_key(job, found)
    whole = content_id({"tuning": key, "trials": num_trials, "tune": job.config.tune})
    if (known := current(job)).get("key") == whole:
        job.console.say("meta-train: the store's predictor was tuned from these records already")
        return {**summary, "predictor": known["predictor"], "valid_spearman": known["valid_spearman"]}
    trials, every = _trained(job, found, key, num_trials)
    finals = {number: runs for number, runs in every.items() if any(run.status == "finished" for run in runs)}
    if not finals:
        raise _nothing_left([run for runs in every.values() for run in runs])
    number = winner(finals)
    best = best_seed(finals[number])
    is_whole = all(run.is_settled for runs in ([*trials], *every.values()) for run in runs)
    value = {
        "key": whole if is_whole else None,  # what failed is tried again next time
        "predictor": best.predictor,
        "records": len(found.records),
        "valid_spearman": best.best,
        "curve": [asdict(point) for point in best.curve],
        "tuning": {"key": key, "trials": num_trials, "winner": number, "config": asdict(best.config)},
    }
    report = _document(key, trials, finals)
    put_latest(job.store, "tuning", report)
    put_latest(job.store, "predictor", value)
    ledger = TrialLedger(job.store, key, "trials")
    for trial in trials:
        remove_checkpoints(job.store, ledger.run_id(trial))
    _show(job, report)
    job.console.tell(
        f"Predictor {str(best.predictor)[:12]}: settings {number} of {num_trials}, Spearman {shown(best.best)} on "
        f"meta-validation with seed {best.config.seed}, {mean_spearman(finals[number]):.2f} over "
        f"{len(finals[number])} seeds, learned from {len(found.records)} records."
    )
    return {**summary, "predictor": best.predictor, "valid_spearman": best.best, "winner": number}


def _told(job: Job, num_trials: int) -> dict[str, int]:
    """What would be trained, in numbers that hold whatever happens."""
    tune, meta = job.config.tune, job.config.meta
    num_finalists = min(num_trials, tune.finalists)
    job.console.tell(
        f"would try {num_trials} settings for at most {meta.episodes} episodes each, then train the best "
        f"{num_finalists} with {tune.seeds} seeds each"
    )
    return {"episodes": meta.episodes, "finalists": num_finalists, "seeds": tune.seeds}


def _trained(job: Job, found: Learnable, key: str, num_trials: int) -> tuple[list[Trial], Finals]:
    """The trials, and of each finalist one run per seed; a trial that ran to its end is the first of them."""
    meta, tune = job.config.meta, job.config.tune
    check_gpus(job.config.lanes.gpus)
    preflight(job.store.url)
    tasks = TrialTasks(spec_of(job, found.tasks.meta[0].resolution), *features(job, found))
    with session():
        planned = [Trial(number, config) for number, config in enumerate(draws(meta, tune, num_trials))]
        trials = _phase(job, key, "trials", planned, tasks)
        best = finalists(trials, meta, tune)
        if not best:
            raise _nothing_left(trials)
        runs = [Trial(trial.number, config) for trial in best for config in seeded(trial.config, tune.seeds)]
        done = {trial.number: trial for trial in best if trial.status == "finished"}
        wanted = [run for run in runs if run.number not in done or run.config != done[run.number].config]
        trained = {(run.number, run.config.seed): run for run in _phase(job, key, "finals", wanted, tasks)}
    finals: dict[int, list[Trial]] = {}
    for run in runs:
        finals.setdefault(run.number, []).append(trained.get((run.number, run.config.seed)) or done[run.number])
    return trials, finals


def _phase(job: Job, key: str, phase: Phase, planned: Sequence[Trial], tasks: TrialTasks) -> list[Trial]:
    """Train what is left of the planned trials; all of them as they ended."""
    if not planned:
        return []
    from cluster.tune import TuneJob, run_trials  # Ray is imported only where something trains

    config = job.config
    tuning = TuneJob(job.store.url, key, phase, config.meta, config.tune, config.lanes, tuple(planned))
    where: tuple[Trial, ...] = tuple(planned)
    name = "trials" if phase == "trials" else "seeds of the best"
    with job.console.phase(name) as bar, closing(run_trials(tuning, tasks)) as progress:
        for where in progress:
            bar.update(sum(trial.is_settled for trial in where), len(where), _detail(where))
    for trial in where:
        if trial.reason:
            job.console.say(f"note: settings {trial.number}, seed {trial.config.seed}: {trial.status}, {trial.reason}")
    return list(where)


def _detail(trials: Sequence[Trial]) -> str:
    counts = [(status, sum(trial.status == status for trial in trials)) for status in ("running", "stopped", "failed")]
    bests = [trial.best for trial in trials if trial.best is not None]
    best = f"best Spearman {max(bests):.2f}" if bests else ""
    return ", ".join([*(f"{num} {status}" for status, num in counts if num), best]).strip(", ")


def _nothing_left(trials: Sequence[Trial]) -> ClusterError:
    reasons = "; ".join(sorted({trial.reason for trial in trials})[:3])
    return ClusterError(
        f"a trial must come to its end, got {len(trials)} failures ({reasons}); cure the cause, then again"
    )


def _document(key: str, trials: Sequence[Trial], finals: Finals) -> dict[str, Any]:
    """What a report shows of the tuning, as JSON types."""
    names = varying([trial.config for trial in trials])
    rows = [
        {
            "number": trial.number,
            "settings": {name: getattr(trial.config, name) for name in names},
            "status": trial.status,
            "reason": trial.reason,
            "curve": [[point.episode, point.valid_spearman] for point in trial.curve],
            "seed_spearmans": [run.best for run in finals.get(trial.number, ())],
            "seconds": trial.seconds,
        }
        for trial in trials
    ]
    return {"key": key, "metric": "meta-validation Spearman", "winner": winner(finals), "trials": rows}


def _show(job: Job, report: Mapping[str, Any]) -> None:
    """The trials as a table: the winner first, then by what they reached."""
    names = list(report["trials"][0]["settings"])
    bests = {row["number"]: _best(row["curve"]) for row in report["trials"]}
    rows = sorted(
        report["trials"],
        key=lambda row: (row["number"] != report["winner"], bests[row["number"]] is None, -(bests[row["number"]] or 0)),
    )
    job.console.table(
        "Settings tried",
        ("number", *names, "status", "episodes", "Spearman", "over seeds"),
        [
            (
                row["number"],
                *row["settings"].values(),
                row["status"],
                row["curve"][-1][0] if row["curve"] else 0,
                shown(bests[row["number"]]),
                " ".join(shown(value) for value in row["seed_spearmans"]),
            )
            for row in rows
        ],
    )


def _best(curve: Sequence[Sequence[Any]]) -> float | None:
    return max((value for _, value in curve if value is not None), default=None)
