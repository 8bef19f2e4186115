"""Accuracies as networks learn them, and back (algorithms: section 4.5)."""

from collections.abc import Mapping
from typing import Literal

import torch

Unit = Literal["percent", "task_free", "fraction", "teacher"]

_UNITS: Mapping[str, tuple[float, float]] = {  # offset, scale
    "percent": (0.0, 1.0),
    "task_free": (50.0, 10.0),
    "fraction": (0.0, 100.0),
}
_TENTHS = 10.0  # a tenth of the teacher's accuracy is 1 in the unit `teacher`
_LEAST_TEACHER_PCT = 1.0  # a teacher below counts as one of this accuracy, or nothing could be divided by it


def to_unit(accuracy_pct: torch.Tensor, unit: Unit, teacher_pct: float) -> torch.Tensor:
    """Percent in the predictor's unit; teacher_pct: the accuracy of the task's teacher.

    percent: unchanged. task_free: minus 50 and divided by 10. fraction: 0..1. teacher: what is lost or won against the
    teacher, in tenths of its accuracy, so that tasks of any level look alike, and every teacher is 0 (ours).
    """
    offset, scale = _offset_and_scale(unit, teacher_pct)
    return (accuracy_pct - offset) / scale


def to_percent(value: torch.Tensor, unit: Unit, teacher_pct: float) -> torch.Tensor:
    """The inverse of `to_unit`."""
    offset, scale = _offset_and_scale(unit, teacher_pct)
    return value * scale + offset


def _offset_and_scale(unit: Unit, teacher_pct: float) -> tuple[float, float]:
    if unit == "teacher":
        return teacher_pct, max(teacher_pct, _LEAST_TEACHER_PCT) / _TENTHS
    return _UNITS[unit]
