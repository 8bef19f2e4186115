"""Leave-one-group-out on toy tasks: who teaches, who chooses, and that what is held out has no influence."""

import dataclasses
import json

import pytest

from dass.data.splits import tiny10, tiny25
from dass.errors import ConfigError
from dass.meta.calibration import calibrate
from dass.meta.calibration_file import from_document, to_document
from dass.meta.episodes import MetaTask
from dass.meta.held_out import HeldOut, by_classes, folds, held_out, predict
from dass.meta.novelty import novelty, sketch
from dass.meta.train import MetaConfig, MetaTraining
from dass.metrics import spearman
from dass.records import Task
from dass.search.confidence import head_confidence, pilot_runs
from tests.dass.data.packs import make_pack
from tests.dass.meta.toy import spec, task

CONFIG = MetaConfig(episodes=2, queries=6, eval_every=1, hidden_dim=8)
GROUPS = [
    [task(f"{name}{half}", 60 + 5 * seed + half, 2 * seed + half, num=12) for half in (0, 1)]
    for seed, name in enumerate("abcd")
]


def with_other_records(of: MetaTask) -> MetaTask:
    return dataclasses.replace(of, targets_pct=of.targets_pct.flip(0) - 20)


def collected(name: str, labels: tuple[int, ...], source: str = "pack") -> Task:
    return Task(name, name, source, 16, tuple(map(str, labels)), labels, (), (), ())


class TestFolds:
    def test_each_group_is_held_out_once_and_chooses_once(self) -> None:
        found = folds(GROUPS)
        assert [[each.name for each in fold.held_out] for fold in found] == [
            [t.name for t in group] for group in GROUPS
        ]
        assert [fold.valid for fold in found] == [tuple(group) for group in (*GROUPS[1:], GROUPS[0])]

    @pytest.mark.parametrize("num_valid", [1, 2])
    def test_a_task_has_one_part_in_each_fold(self, num_valid: int) -> None:
        for fold in folds(GROUPS, num_valid):
            names = [each.name for part in fold for each in part]
            assert sorted(names) == [each.name for group in GROUPS for each in group]
            assert (len(fold.train), len(fold.valid)) == (6 - 2 * num_valid, 2 * num_valid)

    def test_one_group_must_be_left_to_teach(self) -> None:
        with pytest.raises(ConfigError, match="got 2 groups"):
            folds(GROUPS[:2])
        with pytest.raises(ConfigError, match="one that teaches"):
            folds(GROUPS, num_valid=3)
        with pytest.raises(ConfigError, match="at least 1"):
            folds(GROUPS, num_valid=0)

    @pytest.mark.parametrize("groups", [[*GROUPS, GROUPS[0]], [*GROUPS, []]], ids=["twice", "empty"])
    def test_a_task_belongs_into_one_group(self, groups: list[list[MetaTask]]) -> None:
        with pytest.raises(ConfigError, match="in one group"):
            folds(groups)

    def test_tasks_of_the_same_classes_are_one_group(self) -> None:
        tasks = [
            collected("0", (0, 1)), collected("1", (2, 3)), collected("2", (1, 0)), collected("3", (1, 2)),
            collected("4", (0, 1), "another pack"),
        ]  # fmt: skip
        assert by_classes(tasks) == [[0, 2], [1], [3], [4]]

    def test_small_tasks_are_of_the_group_whose_classes_they_have_a_part_of(self) -> None:
        tasks = tiny25(make_pack(num_classes=40, per_class=60))
        groups = [list(range(5 * index, 5 * index + 5)) for index in range(5)]
        assert by_classes(tasks) == groups
        order = [
            2,
            24,
            3,
            *(index for index in range(25) if index not in (2, 3, 24)),
        ]  # small ones before what joins them
        found = by_classes([tasks[index] for index in order])
        assert sorted(sorted(order[place] for place in group) for group in found) == groups

    def test_the_two_halves_of_tiny10_are_one_group(self) -> None:
        tasks = tiny10(make_pack(num_classes=10, per_class=24))
        assert by_classes(tasks) == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


class TestHeldOut:
    def test_records_of_the_group_held_out_have_no_influence(self) -> None:
        changed = [GROUPS[0], [with_other_records(each) for each in GROUPS[1]], *GROUPS[2:]]
        before, after = list(held_out(spec(CONFIG), CONFIG, GROUPS)), list(held_out(spec(CONFIG), CONFIG, changed))
        assert [each.predicted_pct for each in before[1]] == [each.predicted_pct for each in after[1]]
        assert [each.accuracies_pct for each in before[1]] != [each.accuracies_pct for each in after[1]]
        assert before[2] != after[2]  # there they teach, or the test would show nothing

    def test_it_is_the_meta_training_of_a_fold_asked_of_every_student(self) -> None:
        fold = folds(GROUPS)[2]
        training = MetaTraining(spec(CONFIG), CONFIG, [*GROUPS[0], *GROUPS[1]], GROUPS[3])
        list(training)
        expected = training.best()
        of = GROUPS[2][1]
        scores = expected.adapt(of.support()).score(of.maps, of.arch)
        found = predict(expected, fold.held_out)[1]
        assert (found.name, found.group) == ("c1", "c0 c1")
        assert found.predicted_pct == tuple(scores.tolist())
        assert found.accuracies_pct == tuple(of.targets_pct.tolist())
        assert found.teacher == sketch(of.teacher_map, of.teacher_accuracy_pct)

    def test_it_goes_on_where_it_was(self) -> None:
        whole = list(held_out(spec(CONFIG), CONFIG, GROUPS))
        assert list(held_out(spec(CONFIG), CONFIG, GROUPS, begin=3)) == whole[3:]

    def test_students_that_were_shown_are_no_evidence(self) -> None:
        config = dataclasses.replace(CONFIG, support_students=4)
        (first, _), *_ = held_out(spec(config), config, GROUPS)
        assert len(first.predicted_pct) == 8

    def test_a_result_is_plain_json(self) -> None:
        (first, _), *_ = held_out(spec(CONFIG), CONFIG, GROUPS)
        document = dataclasses.asdict(first)
        assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(document))
        assert isinstance(first, HeldOut)

    def test_from_records_to_a_word_on_a_new_task(self) -> None:
        """A world in which the predictor is right: its errors are small, and its pairs in order."""
        config = MetaConfig(episodes=200, queries=16, eval_every=50, inputs="A", lr=0.005)
        groups = [[task(name, 55 + 6 * seed, seed, num=30)] for seed, name in enumerate("abcdef")]
        found = [each for group in held_out(spec(config), config, groups) for each in group]
        calibration = from_document(json.loads(json.dumps(to_document(calibrate(found)))))
        assert calibration.pair_log_loss < 0.4

        training = MetaTraining(spec(config), config, [t for g in groups[:5] for t in g], groups[5])
        list(training)
        new = task("new", 66, 77, num=40)
        scores = training.best().adapt(new.support()).score(new.maps, new.arch)
        assert spearman(scores, new.targets_pct) > 0.8
        _, covered = calibration.coverage(scores, new.targets_pct, 0.8)
        assert covered > 0.5

        spread = float(scores.std())
        order = scores.argsort(descending=True)
        head = head_confidence(calibration, scores[order[[0, -1]]], spread_pct=spread)
        assert head.is_distinguishable
        plan = pilot_runs(calibration, within_pct=0.5)
        regret = float(new.targets_pct.max() - new.targets_pct[order[: max(1, plan.runs)]].max())
        assert regret <= plan.before_pct + 2
        seen = novelty(calibration.teachers, sketch(new.teacher_map, new.teacher_accuracy_pct), num_classes=10)
        assert not any("accuracy" in reason for reason in seen.reasons)
        far = sketch(1000 * new.teacher_map, new.teacher_accuracy_pct)
        assert novelty(calibration.teachers, far, num_classes=10).score > 5
