"""Baselines as scorers: what a student's score may depend on, what happens to those without one, and their names."""

import math
import pickle
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from dass.baselines import BASELINES, FAILED, UNSEEDED, BaselineContext, build_baseline, failures
from dass.baselines.minibatch import Minibatch, draw_minibatch
from dass.baselines.proxies import PROXIES, snip
from dass.baselines.registry import check_recipe
from dass.baselines.scorers import InitialNetworks, NetworkScorer, ProxyValue, to_scores
from dass.cost import count_macs, count_params
from dass.data.augment import normalise
from dass.errors import ConfigError, DataError, SpaceError
from dass.kd.cohort import Cohort
from dass.networks import build
from dass.records import Recipe, Run, Status, Student
from dass.remap import remap
from dass.search.select import SearchConfig, search
from dass.search.strategies import make_strategy
from tests.dass.kd.tiny import (
    DATA,
    NUM_CLASSES,
    NUM_TRAIN,
    RECIPE,
    SPACE,
    CountingTeacher,
    make_data,
    make_teacher,
    trace,
)

TEACHER = make_teacher()
CONTEXT = BaselineContext(DATA, SPACE, TEACHER, RECIPE, num_images=16, short_epochs=1)
STUDENTS = SPACE.sample(4, torch.Generator().manual_seed(5))

SEEDLESS = UNSEEDED | {"short_kd"}  # the last one mostly: hits are counts


def score(name: str, context: BaselineContext = CONTEXT, students: list[Student] = STUDENTS) -> list[float]:
    return build_baseline(name, context).score(students).tolist()


class TestEveryBaseline:
    @pytest.mark.parametrize("name", BASELINES)
    def test_a_score_does_not_depend_on_order_company_or_threads(self, name: str) -> None:
        scorer = build_baseline(name, CONTEXT)
        scores = scorer.score(STUDENTS)
        assert (scores.dtype, scores.shape, scores.device.type) == (torch.float32, (4,), "cpu")
        assert torch.isfinite(scores).all()
        assert scorer.score([*STUDENTS[::-1], STUDENTS[0]]).tolist() == [*scores.flip(0).tolist(), scores[0].item()]
        with ThreadPoolExecutor(3, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            alone = pool.map(lambda student: scorer.score([student]).item(), STUDENTS)
            assert list(alone) == scores.tolist()

    @pytest.mark.parametrize("name", BASELINES)
    def test_one_built_anew_or_sent_elsewhere_gives_the_same(self, name: str) -> None:
        scorer, expected = build_baseline(name, CONTEXT), score(name, students=STUDENTS[:1])
        assert scorer.score(STUDENTS[:1]).tolist() == expected
        assert pickle.loads(pickle.dumps(scorer)).score(STUDENTS[:1]).tolist() == expected  # noqa: S301
        scorer.to(torch.device("meta"))
        assert scorer.to(torch.device("cpu")).score(STUDENTS[:1]).tolist() == expected

    @pytest.mark.parametrize("name", sorted({*BASELINES} - SEEDLESS))
    def test_another_seed_draws_anew(self, name: str) -> None:
        assert score(name, replace(CONTEXT, seed=1), STUDENTS[:1]) != score(name, students=STUDENTS[:1])

    def test_no_two_proxies_are_the_same(self) -> None:
        scores = {name: score(name, students=STUDENTS[:1])[0] for name in BASELINES if name.split("+")[0] in PROXIES}
        assert len(set(scores.values())) == len(scores) == 7 * 2 + 4 * 2

    def test_a_search_ranks_by_it_with_any_number_of_threads(self) -> None:
        config = SearchConfig(candidates=12, batch=6, chunk=2)
        found = [
            list(
                search(
                    make_strategy("random", SPACE, config.budget(1), 8, NUM_CLASSES, 0),
                    each,
                    config,
                    8,
                    NUM_CLASSES,
                    threads=n,
                )
            )
            for n, each in ((1, build_baseline("naswot", CONTEXT)), (3, build_baseline("naswot", CONTEXT)))
        ]
        assert found[0] == found[1]
        assert len(found[0][0]) == 6


class TestTrivial:
    def test_sizes_are_those_of_the_closed_forms(self) -> None:
        assert score("params") == [count_params(student, NUM_CLASSES) for student in STUDENTS]
        assert score("macs") == [count_macs(student, 8, NUM_CLASSES) for student in STUDENTS]
        assert score("params") == [
            sum(p.numel() for p in build(student, NUM_CLASSES).parameters()) for student in STUDENTS
        ]

    def test_depth_counts_blocks(self) -> None:
        assert score("depth", students=[Student(((4, 8), (16,), (24, 32), (64,))), SPACE.largest]) == [6, 8]

    def test_random_values_are_uniform_and_the_students_own(self) -> None:
        students = SPACE.sample(256, torch.Generator().manual_seed(1))
        values = torch.tensor(score("random", students=students))
        assert len(set(values.tolist())) == 256
        assert 0 <= values.min() < 0.05 < 0.95 < values.max() < 1
        assert values.mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 256))  # four standard errors
        sizes = torch.tensor(score("params", students=students))
        assert abs(torch.corrcoef(torch.stack([values, sizes]))[0, 1]) < 4 / math.sqrt(256)


class TestProxyScorers:
    def test_fresh_weights_follow_from_student_and_seed(self) -> None:
        networks = InitialNetworks(NUM_CLASSES, DATA.device, seed=3)
        student, sibling = (Student(((8,), (16,), (32,), last)) for last in ((64,), (32, 64)))
        first, again, other = (networks.build(each).state_dict() for each in (student, student, sibling))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not torch.equal(first["stem.conv.weight"], other["stem.conv.weight"])
        reseeded = replace(networks, seed=4).build(student).state_dict()
        assert not torch.equal(first["stem.conv.weight"], reseeded["stem.conv.weight"])

    def test_fresh_weights_have_the_spaces_deviation(self) -> None:
        network = InitialNetworks(NUM_CLASSES, DATA.device).build(SPACE.largest)
        weight = network.stages[3][1].conv2.weight  # type: ignore[index]
        assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * weight.shape[0])), rel=0.02)
        assert network.training

    def test_remapped_weights_are_the_teachers(self) -> None:
        (found,) = score("snip+remap", students=[SPACE.largest])
        network = TEACHER.network(NUM_CLASSES).train()
        assert found == pytest.approx(snip(network, CONTEXT.minibatch()), rel=1e-4)

    def test_remapped_weights_are_those_of_the_recipes_mode(self) -> None:
        recipe = replace(RECIPE, init="copy_paste_last")
        for student, found in zip(STUDENTS, score("snip+remap", replace(CONTEXT, recipe=recipe)), strict=True):
            network = build(student, NUM_CLASSES)
            network.load_state_dict(remap(TEACHER.state, TEACHER.student, student, "copy_paste_last"))
            assert found == pytest.approx(snip(network, CONTEXT.minibatch()), rel=1e-4)
        assert score("snip+remap", replace(CONTEXT, recipe=recipe)) != score("snip+remap")

    def test_the_kd_variant_takes_the_recipes_loss_against_the_teacher_in_eval_mode(self) -> None:
        recipe = replace(RECIPE, temperature=3.0, alpha=0.25)
        batch, student = CONTEXT.minibatch(), STUDENTS[0]
        with torch.no_grad():
            logits = TEACHER.network(NUM_CLASSES)(batch.images)
        network = InitialNetworks(NUM_CLASSES, DATA.device).build(student)
        layers = [each for each in network.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
        out = network(batch.images)
        soft = F.kl_div((out / 3).log_softmax(1), (logits / 3).softmax(1), reduction="batchmean")
        loss = 0.75 * 9 * soft + 0.25 * F.cross_entropy(out, batch.labels)  # its gradient is that of the cross-entropy
        loss.backward()  # type: ignore[no-untyped-call]
        norms = [torch.linalg.vector_norm(layer.weight.grad).item() for layer in layers]
        assert score("grad_norm+kd", replace(CONTEXT, recipe=recipe), [student])[0] == pytest.approx(
            sum(norms), rel=1e-4
        )

    def test_diswot_on_trained_weights_finds_the_teacher_and_on_fresh_ones_another(self) -> None:
        assert score("diswot+remap", students=[SPACE.largest]) == [0.0]
        assert score("diswot", students=[SPACE.largest])[0] < 0
        untaught = replace(CONTEXT, teacher=None)
        assert score("diswot", untaught) == score("diswot")


class TestMinibatch:
    def test_it_is_different_train_images_as_they_are(self) -> None:
        batch = draw_minibatch(DATA, 20)
        images, labels = DATA.parts["train"]
        plain = normalise(images)
        where = [int((plain - image).flatten(1).abs().sum(1).argmin()) for image in batch.images]
        assert len(set(where)) == 20
        assert torch.equal(plain[where], batch.images)
        assert torch.equal(labels[where], batch.labels)

    def test_it_follows_from_task_and_seed(self) -> None:
        first, again, other = draw_minibatch(DATA, 9), draw_minibatch(make_data(), 9), draw_minibatch(DATA, 9, seed=1)
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images, other.images)

    def test_a_small_task_gives_all_that_it_has(self) -> None:
        assert len(draw_minibatch(DATA).images) == NUM_TRAIN < 64

    def test_a_single_image_is_refused(self) -> None:
        (images, labels), data = DATA.parts["train"], make_data()
        lonely = replace(data, parts={**data.parts, "train": (images[:1], labels[:1])})
        with pytest.raises(DataError, match="at least 2 images, got 1"):
            draw_minibatch(lonely)


class TestRemapAccuracy:
    def test_it_is_the_share_of_hits_of_the_remapped_network_in_eval_mode(self) -> None:
        images, labels = DATA.parts["valid"]
        expected = []
        for student in STUDENTS:
            network = build(student, NUM_CLASSES)
            network.load_state_dict(remap(TEACHER.state, TEACHER.student, student))
            with torch.no_grad():
                hits = network.eval()(normalise(images)).argmax(1) == labels
            expected.append(100 * int(hits.sum()) / len(labels))
        assert score("remap_accuracy") == pytest.approx(expected)

    def test_it_is_what_records_call_the_initial_accuracy(self) -> None:
        runs = [Run(DATA.task.id, TEACHER.id, student, replace(RECIPE, epochs=1)) for student in STUDENTS]
        ended = trace(Cohort(runs, DATA, TEACHER)).ended
        assert score("remap_accuracy") == pytest.approx([ended[run.id].result.init_accuracy_pct for run in runs])


class TestShortKD:
    def test_it_is_the_best_accuracy_of_each_run_alone(self) -> None:
        recipe = replace(RECIPE, epochs=5)
        expected, final = [], []
        for student in STUDENTS:
            run = Run(DATA.task.id, TEACHER.id, student, recipe, 7)
            accuracies = [point.valid_accuracy_pct for point in trace(Cohort([run], DATA, TEACHER)).result(run).curve]
            assert len(accuracies) == 5
            expected.append(max(accuracies))
            final.append(accuracies[-1])
        assert final != expected
        assert score("short_kd", replace(CONTEXT, short_epochs=5, seed=7)) == pytest.approx(expected)

    def test_all_students_share_the_teachers_passes(self) -> None:
        teacher = CountingTeacher(**vars(TEACHER))
        scorer: Any = build_baseline("short_kd", replace(CONTEXT, teacher=teacher, short_epochs=2))
        replace(scorer, cohort=2).score(STUDENTS)
        assert teacher.passes == [8] * (2 * (NUM_TRAIN // 8))


class TestFailures:
    def test_numbers_that_are_none_come_last_and_are_named(self) -> None:
        students = SPACE.sample(6, torch.Generator().manual_seed(5))
        values = [1.0, math.nan, math.inf, -math.inf, 1e39, -2.0]
        scores = to_scores(values)
        assert scores.tolist() == [1.0, FAILED, FAILED, FAILED, FAILED, -2.0]
        assert failures(students, scores) == students[1:5]

    def test_a_student_whose_network_overflows_fails_alone(self) -> None:
        batch = CONTEXT.minibatch()
        broken = STUDENTS[2]

        def proxy(network: torch.nn.Module, batch: Minibatch) -> float:
            value = snip(network, batch)
            return value * (1e60 if value == expected[2] else 1)

        networks = InitialNetworks(NUM_CLASSES, DATA.device)
        expected = [snip(networks.build(student), batch) for student in STUDENTS]
        scores = NetworkScorer(networks, ProxyValue(proxy, batch)).score(STUDENTS)
        assert failures(STUDENTS, scores) == [broken]
        assert torch.isfinite(scores).sum() == 3

    @pytest.mark.parametrize(
        "name", ["grad_norm+remap", "grasp+kd+remap", "fisher+remap", "diswot+remap", "remap_accuracy"]
    )
    def test_logits_beyond_measure_have_no_score(self, name: str) -> None:
        """What a teacher that ran away would give: finite weights whose sums are not."""
        state = dict(TEACHER.state) | {"head.weight": TEACHER.state["head.weight"].sign() * 3e38}
        scores = torch.tensor(score(name, replace(CONTEXT, teacher=replace(TEACHER, state=state))))
        assert failures(STUDENTS, scores) == STUDENTS

    def test_students_that_diverge_have_no_score(self) -> None:
        scorer = build_baseline("short_kd", replace(CONTEXT, recipe=replace(RECIPE, lr=1e30)))
        assert failures(STUDENTS, scorer.score(STUDENTS)) == STUDENTS

    def test_not_even_those_that_diverge_after_a_good_beginning(self) -> None:
        recipe = replace(RECIPE, lr=4.0, epochs=3)
        runs = [Run(DATA.task.id, TEACHER.id, student, recipe) for student in STUDENTS]
        ended = trace(Cohort(runs, DATA, TEACHER)).ended
        diverged = [run.student for run in runs if ended[run.id].result.status is Status.DIVERGED]
        scores = torch.tensor(score("short_kd", replace(CONTEXT, recipe=recipe, short_epochs=3)))
        assert failures(STUDENTS, scores) == diverged

    def test_images_that_are_all_alike_leave_naswot_without_a_score(self) -> None:
        images, labels = DATA.parts["train"]
        data = replace(DATA, parts={**DATA.parts, "train": (images[:1].expand_as(images).contiguous(), labels)})
        scores = build_baseline("naswot", replace(CONTEXT, data=data)).score(STUDENTS)
        assert failures(STUDENTS, scores) == STUDENTS


class TestNames:
    def test_variants_are_named_after_what_differs(self) -> None:
        kinds = Counter(name.partition("+")[2] for name in BASELINES)
        assert kinds == {"": 15, "remap": 8, "kd": 4, "kd+remap": 4}

    def test_an_unknown_name_is_told_with_all_and_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"one of params, macs, .*short_kd, got 'sinp'; did you mean snip\?"):
            build_baseline("sinp", CONTEXT)

    @pytest.mark.parametrize("name", ["snip+kd", "snip+remap", "diswot+remap", "remap_accuracy", "short_kd"])
    def test_what_needs_the_teacher_says_so(self, name: str) -> None:
        with pytest.raises(ConfigError, match="needs the task's trained teacher, got None"):
            build_baseline(name, replace(CONTEXT, teacher=None))

    @pytest.mark.parametrize("name", ["snip+kd", "snip+remap", "remap_accuracy", "short_kd"])
    def test_a_teacher_of_other_classes_is_refused(self, name: str) -> None:
        with pytest.raises(SpaceError, match=r"for 3 classes has head\.bias"):
            build_baseline(name, replace(CONTEXT, teacher=make_teacher(num_classes=4)))

    def test_a_recipe_that_does_not_distil_or_remap_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="must be kd or kd_paper, got 'ce'"):
            build_baseline("snip+kd", replace(CONTEXT, recipe=Recipe(loss="ce")))
        with pytest.raises(ConfigError, match=r"copy_paste mode, got recipe\.init='scratch'"):
            build_baseline("snip+remap", replace(CONTEXT, recipe=Recipe(init="scratch")))

    @pytest.mark.parametrize("recipe", [Recipe(), Recipe(loss="ce"), Recipe(init="scratch")])
    def test_a_recipe_is_refused_before_for_those_that_it_rules_out(self, recipe: Recipe) -> None:
        def is_refused(call: Callable[[], object]) -> bool:
            try:
                call()
            except ConfigError:
                return True
            return False

        context = replace(CONTEXT, recipe=recipe)
        told = [name for name in BASELINES if is_refused(partial(check_recipe, [name], recipe))]
        assert told == [name for name in BASELINES if is_refused(partial(build_baseline, name, context))]
        assert bool(told) == (recipe != Recipe())

    @pytest.mark.parametrize("name", ["remap_accuracy", "short_kd"])
    def test_an_accuracy_without_images_is_refused(self, name: str) -> None:
        images, labels = DATA.parts["valid"]
        data = replace(DATA, parts={**DATA.parts, "valid": (images[:0], labels[:0])})
        with pytest.raises(DataError, match="needs images in the valid part, got none in task colours"):
            build_baseline(name, replace(CONTEXT, data=data))

    @pytest.mark.parametrize(("key", "value", "least"), [("num_images", 1, 2), ("short_epochs", 0, 1)])
    def test_numbers_too_small_are_refused(self, key: str, value: int, least: int) -> None:
        changes: dict[str, Any] = {key: value}
        with pytest.raises(ConfigError, match=f"{key}.* must be >= {least}, got {value}"):
            replace(CONTEXT, **changes)
