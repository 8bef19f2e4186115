"""One trial and its ledger without Ray: real trainings, compared with the same ones undisturbed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.checkpoints import get_checkpoint, put_checkpoint
from cluster.ledger import TrialLedger
from cluster.objects import FolderStore
from cluster.trial import STATE, TrialRun
from cluster.weights import get_blob
from dass.errors import StoreError
from dass.meta.train import MetaConfig, MetaTraining
from dass.meta.tuning import Trial, TrialStatus, spec_for
from dass.predictor import load_predictor
from dass.threads import one_thread
from tests.cluster.tuning import BASE, TASKS, undisturbed


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def ledger(tmp_path: Path) -> TrialLedger:
    return TrialLedger(FolderStore(tmp_path), "key", "trials")


def run_of(ledger: TrialLedger, config: MetaConfig = BASE, checkpoint_s: float = 0.0) -> TrialRun:
    return TrialRun(ledger, Trial(3, config), TASKS, checkpoint_s)


def to_the_end(run: TrialRun) -> list[Trial]:
    steps = [run.step()]
    while steps[-1].status == "running":
        steps.append(run.step())
    return steps


def test_each_step_is_one_evaluation_and_stands_in_the_ledger(ledger: TrialLedger) -> None:
    run = run_of(ledger)
    for num in range(1, 4):
        trial = run.step()
        assert len(trial.curve) == num
        assert ledger.get(Trial(3, BASE)) == trial
    *_, last = to_the_end(run)
    assert (last.status, last.reason, last.episode) == ("finished", "", BASE.episodes)
    assert last.curve == undisturbed(BASE).history
    assert last.seconds > 0


def test_what_a_finished_trial_leaves_is_its_best_predictor_and_no_checkpoint(ledger: TrialLedger) -> None:
    *_, last = to_the_end(run_of(ledger))
    assert last.predictor is not None
    assert get_blob(ledger.store, last.predictor) == undisturbed(BASE).best().save()
    assert load_predictor(get_blob(ledger.store, last.predictor)).is_selected
    assert list(ledger.store.list("checkpoints/")) == []


@pytest.mark.parametrize("checkpoint_s", [0.0, 1e9])
def test_an_interrupted_trial_goes_on_to_the_same_bits(checkpoint_s: float, ledger: TrialLedger) -> None:
    run = run_of(ledger, checkpoint_s=checkpoint_s)
    before = [run.step() for _ in range(4)][-1]
    steps = to_the_end(run_of(ledger, checkpoint_s=checkpoint_s))
    assert steps[0].curve == (before.curve if checkpoint_s == 0 else before.curve[:1])  # nothing computed, or anew
    assert steps[-1].curve == undisturbed(BASE).history
    assert steps[-1].predictor is not None
    assert get_blob(ledger.store, steps[-1].predictor) == undisturbed(BASE).best().save()
    assert steps[-1].seconds > before.seconds


def test_a_finalist_goes_on_from_the_checkpoint_of_the_trial_that_it_was(ledger: TrialLedger) -> None:
    run = run_of(ledger)
    stopped = [run.step() for _ in range(4)][-1]
    finals = replace(ledger, phase="finals")
    assert run_of(finals).step().curve == stopped.curve
    other = TrialRun(finals, Trial(3, replace(BASE, seed=99)), TASKS, 0.0)
    assert len(other.step().curve) == 1
    assert len(list(ledger.store.list("tuning/key/"))) == 3


@pytest.mark.parametrize("damage", ["truncated", "of another training"])
def test_a_checkpoint_of_no_use_costs_episodes_and_not_the_trial(damage: str, ledger: TrialLedger) -> None:
    run = run_of(ledger)
    for _ in range(3):
        trial = run.step()
    state = get_checkpoint(ledger.store, ledger.run_id(trial), STATE)
    other = replace(BASE, seed=5)
    strange = MetaTraining(spec_for(other, TASKS.spec), other, TASKS.train, TASKS.valid).state_bytes()
    put_checkpoint(ledger.store, ledger.run_id(trial), STATE, state[:100] if damage == "truncated" else strange)
    *_, last = to_the_end(run_of(ledger))
    assert last.curve == undisturbed(BASE).history


def test_a_trial_whose_process_died_after_its_last_word_is_not_trained_again(ledger: TrialLedger) -> None:
    *_, last = to_the_end(run_of(ledger))
    before = {key: ledger.store.get(key) for key in ledger.store.list()}
    assert run_of(ledger).step() == last
    assert {key: ledger.store.get(key) for key in ledger.store.list()} == before


def test_a_trial_that_cannot_be_trained_is_failed_with_its_reason(ledger: TrialLedger) -> None:
    trial = run_of(ledger, replace(BASE, hidden_dim=2**50)).step()
    assert (trial.status, trial.curve) == ("failed", ())
    assert trial.reason.startswith("RuntimeError: ")
    assert ledger.get(trial) == trial


def test_a_loss_that_is_not_finite_is_told_and_ends_nothing(ledger: TrialLedger) -> None:
    wild = replace(BASE, rate_init=1e30, inner_steps=3)
    *_, last = to_the_end(run_of(ledger, wild))
    assert last.status == "finished"
    num = sum(point.loss is None for point in undisturbed(wild).history[1:])
    assert num > 0
    assert last.reason == f"the loss was not finite before {num} of {BASE.episodes} evaluations"


def test_a_ledger_reads_what_is_there_and_leaves_what_is_settled(ledger: TrialLedger) -> None:
    trials = {str(number): Trial(number, BASE) for number in range(4)}
    there: tuple[TrialStatus, ...] = ("finished", "stopped", "running")
    for number, status in enumerate(there):
        ledger.put(Trial(number, BASE, status))
    known = ledger.read(trials)
    assert [trial.status for trial in known.values()] == ["finished", "stopped", "running", "pending"]
    for number in range(3):
        ledger.store.delete(f"tuning/key/trials/{number}.json")
    again = ledger.read(known)
    assert [trial.status for trial in again.values()] == ["finished", "stopped", "running", "pending"]


def test_a_damaged_entry_is_an_error_that_names_it(ledger: TrialLedger) -> None:
    ledger.store.put("tuning/key/trials/3.json", b'{"schema":1,"value":{"number":3}}')
    with pytest.raises(StoreError, match=r"tuning/key/trials/3\.json must hold"):
        run_of(ledger)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_tasks_move_to_a_gpu_and_train_there(ledger: TrialLedger) -> None:
    tasks = TASKS.to(torch.device("cuda"))
    run = TrialRun(ledger, Trial(3, BASE), tasks, 0.0)
    *_, last = to_the_end(run)
    first, expected = last.curve[0].valid_spearman, undisturbed(BASE).history[0].valid_spearman
    assert first == pytest.approx(expected, abs=0.05)
    assert last.status == "finished"
