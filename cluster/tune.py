"""Ray Tune over the hyper-parameters of meta-training: ASHA compares the trials, each an actor with a device of its own.

Tune only schedules. What is done stands in our ledger, and a tuning that was killed is a new run of Tune, whose scheduler
is told the curves of the ledger first: a trial that finished or was stopped stays so and computes nothing, one that was
interrupted goes on from its checkpoint.
"""

import tempfile
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from cluster.ledger import Phase, TrialLedger
from cluster.objects import open_store
from cluster.runtime import cancel_running, check_room, compute_on, on_this_node
from cluster.settings import LaneConfig
from cluster.trial import TrialRun, TrialTasks
from dass.errors import ClusterError
from dass.meta.train import MetaConfig
from dass.meta.tuning import WORST, Trial, TuneConfig, grace_episodes

POLL_S = 1.0
THREADS = 1  # of a trial on the CPU, whatever the lanes have: another number would be other bits


@dataclass(frozen=True)
class TuneJob:
    """One phase of a tuning: in `trials` ASHA stops those that fall behind, in `finals` all run to the end.

    planned: the trials to have. base: the configuration that they are variants of. lanes: what each may hold, and how
    many run at the same time.
    """

    store_url: str
    key: str
    phase: Phase
    base: MetaConfig
    tune: TuneConfig
    lanes: LaneConfig
    planned: tuple[Trial, ...]

    @property
    def ledger(self) -> TrialLedger:
        """Where the trials of this phase are written down."""
        return TrialLedger(open_store(self.store_url), self.key, self.phase)

    @property
    def by_name(self) -> dict[str, Trial]:
        """The planned trials by their names in the ledger."""
        ledger = self.ledger
        return {ledger.name(trial): trial for trial in self.planned}


def run_trials(job: TuneJob, tasks: TrialTasks) -> Generator[tuple[Trial, ...], None, None]:
    """Train what is left of the planned trials; yields where all of them stand, until none is left.

    Closing the iterator early ends Tune and its trials; a later call goes on from the ledger. A trial that failed is among
    the last ones with its reason, and is tried again next time.

    Raises:
        ConfigError: no trial of this shape fits on this machine.
        ClusterError: Tune itself could not be brought to its end.
    """
    ledger = job.ledger
    known = ledger.read(job.by_name)
    yield tuple(known.values())
    if all(trial.is_settled for trial in known.values()):
        return
    check_room(job.lanes)
    # A process beside the driver, for the reason that lanes have one. When it dies Ray starts it once more, and it
    # goes on from the ledger.
    drive = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(_drive)
    running = [drive.remote(job, [ray.put(tasks)])]
    outcome = running[0]
    try:
        while running:
            _, running = ray.wait(running, timeout=POLL_S)
            known = ledger.read(known)
            yield tuple(known.values())
        ray.get(outcome)
    except RayError as error:
        raise ClusterError(
            f"Ray Tune must come to its end, got {str(error).strip().splitlines()[-1]}; cure the cause, then submit again: "
            "what is finished is kept"
        ) from error
    finally:
        cancel_running([outcome])


class _Scheduler(ASHAScheduler):  # type: ignore[misc]  # Ray's classes have no static type
    """ASHA that knows what an earlier run of Tune has seen, and writes down whom it stops.

    What is settled enters the rungs when the scheduler is made, with no trial of Tune. Of a trial that goes on, all but
    the last evaluation does: about that one there may be a decision that was never carried out.
    """

    def __init__(self, job: TuneJob, known: Mapping[str, Trial]) -> None:
        super().__init__(
            time_attr="episode",
            metric="spearman",
            mode="max",
            max_t=job.base.episodes,
            grace_period=grace_episodes(job.base, job.tune),
            reduction_factor=job.tune.reduction_factor,
        )
        self._ledger = job.ledger
        self._known = dict(known)
        for name, trial in known.items():
            if trial.is_settled:
                stand_in = _StandIn(f"settled-{name}")
                super().on_trial_add(None, stand_in)
                self._replay(stand_in, _results(trial))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:  # noqa: ANN401
        """A trial that begins, or goes on."""
        super().on_trial_add(tune_controller, trial)
        self._replay(trial, _results(self._known[trial.config["name"]])[:-1])

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ANN401
        """ASHA's decision; the trial's process waits for it, so nobody else writes its entry now."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        if decision == TrialScheduler.STOP:
            self._ledger.put(replace(self._ledger.get(self._known[trial.config["name"]]), status="stopped"))
        return decision

    def _replay(self, trial: Any, results: list[dict[str, Any]]) -> None:  # noqa: ANN401
        for result in results:
            super().on_trial_result(None, trial, result)


@dataclass(frozen=True)
class _StandIn:
    """All that ASHA asks of a trial."""

    trial_id: str


class _TrialActor(tune.Trainable):  # type: ignore[misc]
    """A process that trains one trial after another; Ray Tune asks for one evaluation at a time."""

    def setup(self, config: dict[str, Any], job: TuneJob, tasks: list[Any]) -> None:
        """Take up the first trial; `tasks` is a reference in a list, so that the object store holds them once."""
        compute_on(THREADS)
        self._job, self._planned = job, job.by_name
        self._tasks = ray.get(tasks[0]).to(job.lanes.device)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another trial."""
        planned = self._planned[new_config["name"]]
        self._run = TrialRun(self._job.ledger, planned, self._tasks, self._job.lanes.checkpoint_s)
        return True

    def step(self) -> dict[str, Any]:
        """One evaluation, as Tune takes it."""
        trial = self._run.step()
        return {**_result(trial.episode, trial.best), "done": trial.status != "running"}


def _drive(job: TuneJob, tasks: list[Any]) -> None:
    """Drive Ray Tune to its end; what Tune gave up is written down as failed."""
    ledger = job.ledger
    known = ledger.read(job.by_name)
    begun_first = sorted(known, key=lambda name: known[name].status == "pending")
    left = [name for name in begun_first if not known[name].is_settled]
    resources = {"cpu": job.lanes.cpus} | ({"gpu": job.lanes.gpus} if job.lanes.gpus else {})
    with tempfile.TemporaryDirectory(prefix="dass-tune-", ignore_cleanup_errors=True) as storage:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_TrialActor, job=job, tasks=tasks), resources),
            param_space={"name": tune.grid_search(left)},
            tune_config=tune.TuneConfig(
                scheduler=_Scheduler(job, known) if job.phase == "trials" else FIFOScheduler(),
                max_concurrent_trials=job.lanes.num,
                reuse_actors=True,  # a new process takes a second or more, and the tasks once more
            ),
            run_config=tune.RunConfig(
                name=job.phase,
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=job.lanes.max_failures),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # ours are in the store
                verbose=0,
            ),
        )
        # in the order of the grid; a trial that never had a result does not bring its name
        for name, result in zip(left, tuner.fit(), strict=False):
            if result.error is not None:
                reason = str(result.error).strip().splitlines()[-1]
                ledger.put(replace(ledger.get(known[name]), status="failed", reason=reason))


def _results(trial: Trial) -> list[dict[str, Any]]:
    """What the trial told Tune at each evaluation."""
    results, best = [], None
    for point in trial.curve:
        if point.valid_spearman is not None:
            best = point.valid_spearman if best is None else max(best, point.valid_spearman)
        results.append(_result(point.episode, best))
    return results


def _result(episode: int, best: float | None) -> dict[str, Any]:
    return {"episode": episode, "spearman": WORST if best is None else best}
