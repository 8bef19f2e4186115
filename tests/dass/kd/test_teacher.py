import math
from dataclasses import replace

import pytest
import torch

from dass.errors import SpaceError
from dass.kd.teacher import TEACHER_RECIPE, teacher_run
from dass.networks import build
from dass.records import Recipe, Run
from dass.spaces import get_space
from tests.dass.kd.tiny import NUM_CLASSES, SPACE, make_data, make_teacher


def test_the_teachers_run_trains_the_largest_network_from_scratch_without_a_teacher() -> None:
    task = make_data().task
    assert teacher_run(task, SPACE) == Run(task.id, None, SPACE.largest, TEACHER_RECIPE, 0)
    own = replace(TEACHER_RECIPE, lr=0.01)
    assert teacher_run(task, SPACE, own, seed=3) == Run(task.id, None, SPACE.largest, own, 3)


def test_the_teachers_recipe_is_the_released_one() -> None:
    recipe = TEACHER_RECIPE
    assert (recipe.loss, recipe.init, recipe.label_smoothing) == ("ce", "scratch", 0.1)
    assert (recipe.epochs, recipe.eval_every, recipe.batch_size) == (180, 5, 64)
    assert (recipe.lr, recipe.momentum, recipe.weight_decay) == (0.05, 0.9, 3e-5)
    assert Recipe() == replace(recipe, loss="kd", init="copy_paste_first", label_smoothing=0, epochs=50)


def test_the_network_computes_what_its_weights_say_and_is_frozen() -> None:
    teacher = make_teacher()
    network = teacher.network(NUM_CLASSES)
    plain = build(SPACE.largest, NUM_CLASSES)
    plain.load_state_dict(dict(teacher.state))
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(images), plain.eval()(images))
    assert not network.training
    assert not network(images).requires_grad


def test_the_network_has_its_own_memory() -> None:
    teacher = make_teacher()
    before = teacher.state["head.bias"].clone()
    with torch.no_grad():
        teacher.network(NUM_CLASSES).get_parameter("head.bias").zero_()
    assert torch.equal(teacher.state["head.bias"], before)


def test_weights_for_other_classes_are_refused_by_tensor_and_shapes() -> None:
    rule = r"for 3 classes has head\.bias of shape \(3,\), got \(5,\); give weights of this space"
    with pytest.raises(SpaceError, match=rule):
        make_teacher(num_classes=5).check(NUM_CLASSES)
    with pytest.raises(SpaceError, match=rule):
        make_teacher(num_classes=5).network(NUM_CLASSES)


def test_weights_of_another_space_are_refused_by_tensor_and_shapes() -> None:
    wide = make_teacher(student=get_space("paper5").largest)
    with pytest.raises(SpaceError, match=r"head\.weight of shape \(3, 64\), got \(3, 256\)"):
        replace(wide, student=SPACE.largest).check(NUM_CLASSES)
    deep = make_teacher(student=get_space("paper5_w8").largest)
    with pytest.raises(SpaceError, match=r"stages\.0\.2\.bn1\.bias of shape no such tensor, got \(8,\)"):
        replace(deep, student=SPACE.largest).check(NUM_CLASSES)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    teacher = make_teacher()
    state = {name: tensor.clone() for name, tensor in teacher.state.items()}
    state["stages.1.0.conv1.weight"][0, 0, 0, 0] = value
    with pytest.raises(SpaceError, match=r"finite, got others in stages\.1\.0\.conv1\.weight"):
        replace(teacher, state=state).network(NUM_CLASSES)


def test_a_missing_tensor_is_refused_by_name() -> None:
    teacher = make_teacher()
    state = {name: tensor for name, tensor in teacher.state.items() if name != "stem.conv.weight"}
    with pytest.raises(SpaceError, match=r"stem\.conv\.weight of shape \(8, 3, 3, 3\), got no such tensor"):
        replace(teacher, state=state).check(NUM_CLASSES)
