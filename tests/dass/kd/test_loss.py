import math
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from hypothesis import given, settings
from hypothesis import strategies as st

from dass.kd.loss import distillation_loss, soft_cross_entropy
from dass.records import Loss, Recipe

STUDENT = torch.tensor([[1.0, 2.0, 3.0]])
TEACHER = torch.tensor([[3.0, 1.0, 0.0]])
LABEL = torch.tensor([0])

seeds = st.integers(0, 2**31)
distilling = st.builds(
    Recipe,
    loss=st.sampled_from(["kd", "kd_paper"]),
    temperature=st.floats(0.5, 10),
    alpha=st.floats(0, 1),
    scale_by_t2=st.booleans(),
    label_smoothing=st.floats(0, 0.5),
)


def loss(**changes: Any) -> float:
    return float(distillation_loss(STUDENT, TEACHER, LABEL, Recipe(**changes)))


def draw(seed: int, rows: int = 4, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, teacher logits and labels."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = 3 * torch.randn(2, rows, classes, generator=rng)
    return student, teacher, torch.randint(classes, (rows,), generator=rng)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 21.653233),
        ({"scale_by_t2": False}, 1.771843),
        ({"loss": "kd_paper"}, 1.205298),
        ({"loss": "kd_paper", "scale_by_t2": False}, 1.205298),
        ({"alpha": 1.0}, 2.407606),
        ({"alpha": 0.0}, 40.898859),
        ({"loss": "ce"}, 2.407606),
        ({"loss": "ce", "label_smoothing": 0.1}, 2.307606),
    ],
)
def test_one_image_gives_the_numbers_worked_out_by_hand(changes: dict[str, Any], expected: float) -> None:
    assert loss(**changes) == pytest.approx(expected, abs=1e-5)


def test_the_soft_term_is_the_divergence_plus_the_teachers_entropy() -> None:
    target = F.log_softmax(TEACHER / 6, dim=1)
    divergence = F.kl_div(F.log_softmax(STUDENT / 6, dim=1), target, log_target=True, reduction="batchmean")
    entropy = -(target.exp() * target).sum()
    assert float(divergence) == pytest.approx(0.059834, abs=1e-6)
    assert float(entropy) == pytest.approx(1.076246, abs=1e-6)
    assert float(soft_cross_entropy(STUDENT, TEACHER, 6.0)) == pytest.approx(1.136079, abs=1e-6)


def test_the_gradient_is_the_one_worked_out_by_hand() -> None:
    student = STUDENT.clone().requires_grad_()
    distillation_loss(student, TEACHER, LABEL, Recipe()).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[-0.907686, 0.187841, 0.719845]]), rtol=0, atol=1e-5)


def test_both_terms_are_means_over_the_batch() -> None:
    student = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    teacher = torch.tensor([[3.0, 1.0, 0.0], [6.0, 0.0, -6.0]])
    labels = torch.tensor([0, 2])
    assert float(soft_cross_entropy(student, teacher, 6.0)) == pytest.approx(1.117346, abs=1e-6)
    assert float(distillation_loss(student, teacher, labels, Recipe(alpha=1.0))) == pytest.approx(1.753109, abs=1e-6)
    assert float(distillation_loss(student, teacher, labels, Recipe())) == pytest.approx(20.988780, abs=1e-5)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [(Recipe(), 68.244270), (Recipe(loss="ce", label_smoothing=0.1), 3.688879), (Recipe(loss="kd_paper"), 3.688879)],
)
def test_forty_classes_without_a_preference(recipe: Recipe, expected: float) -> None:
    zeros = torch.zeros(2, 40)
    assert math.log(40) == pytest.approx(3.688879, abs=1e-6)
    assert float(distillation_loss(zeros, zeros, torch.tensor([3, 39]), recipe)) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30)
@given(seeds, st.floats(0.5, 10), st.floats(0, 1))
def test_it_equals_torchs_own_losses_put_together(seed: int, temperature: float, alpha: float) -> None:
    student, teacher, labels = draw(seed)
    recipe = Recipe(temperature=temperature, alpha=alpha, label_smoothing=0.1)
    soft = F.cross_entropy(student / temperature, F.softmax(teacher / temperature, dim=1))
    hard = F.cross_entropy(student, 0.9 * F.one_hot(labels, 5) + 0.1 / 5)
    expected = (1 - alpha) * temperature**2 * soft + alpha * hard
    torch.testing.assert_close(distillation_loss(student, teacher, labels, recipe), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(seeds, distilling)
def test_a_constant_added_to_all_logits_of_a_row_changes_nothing(seed: int, recipe: Recipe) -> None:
    student, teacher, labels = draw(seed)
    shifts = torch.tensor([[3.0], [-7.0], [0.5], [11.0]])
    expected = distillation_loss(student, teacher, labels, recipe)
    torch.testing.assert_close(
        distillation_loss(student + shifts, teacher, labels, recipe), expected, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        distillation_loss(student, teacher - shifts, labels, recipe), expected, rtol=1e-4, atol=1e-4
    )


@settings(max_examples=30)
@given(seeds, distilling)
def test_the_gradient_of_a_row_sums_to_zero_and_the_teacher_gets_none(seed: int, recipe: Recipe) -> None:
    student, teacher, labels = draw(seed)
    student.requires_grad_()
    teacher.requires_grad_()
    distillation_loss(student, teacher, labels, recipe).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert teacher.grad is None
    torch.testing.assert_close(student.grad.sum(dim=1), torch.zeros(4), rtol=0, atol=1e-4)


@settings(max_examples=20)
@given(seeds, st.floats(0.5, 10))
def test_a_student_that_agrees_with_its_teacher_is_not_pulled(seed: int, temperature: float) -> None:
    student, _, _ = draw(seed)
    teacher = student.clone()
    student.requires_grad_()
    soft_cross_entropy(student, teacher, temperature).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", get_args(Loss))
def test_the_loss_of_half_precision_logits_is_computed_in_float32(name: Loss) -> None:
    student, teacher, labels = draw(0)
    recipe = Recipe(loss=name, temperature=4.0)
    low = distillation_loss(student.bfloat16(), teacher.bfloat16(), labels, recipe)
    assert low.dtype == torch.float32
    assert torch.equal(low, distillation_loss(student.bfloat16().float(), teacher.bfloat16().float(), labels, recipe))


def test_cross_entropy_needs_no_teacher_and_distillation_does() -> None:
    assert float(distillation_loss(STUDENT, None, LABEL, Recipe(loss="ce"))) == pytest.approx(2.407606, abs=1e-5)
    for name in ("kd", "kd_paper"):
        with pytest.raises(ValueError, match=f"the loss '{name}' needs the teacher's logits, got None"):
            distillation_loss(STUDENT, None, LABEL, Recipe(loss=name))
