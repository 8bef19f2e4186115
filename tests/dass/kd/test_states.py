"""Saved states of runs: whoever resumes them gets the same bits, and one that cannot be resumed is refused."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from dass.errors import ConfigError, StoreError
from dass.kd.cohort import Cohort, Position, state_position
from dass.kd.member import Member
from dass.records import Run, Status
from dass.tensors import pack_tensors
from tests.dass.kd.tiny import (
    DATA,
    RECIPE,
    RUNS,
    STEPS,
    TEACHER,
    Trace,
    changed,
    make_runs,
    tensors_of,
    trace,
    without_seconds,
)

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda state: state[:0],
    "truncated": lambda state: state[:-100],
    "another shape": lambda state: changed(state, {"network.head.bias": torch.zeros(5)}),
    "no weight": lambda state: changed(state, without=["network.head.bias"]),
    "no loss": lambda state: changed(state, without=["loss_sum"]),
    "no run": lambda state: pack_tensors(tensors_of(state, ""), {"version": 1}),
    "no position": lambda state: changed(state, position={"epoch": 1, "step": 1}),
    "no curve": lambda state: changed(state, curve=[{"epoch": 1}]),
    "beyond floats": lambda state: changed(state, init_accuracy_pct=10**400),
}


def states_at(seen: Trace, position: Position, *runs: Run) -> dict[str, bytes]:
    return {run.id: seen.states[run.id][position] for run in runs}


def with_other_tensors(state: bytes, name: str, value: float) -> bytes:
    """A state in which one tensor holds `value` everywhere."""
    return changed(state, {name: torch.full_like(tensors_of(state, "")[name], value)})


class TestResuming:
    def test_there_is_a_state_at_every_step(self, together: Trace) -> None:
        inside = [Position(epoch, batch) for epoch in range(RECIPE.epochs) for batch in range(STEPS)]
        assert together.positions(RUNS[0]) == inside[1:]
        for run in RUNS:
            for position, state in together.states[run.id].items():
                assert state_position(state) == (run.id, position)

    def test_every_state_resumes_alone(self, together: Trace) -> None:
        for index, position in enumerate(together.positions(RUNS[0])):
            run = RUNS[index % len(RUNS)]
            cohort = Cohort([run], DATA, TEACHER, states=states_at(together, position, run), keep_weights=True)
            assert cohort.position == position
            assert trace(cohort).outcome(run) == together.outcome(run)

    def test_every_state_resumes_in_company(self, together: Trace) -> None:
        for position in together.positions(RUNS[0]):
            states = states_at(together, position, *RUNS)
            again = trace(Cohort(RUNS, DATA, TEACHER, states=states, keep_weights=True, yield_every=1))
            for run in RUNS:
                later = without_seconds(together.states[run.id])
                assert again.outcome(run) == together.outcome(run)
                assert without_seconds(again.states[run.id]).items() <= later.items()

    def test_every_state_resumes_regrouped_with_runs_of_another_cohort(self, together: Trace) -> None:
        others = make_runs(DATA, TEACHER, num=5)[3:]
        apart = trace(Cohort(others, DATA, TEACHER, keep_weights=True, yield_every=1))
        for position in together.positions(RUNS[0]):
            group = [others[1], RUNS[2], RUNS[0]]
            states = states_at(together, position, *RUNS) | states_at(apart, position, *others)
            mixed = trace(Cohort(group, DATA, TEACHER, states=states, keep_weights=True))
            assert mixed.outcome(others[1]) == apart.outcome(others[1])
            assert mixed.outcome(RUNS[2]) == together.outcome(RUNS[2])
            assert mixed.outcome(RUNS[0]) == together.outcome(RUNS[0])

    def test_an_iteration_that_was_left_goes_on(self, together: Trace) -> None:
        cohort = Cohort(RUNS, DATA, TEACHER, keep_weights=True, yield_every=2)
        next(cohort.train())
        seen = trace(cohort)
        assert [seen.outcome(run) for run in RUNS] == [together.outcome(run) for run in RUNS]

    def test_the_cost_of_the_earlier_cohort_counts(self, together: Trace) -> None:
        run, position = RUNS[0], Position(2, 2)
        state = changed(together.states[run.id][position], seconds=1000.0)
        assert 1000 < trace(Cohort([run], DATA, TEACHER, states={run.id: state})).ended[run.id].seconds < 1100

    def test_a_run_without_momentum_resumes_too(self) -> None:
        run = replace(RUNS[0], recipe=replace(RECIPE, momentum=0.0))
        whole = trace(Cohort([run], DATA, TEACHER, yield_every=1))
        states = states_at(whole, Position(1, 1), run)
        assert trace(Cohort([run], DATA, TEACHER, states=states)).result(run) == whole.result(run)


class TestDivergence:
    """One run is given weights or statistics that no training survives."""

    START = Position(0, 1)

    def spoilt(self, together: Trace, name: str, value: float, yield_every: int = 50) -> Trace:
        states = states_at(together, self.START, *RUNS)
        states[RUNS[1].id] = with_other_tensors(states[RUNS[1].id], name, value)
        return trace(Cohort(RUNS, DATA, TEACHER, states=states, keep_weights=True, yield_every=yield_every))

    @pytest.mark.parametrize("yield_every", [1, 1000])
    def test_a_loss_that_is_not_finite_drops_its_run_alone(self, together: Trace, yield_every: int) -> None:
        seen = self.spoilt(together, "network.head.weight", 1e38, yield_every=yield_every)
        lost = seen.result(RUNS[1])
        assert (lost.status, lost.diverged_epoch, lost.curve) == (Status.DIVERGED, 1, ())
        assert (lost.best_accuracy_pct, lost.final_accuracy_pct, lost.final_loss) == (None, None, None)
        assert seen.ended[RUNS[1].id].weights is None
        assert [seen.outcome(run) for run in (RUNS[0], RUNS[2])] == [
            together.outcome(run) for run in (RUNS[0], RUNS[2])
        ]
        assert [ended.run for ended in seen.progress[0].ended] == [RUNS[1]]

    def test_a_loss_on_valid_that_is_not_finite_does_so_too(self, together: Trace) -> None:
        seen = self.spoilt(together, "network.stem.bn.running_mean", float("nan"))
        lost = seen.result(RUNS[1])
        assert (lost.status, lost.diverged_epoch, lost.curve) == (Status.DIVERGED, 1, ())
        assert [seen.outcome(run) for run in (RUNS[0], RUNS[2])] == [
            together.outcome(run) for run in (RUNS[0], RUNS[2])
        ]

    def test_what_was_seen_before_is_kept(self, together: Trace) -> None:
        run, position = RUNS[1], Position(1, 2)
        state = with_other_tensors(together.states[run.id][position], "network.head.weight", 1e38)
        lost = trace(Cohort([run], DATA, TEACHER, states={run.id: state})).result(run)
        assert (lost.status, lost.diverged_epoch) == (Status.DIVERGED, 2)
        assert lost.curve == together.result(run).curve[:1]
        assert lost.final_accuracy_pct == lost.best_accuracy_pct == lost.curve[0].valid_accuracy_pct
        assert lost.init_accuracy_pct == together.result(run).init_accuracy_pct

    @pytest.mark.parametrize("yield_every", [1, 1000])
    def test_a_learning_rate_too_large_ends_every_run_and_the_iteration(self, yield_every: int) -> None:
        runs = make_runs(DATA, TEACHER, replace(RECIPE, lr=1e30))
        cohort = Cohort(runs, DATA, TEACHER, yield_every=yield_every)
        seen = trace(cohort)
        assert {seen.result(run).status for run in runs} == {Status.DIVERGED}
        assert {seen.result(run).diverged_epoch for run in runs} == {1}
        assert cohort.runs == ()


class TestErrors:
    def test_states_must_stand_at_one_position(self, together: Trace) -> None:
        first, second = Position(0, 1), Position(2, 0)
        states = states_at(together, first, RUNS[0]) | states_at(together, second, RUNS[1])
        with pytest.raises(StoreError, match=r"must stand at one position.*epoch=0, batch=1.*epoch=2, batch=0"):
            Cohort(RUNS[:2], DATA, TEACHER, states=states)
        with pytest.raises(StoreError, match=r"must stand at one position.*epoch=0, batch=0.*epoch=2, batch=0"):
            Cohort(RUNS[:2], DATA, TEACHER, states=states_at(together, second, RUNS[1]))

    def test_a_state_must_be_the_runs_own(self, together: Trace) -> None:
        state = together.states[RUNS[1].id][Position(1, 0)]
        with pytest.raises(StoreError, match=f"must be that of run {RUNS[0].id}, got that of {RUNS[1].id}"):
            Cohort(RUNS[:1], DATA, TEACHER, states={RUNS[0].id: state})

    @pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
    def test_a_damaged_state_is_refused(self, together: Trace, damage: Callable[[bytes], bytes]) -> None:
        state = damage(together.states[RUNS[0].id][Position(1, 1)])
        with pytest.raises(StoreError, match="delete"):
            Cohort(RUNS[:1], DATA, TEACHER, states={RUNS[0].id: state})

    @pytest.mark.parametrize("name", ["truncated", "no run", "no position"])
    def test_the_position_of_a_damaged_state_is_refused(self, together: Trace, name: str) -> None:
        with pytest.raises(StoreError, match="delete"):
            state_position(DAMAGES[name](together.states[RUNS[0].id][Position(1, 1)]))

    def test_a_device_that_fails_says_nothing_about_the_state(
        self, together: Trace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(torch.nn.Module, "load_state_dict", fail)
        member = Member(RUNS[0], torch.nn.Linear(1, 1), keep_weights=True)
        with pytest.raises(torch.AcceleratorError):
            member.load(together.states[RUNS[0].id][Position(1, 2)])

    def test_a_state_of_a_newer_version_asks_for_an_upgrade(self, together: Trace) -> None:
        with pytest.raises(StoreError, match="version 1, got 2; upgrade"):
            state_position(changed(together.states[RUNS[0].id][Position(1, 1)], version=2))

    def test_best_weights_do_not_outlive_a_training_that_keeps_none(self, together: Trace) -> None:
        run = RUNS[0]
        careless = Cohort([run], DATA, TEACHER, states=states_at(together, Position(1, 0), run), yield_every=1)
        state = trace(careless).states[run.id][Position(2, 1)]
        with pytest.raises(ConfigError, match="without its best weights"):
            Cohort([run], DATA, TEACHER, states={run.id: state}, keep_weights=True)

    def test_a_state_without_the_best_weights_cannot_keep_weights(self) -> None:
        seen = trace(Cohort(RUNS[:1], DATA, TEACHER, yield_every=1))
        for position, state in seen.states[RUNS[0].id].items():
            if position.epoch == 0:  # nothing was evaluated yet, so nothing is lost
                Cohort(RUNS[:1], DATA, TEACHER, states={RUNS[0].id: state}, keep_weights=True)
            else:
                with pytest.raises(ConfigError, match="without its best weights"):
                    Cohort(RUNS[:1], DATA, TEACHER, states={RUNS[0].id: state}, keep_weights=True)
