"""Trials on a real local Ray Tune: real trainings, real kills, compared with the same ones trained without Ray."""

import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from cluster.objects import FolderStore
from cluster.runtime import session
from cluster.settings import LaneConfig
from cluster.trial import TrialTasks
from cluster.tune import TuneJob, _Scheduler, run_trials
from dass.errors import ConfigError
from dass.meta.train import MetaProgress
from dass.meta.tuning import Trial, TuneConfig
from tests.cluster.tuning import BASE, TASKS, undisturbed

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]  # Ray warns of its own deprecations

LANES = LaneConfig(num=2, checkpoint_s=0.01, max_failures=1)
LONG = replace(BASE, episodes=120)


@pytest.fixture(scope="module", autouse=True)
def ray_session() -> Iterator[None]:
    with session(num_cpus=2):
        yield


@pytest.fixture(autouse=True)
def _watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy trials take a second or less: look often enough to meet them under way."""
    monkeypatch.setattr("cluster.tune.POLL_S", 0.02)


def job_of(folder: Path, *planned: Trial, **changes: Any) -> TuneJob:
    job = TuneJob(str(folder), "key", "trials", planned[0].config, TuneConfig(), LANES, planned)
    return replace(job, **changes)


def outcome(job: TuneJob) -> tuple[Trial, ...]:
    *_, last = run_trials(job, TASKS)
    return last


def objects(folder: Path) -> dict[str, bytes]:
    store = FolderStore(folder)
    return {key: store.get(key) for key in store.list("tuning/")}


def actors() -> Iterator[psutil.Process]:
    """The processes in which trials are trained."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if "_TrialActor" in "".join(process.cmdline()):
                yield process


def test_trials_equal_training_without_ray_and_one_that_fails_ends_nothing(tmp_path: Path) -> None:
    configs = [BASE, replace(BASE, hidden_dim=2**50), replace(BASE, lr=0.01, unit="task_free"), replace(BASE, seed=3)]
    job = job_of(tmp_path, *(Trial(number, config) for number, config in enumerate(configs)))
    trials = outcome(job)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[1].status == "failed"
    assert trials[1].reason.startswith("RuntimeError: ")
    for trial in (trials[0], *trials[2:]):
        assert trial.status in ("finished", "stopped")
        assert trial.curve == undisturbed(trial.config).history[: len(trial.curve)]
        assert (trial.status == "finished") == (trial.episode == BASE.episodes) == (trial.predictor is not None)
    assert "finished" in {trial.status for trial in trials}  # the best at a rung always goes on

    before = objects(tmp_path)
    assert [trial.status for trial in outcome(job)] == [
        trial.status for trial in trials
    ]  # only the failed one is tried
    assert objects(tmp_path) == before


class LostTasks(TrialTasks):
    """Tasks that no process gets hold of."""

    def to(self, device: torch.device) -> TrialTasks:
        raise RuntimeError(f"no room on {device}")


def test_a_trial_whose_process_never_begins_has_failed_for_its_reason(tmp_path: Path) -> None:
    job = job_of(tmp_path, Trial(0, BASE), Trial(1, replace(BASE, seed=3)), lanes=replace(LANES, max_failures=0))
    *_, trials = run_trials(job, LostTasks(TASKS.spec, TASKS.train, TASKS.valid))
    assert [trial.status for trial in trials] == ["failed", "failed"]
    assert all("no room on cpu" in trial.reason for trial in trials), [trial.reason for trial in trials]


def test_an_abandoned_tuning_goes_on_where_it_was(tmp_path: Path) -> None:
    configs = [replace(LONG, episodes=9), *(replace(LONG, lr=lr, episodes=9) for lr in (1e-3, 2e-3, 4e-3))]
    job = job_of(
        tmp_path, *(Trial(number, config) for number, config in enumerate(configs)), lanes=replace(LANES, num=1)
    )
    progress = run_trials(job, TASKS)
    for trials in progress:
        if sum(trial.is_settled for trial in trials) >= 1:
            break
    progress.close()
    settled = {trial.number: trial for trial in job.ledger.read(job.by_name).values() if trial.is_settled}
    assert 1 <= len(settled) < 4
    before = {number: objects(tmp_path)[f"tuning/key/trials/{number}.json"] for number in settled}
    trials = outcome(job)
    assert all(trial.is_settled for trial in trials)
    assert {number: objects(tmp_path)[f"tuning/key/trials/{number}.json"] for number in settled} == before
    for trial in trials:
        assert trial.curve == undisturbed(trial.config).history[: len(trial.curve)]


def test_a_killed_process_costs_a_trial_nothing_but_time(tmp_path: Path) -> None:
    job = job_of(tmp_path, Trial(0, LONG))
    killed = 0
    for (trial,) in run_trials(job, TASKS):
        if not killed and 3 <= len(trial.curve) < LONG.episodes and list(job.ledger.store.list("checkpoints/")):
            for process in actors():
                process.send_signal(signal.SIGKILL)
                killed += 1
    assert killed == 1
    assert trial.status == "finished"
    assert trial.curve == undisturbed(LONG).history


def test_trials_that_no_machine_of_this_ray_can_hold_are_refused_and_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lanes\.cpus must be <= 2 on this machine, got 64"):
        outcome(job_of(tmp_path, Trial(0, BASE), lanes=replace(LANES, cpus=64.0)))


class _TuneTrial:
    """What Tune shows its scheduler of a trial."""

    def __init__(self, name: str) -> None:
        self.trial_id, self.config = f"tune-{name}", {"name": name}


def curve(*values: float) -> tuple[MetaProgress, ...]:
    return tuple(MetaProgress(episode, 1.0, value, False, 0) for episode, value in enumerate(values))


def decisions(job: TuneJob, name: str, values: list[float], begin: int = 0) -> list[str]:
    """What a scheduler that has read the ledger says to these results of a trial."""
    scheduler, trial = _Scheduler(job, job.ledger.read(job.by_name)), _TuneTrial(name)
    scheduler.on_trial_add(None, trial)
    return [
        scheduler.on_trial_result(None, trial, {"episode": begin + index, "spearman": value})
        for index, value in enumerate(values)
    ]


def test_the_scheduler_knows_what_an_earlier_tuning_saw(tmp_path: Path) -> None:
    job = job_of(tmp_path, *(Trial(number, BASE) for number in range(3)))  # rungs at 1, 3 and 9 episodes
    assert decisions(job, "2", [0.1, 0.1, 0.1, 0.1]) == ["CONTINUE"] * 4  # the first at a rung always goes on
    for number, status, values in ((0, "finished", (0.0, 0.5, 0.6, 0.7)), (1, "stopped", (0.0, 0.2))):
        job.ledger.put(Trial(number, BASE, status, curve(*values)))  # type: ignore[arg-type]
    job.ledger.put(Trial(2, BASE, "running", curve(0.1)))
    before = objects(tmp_path)
    assert decisions(job, "2", [0.1, 0.45, 0.65, 0.7]) == ["CONTINUE", "CONTINUE", "CONTINUE", "CONTINUE"]
    assert objects(tmp_path) == before
    assert decisions(job, "2", [0.1, 0.3]) == ["CONTINUE", "STOP"]
    assert job.ledger.get(Trial(2, BASE)).status == "stopped"


def test_a_trial_that_goes_on_is_not_judged_again_where_it_has_passed(tmp_path: Path) -> None:
    job = job_of(tmp_path, Trial(0, BASE), Trial(1, BASE))
    job.ledger.put(Trial(0, BASE, "finished", curve(0.0, 0.5, 0.6, 0.7)))
    job.ledger.put(Trial(1, BASE, "running", curve(0.0, 0.3, 0.3)))  # it came first to episode 1
    assert decisions(job, "1", [0.3], begin=2) == ["CONTINUE"]
    job.ledger.put(Trial(1, BASE, "running", curve(0.0, 0.3)))  # stopped there, or not: the decision was lost
    assert decisions(job, "1", [0.3], begin=1) == ["STOP"]
