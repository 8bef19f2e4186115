"""Cohorts against the promise that a run's result is its own: real trainings, compared bit by bit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.data.batches import BatchSource, ResidentBatches
from dass.errors import ConfigError, SpaceError
from dass.kd.cohort import Cohort, Position, cosine_lr, evaluate
from dass.kd.teacher import Teacher, teacher_run
from dass.networks import build
from dass.precision import full_float32
from dass.records import Loss, Precision, Run, Status
from dass.remap import remap
from dass.seeding import generator
from dass.spaces import get_space
from tests.dass.kd.tiny import (
    DATA,
    NUM_CLASSES,
    RECIPE,
    RUNS,
    SPACE,
    STEPS,
    TEACHER,
    TEACHER_RECIPE,
    CountingTeacher,
    RecordingSource,
    Trace,
    make_data,
    make_runs,
    make_teacher,
    tensors_of,
    trace,
    without_seconds,
)

NUM_STEPS = RECIPE.epochs * STEPS


class TestResult:
    def test_it_is_the_same_alone(self, together: Trace) -> None:
        for run in RUNS:
            alone = trace(Cohort([run], DATA, TEACHER, keep_weights=True, yield_every=1))
            assert alone.outcome(run) == together.outcome(run)
            assert without_seconds(alone.states[run.id]) == without_seconds(together.states[run.id])

    def test_it_is_the_same_in_another_order(self, together: Trace) -> None:
        turned = trace(Cohort(RUNS[::-1], DATA, TEACHER, keep_weights=True, yield_every=1))
        for run in RUNS:
            assert turned.outcome(run) == together.outcome(run)
            assert without_seconds(turned.states[run.id]) == without_seconds(together.states[run.id])

    @pytest.mark.parametrize("yield_every", [2, 1000])
    def test_it_does_not_depend_on_how_often_the_cohort_yields(self, together: Trace, yield_every: int) -> None:
        seldom = trace(Cohort(RUNS, DATA, TEACHER, keep_weights=True, yield_every=yield_every))
        assert [seldom.outcome(run) for run in RUNS] == [together.outcome(run) for run in RUNS]

    def test_it_tells_the_students_apart(self, together: Trace) -> None:
        assert len({together.result(run).curve for run in RUNS}) == len(RUNS)

    def test_it_sums_up_its_curve(self, together: Trace) -> None:
        for run in RUNS:
            result = together.result(run)
            accuracies = [point.valid_accuracy_pct for point in result.curve]
            assert [point.epoch for point in result.curve] == [1, 2, 3]
            assert (result.status, result.diverged_epoch) == (Status.FINISHED, None)
            assert (result.best_accuracy_pct, result.final_accuracy_pct) == (max(accuracies), accuracies[-1])
            assert result.final_loss == result.curve[-1].valid_loss

    def test_it_depends_on_the_seed(self, together: Trace) -> None:
        run = replace(RUNS[0], seed=1)
        other = trace(Cohort([run], DATA, TEACHER)).result(run)
        assert other.init_accuracy_pct == together.result(RUNS[0]).init_accuracy_pct  # remapped: the same weights
        assert other.curve != together.result(RUNS[0]).curve

    def test_training_leaves_the_global_random_numbers_and_the_teacher_alone(self) -> None:
        before = torch.get_rng_state(), {name: tensor.clone() for name, tensor in TEACHER.state.items()}
        trace(Cohort(RUNS[:1], DATA, TEACHER))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(torch.equal(tensor, before[1][name]) for name, tensor in TEACHER.state.items())

    def test_in_bfloat16_it_is_the_same_alone_and_after_a_resume(self) -> None:
        runs = make_runs(DATA, TEACHER, replace(RECIPE, precision="bfloat16"))
        together = trace(Cohort(runs, DATA, TEACHER, keep_weights=True, yield_every=1))
        for run in runs:
            alone = trace(Cohort([run], DATA, TEACHER, keep_weights=True, yield_every=1))
            assert alone.outcome(run) == together.outcome(run)
            state = together.states[run.id][Position(1, 2)]
            resumed = trace(Cohort([run], DATA, TEACHER, states={run.id: state}, keep_weights=True))
            assert resumed.outcome(run) == together.outcome(run)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_a_gpu_trains_the_same_up_to_rounding_and_a_cpu_goes_on_from_there(self, together: Trace) -> None:
        with full_float32():
            gpu = trace(Cohort(RUNS, make_data(device="cuda"), TEACHER, keep_weights=True, yield_every=1))
        states = {run.id: gpu.states[run.id][Position(1, 2)] for run in RUNS}
        cpu = trace(Cohort(RUNS, DATA, TEACHER, states=states, keep_weights=True))
        for run in RUNS:
            found, expected = gpu.result(run), together.result(run)
            assert found.curve[0].train_loss == pytest.approx(expected.curve[0].train_loss, rel=1e-3)
            assert found.curve[0].valid_loss == pytest.approx(expected.curve[0].valid_loss, rel=1e-2)
            assert found.final_loss == pytest.approx(expected.final_loss, rel=0.05)
            assert cpu.result(run).final_loss == pytest.approx(found.final_loss, rel=0.05)

    def test_the_other_memory_format_is_the_same_training_up_to_rounding(self, together: Trace) -> None:
        other = trace(Cohort(RUNS[:1], DATA, TEACHER, yield_every=1, memory_format=torch.contiguous_format))
        assert other.result(RUNS[0]).status is Status.FINISHED
        ours, theirs = (other.result(RUNS[0]).curve[0], together.result(RUNS[0]).curve[0])
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)
        assert ours.valid_loss == pytest.approx(theirs.valid_loss, rel=1e-3)
        state = other.states[RUNS[0].id][Position(1, 2)]
        again = Cohort(RUNS[:1], DATA, TEACHER, states={RUNS[0].id: state}, memory_format=torch.contiguous_format)
        assert trace(again).result(RUNS[0]) == other.result(RUNS[0])


def plain_training(run: Run, teacher: Teacher, data: BatchSource) -> tuple[torch.nn.Module, list[float]]:
    """A second implementation of one run from torch's own parts: the network, and the loss of every step."""
    network, expert = build(run.student, NUM_CLASSES), build(teacher.student, NUM_CLASSES)
    network.load_state_dict(remap(teacher.state, teacher.student, run.student, "copy_paste_first"))
    expert.load_state_dict(dict(teacher.state))
    for module in (network, expert.eval()):
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # as cohorts: others round otherwise
    rounded = torch.autocast("cpu", torch.bfloat16, enabled=run.recipe.precision == "bfloat16")
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=3e-5, foreach=False
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.recipe.epochs * STEPS)
    losses = []
    for epoch in range(run.recipe.epochs):
        batches = data.train_epoch(run.recipe, run.seed, epoch)
        for index in range(len(batches)):
            images, labels = batches.batch(index)
            images = images.contiguous(memory_format=torch.channels_last)
            with rounded, torch.no_grad():
                target = F.softmax(expert(images).float() / 6, dim=1)
            with rounded:
                logits = network(images).float()
            loss = 0.5 * 36 * F.cross_entropy(logits / 6, target) + 0.5 * F.cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
    return network.eval(), losses


class TestTraining:
    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_it_equals_a_plain_loop_of_torch(self, precision: Precision) -> None:
        run = make_runs(DATA, TEACHER, replace(RECIPE, epochs=2, eval_every=2, precision=precision), num=1)[0]
        seen = trace(Cohort([run], DATA, TEACHER, keep_weights=True))
        network, losses = plain_training(run, TEACHER, DATA)
        weights = seen.ended[run.id].weights
        assert weights is not None
        for name, tensor in network.state_dict().items():  # evaluated once, so the best weights are the last
            torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
        (point,) = seen.result(run).curve
        assert point.train_loss == pytest.approx(sum(losses[STEPS:]) / STEPS, rel=1e-5)
        ((images, labels),) = DATA.evaluation("valid")
        logits = network(images)
        assert point.valid_loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-4)
        assert point.valid_accuracy_pct == 100 * (logits.argmax(1) == labels).sum().item() / len(labels)

    def test_it_learns_what_there_is_to_learn(self, skilled: tuple[ResidentBatches, Teacher]) -> None:
        assert skilled[1].accuracy_pct >= 90

    @pytest.mark.parametrize(
        ("percent", "expected"), [(0, 0.05), (25, 0.0426777), (50, 0.025), (75, 0.0073223), (100, 0)]
    )
    def test_the_learning_rate_falls_as_a_cosine(self, percent: int, expected: float) -> None:
        assert cosine_lr(0.05, percent, 100) == pytest.approx(expected, abs=1e-7)

    def test_a_student_of_the_teachers_shape_begins_as_the_teacher(self) -> None:
        run = replace(RUNS[0], student=SPACE.largest)
        ((_, accuracy),) = evaluate([TEACHER.network(NUM_CLASSES)], DATA)
        assert trace(Cohort([run], DATA, TEACHER)).result(run).init_accuracy_pct == accuracy

    def test_weights_from_scratch_belong_to_the_run(self) -> None:
        runs = make_runs(DATA, TEACHER, replace(RECIPE, init="scratch", epochs=1))
        seen = trace(Cohort(runs, DATA, TEACHER))
        for run in runs:
            fresh = build(run.student, NUM_CLASSES, generator("init", run.id))
            ((_, accuracy),) = evaluate([fresh.eval()], DATA)
            assert seen.result(run).init_accuracy_pct == accuracy

    def test_distilling_does_not_end_where_cross_entropy_does(self, together: Trace) -> None:
        run = replace(RUNS[0], recipe=replace(RECIPE, loss="ce"))
        result = trace(Cohort([run], DATA, TEACHER)).result(run)
        assert result.status is Status.FINISHED
        assert result.init_accuracy_pct == together.result(RUNS[0]).init_accuracy_pct
        assert result.curve != together.result(RUNS[0]).curve


class TestYields:
    def test_they_come_at_every_so_many_steps_and_after_each_evaluation(self) -> None:
        run = replace(RUNS[0], recipe=replace(RECIPE, epochs=5, eval_every=2))
        seen = trace(Cohort([run], DATA, TEACHER, yield_every=STEPS))
        assert [progress.step for progress in seen.progress] == [3, 6, 9, 12, 15]
        assert [progress.epoch for progress in seen.progress] == [1, 2, 3, 4, 5]
        assert {progress.num_steps for progress in seen.progress} == {15}
        assert [point.epoch for point in seen.result(run).curve] == [2, 4, 5]

    def test_epochs_without_evaluation_or_due_step_pass_in_silence(self) -> None:
        run = replace(RUNS[0], recipe=replace(RECIPE, epochs=5, eval_every=2))
        seen = trace(Cohort([run], DATA, TEACHER, yield_every=7))
        assert [(progress.step, progress.epoch) for progress in seen.progress] == [
            (6, 2),
            (7, 2),
            (12, 4),
            (14, 4),
            (15, 5),
        ]

    def test_runs_end_with_the_last_one(self, together: Trace) -> None:
        assert [len(progress.ended) for progress in together.progress] == [0] * (NUM_STEPS - 1) + [3]

    def test_a_run_that_is_dropped_leaves_the_others_as_they_were(self, together: Trace) -> None:
        cohort = Cohort(RUNS, DATA, TEACHER, keep_weights=True, yield_every=1)
        iteration = cohort.train()
        for _ in range(4):
            next(iteration)
        cohort.drop(RUNS[1].id)
        assert cohort.runs == (RUNS[0], RUNS[2])
        seen = Trace(ended={ended.run.id: ended for progress in iteration for ended in progress.ended})
        assert seen.ended.keys() == {RUNS[0].id, RUNS[2].id}
        assert [seen.outcome(run) for run in RUNS[::2]] == [together.outcome(run) for run in RUNS[::2]]

    @pytest.mark.parametrize("num_yields", [1, STEPS])
    def test_a_cohort_without_runs_ends(self, num_yields: int) -> None:
        cohort = Cohort(RUNS[:2], DATA, TEACHER, yield_every=1)
        iteration = cohort.train()
        for _ in range(num_yields):
            next(iteration)
        for run in RUNS[:2]:
            cohort.drop(run.id)
        assert list(iteration) == []

    def test_there_is_no_state_before_the_first_yield(self) -> None:
        with pytest.raises(ValueError, match="from the first yield on"):
            Cohort(RUNS[:1], DATA, TEACHER).state(RUNS[0].id)

    def test_a_run_that_is_not_trained_has_no_state(self) -> None:
        cohort = Cohort(RUNS[:2], DATA, TEACHER)
        for ask in (cohort.state, cohort.drop):
            with pytest.raises(ValueError, match=f"got {RUNS[2].id}"):
                ask(RUNS[2].id)


class TestWeights:
    def test_a_teacher_is_trained_without_one(self, own: tuple[Run, Trace]) -> None:
        run, seen = own
        result, weights = seen.result(run), seen.ended[run.id].weights
        assert weights is not None
        assert result.best_accuracy_pct is not None
        network = Teacher(run.id, run.student, weights, result.best_accuracy_pct).network(NUM_CLASSES)
        ((_, valid_pct),), ((_, test_pct),) = evaluate([network], DATA, "valid"), evaluate([network], DATA, "test")
        assert (valid_pct, test_pct) == (result.best_accuracy_pct, result.test_accuracy_pct)

    def test_test_is_measured_with_the_best_weights_and_not_with_the_last(self) -> None:
        data = make_data(num_test=90)
        for seed in range(3):
            run = teacher_run(data.task, SPACE, replace(TEACHER_RECIPE, epochs=4, lr=0.05), seed)
            ended = trace(Cohort([run], data, None, keep_weights=True)).ended[run.id]
            assert ended.weights is not None
            network = Teacher(run.id, run.student, ended.weights, 0.0).network(NUM_CLASSES)
            assert evaluate([network], data, "test")[0][1] == ended.result.test_accuracy_pct

    def test_a_teachers_run_resumes_like_any_other(self, own: tuple[Run, Trace]) -> None:
        run, seen = own
        for position, state in seen.states[run.id].items():
            again = trace(Cohort([run], DATA, None, states={run.id: state}, keep_weights=True))
            assert again.outcome(run) == seen.outcome(run), position

    def test_none_are_kept_and_test_is_not_touched_unless_asked_for(self, together: Trace) -> None:
        source = RecordingSource(DATA)
        run = RUNS[0]
        ended = trace(Cohort([run], source, TEACHER)).ended[run.id]
        assert (ended.weights, ended.result.test_accuracy_pct) == (None, None)
        assert source.parts == ["valid"] * (1 + RECIPE.epochs)
        assert replace(together.result(run), test_accuracy_pct=None) == ended.result

    def test_test_is_measured_once_at_the_end(self) -> None:
        source = RecordingSource(DATA)
        trace(Cohort(RUNS[:1], source, TEACHER, keep_weights=True))
        assert source.parts == ["valid"] * (1 + RECIPE.epochs) + ["test"]

    def test_weights_are_kept_without_a_test_part_too(self) -> None:
        data = make_data(num_test=0)
        (run,) = make_runs(data, TEACHER, replace(RECIPE, epochs=1), num=1)
        ended = trace(Cohort([run], data, TEACHER, keep_weights=True)).ended[run.id]
        assert ended.weights is not None
        assert ended.result.test_accuracy_pct is None

    def test_the_best_are_the_earliest_of_equals(self, skilled: tuple[ResidentBatches, Teacher]) -> None:
        data, teacher = skilled
        run = Run(data.task.id, teacher.id, teacher.student, replace(RECIPE, lr=1e-5))
        seen = trace(Cohort([run], data, teacher, keep_weights=True))
        accuracies = [point.valid_accuracy_pct for point in seen.result(run).curve]
        assert accuracies == [accuracies[0]] * RECIPE.epochs
        weights, after_first = seen.ended[run.id].weights, tensors_of(seen.states[run.id][Position(1, 0)])
        assert weights is not None
        assert all(torch.equal(weights[name], tensor) for name, tensor in after_first.items())


def batches_of(run: Run, *company: Run) -> list[str]:
    """The training batches that a cohort asks for, by their contents."""
    source = RecordingSource(DATA)
    trace(Cohort([run, *company], source, TEACHER))
    return source.batches


class TestSharing:
    def test_the_teacher_sees_each_batch_once_whatever_the_number_of_students(self) -> None:
        teacher = CountingTeacher(**vars(TEACHER))
        trace(Cohort(RUNS, DATA, teacher))
        assert teacher.passes == [RECIPE.batch_size] * NUM_STEPS

    def test_cross_entropy_asks_no_teacher(self) -> None:
        teacher = CountingTeacher(**vars(TEACHER))
        trace(Cohort([replace(RUNS[0], recipe=replace(RECIPE, loss="ce"))], DATA, teacher))
        assert teacher.passes == []

    def test_a_batch_is_taken_once_and_no_two_are_alike(self) -> None:
        assert len(batches_of(*RUNS)) == len(set(batches_of(*RUNS))) == NUM_STEPS

    def test_batches_depend_on_the_seed_and_not_on_the_company(self) -> None:
        alone = batches_of(RUNS[0])
        assert alone == batches_of(*RUNS) == batches_of(RUNS[2], RUNS[1])
        assert not set(alone) & set(batches_of(replace(RUNS[0], seed=1)))


class TestEvaluation:
    @pytest.mark.parametrize("num", [1, 255, 256, 300, 513])
    def test_every_image_counts_once(self, num: int) -> None:
        data = make_data(num_valid=max(num, NUM_CLASSES), num_test=num)
        networks = [TEACHER.network(NUM_CLASSES), build(SPACE.smallest, NUM_CLASSES, generator("any")).eval()]
        images, labels = data.parts["test"]
        for network, (loss, accuracy) in zip(networks, evaluate(networks, data, "test"), strict=True):
            logits = torch.cat([network(images[index : index + 1] / 127.5 - 1) for index in range(num)]).double()
            assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
            assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())

    def test_no_network_gives_no_result(self) -> None:
        assert evaluate([], DATA) == []


class TestErrors:
    @pytest.mark.parametrize(
        "other",
        [
            replace(RUNS[1], task="another"),
            replace(RUNS[1], teacher="s" * 64),
            replace(RUNS[1], recipe=replace(RECIPE, lr=0.01)),
            replace(RUNS[1], seed=1),
            RUNS[0],
        ],
        ids=["task", "teacher", "recipe", "seed", "the same run"],
    )
    def test_runs_that_differ_form_no_cohort(self, other: Run) -> None:
        with pytest.raises(ConfigError, match="all of one task, teacher, recipe and seed and no two equal"):
            Cohort([RUNS[0], other], DATA, TEACHER)

    def test_a_cohort_needs_a_run(self) -> None:
        with pytest.raises(ConfigError, match="at least one run"):
            Cohort([], DATA, TEACHER)

    def test_the_data_must_be_the_runs_own(self) -> None:
        with pytest.raises(ConfigError, match=f"got {DATA.task.id} and {make_data(num_test=3).task.id}"):
            Cohort(RUNS, make_data(num_test=3), TEACHER)

    def test_the_teacher_must_be_the_runs_own(self) -> None:
        with pytest.raises(ConfigError, match=f"got {TEACHER.id} and None"):
            Cohort(RUNS, DATA, None)
        with pytest.raises(ConfigError, match=f"got {TEACHER.id} and u"):
            Cohort(RUNS, DATA, replace(TEACHER, id="u"))
        with pytest.raises(ConfigError, match=f"got None and {TEACHER.id}"):
            Cohort([teacher_run(DATA.task, SPACE, TEACHER_RECIPE)], DATA, TEACHER)

    @pytest.mark.parametrize("changes", [{"loss": "kd"}, {"init": "copy_paste_first"}])
    def test_a_recipe_that_needs_a_teacher_is_refused_without_one(self, changes: dict[str, Any]) -> None:
        run = teacher_run(DATA.task, SPACE, replace(TEACHER_RECIPE, **changes))
        with pytest.raises(ConfigError, match="teacher"):
            Cohort([run], DATA, None)

    @pytest.mark.parametrize("loss", ["kd", "ce"])
    def test_a_teacher_of_other_classes_or_another_space_is_refused_by_tensor_and_shapes(self, loss: Loss) -> None:
        runs = make_runs(DATA, TEACHER, replace(RECIPE, loss=loss))
        with pytest.raises(SpaceError, match=r"head\.bias of shape \(3,\), got \(5,\)"):
            Cohort(runs, DATA, make_teacher(num_classes=5))
        with pytest.raises(SpaceError, match=r"head\.weight of shape \(3, 64\), got \(3, 256\)"):
            Cohort(runs, DATA, replace(make_teacher(student=get_space("paper5").largest), student=SPACE.largest))
