"""Units of accuracies, by hand and back."""

import torch

from dass.units import to_percent, to_unit


def test_task_free_is_minus_50_and_divided_by_10_and_back() -> None:
    accuracy = torch.tensor([0.0, 50.0, 65.0, 100.0])
    assert to_unit(accuracy, "task_free", 60.0).tolist() == [-5, 0, 1.5, 5]
    assert torch.equal(to_percent(to_unit(accuracy, "task_free", 60.0), "task_free", 60.0), accuracy)
    assert torch.equal(to_unit(accuracy, "percent", 60.0), accuracy)


def test_a_fraction_is_a_hundredth_and_back() -> None:
    accuracy = torch.tensor([0.0, 50.0, 64.0, 100.0])
    torch.testing.assert_close(to_unit(accuracy, "fraction", 60.0), torch.tensor([0.0, 0.5, 0.64, 1.0]))
    torch.testing.assert_close(to_percent(to_unit(accuracy, "fraction", 60.0), "fraction", 60.0), accuracy)


def test_against_the_teacher_a_tenth_of_its_accuracy_is_1_and_back() -> None:
    accuracy = torch.tensor([0.0, 54.0, 60.0, 66.0])
    torch.testing.assert_close(to_unit(accuracy, "teacher", 60.0), torch.tensor([-10.0, -1.0, 0.0, 1.0]))
    torch.testing.assert_close(to_percent(to_unit(accuracy, "teacher", 60.0), "teacher", 60.0), accuracy)
    assert to_unit(accuracy, "teacher", 0.0).isfinite().all()
