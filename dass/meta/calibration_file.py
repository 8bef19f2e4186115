"""A calibration as a plain mapping of JSON types, for whoever keeps it; nothing of what is read back is trusted."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dass.errors import DataError, SchemaTooNewError, StoreError
from dass.meta.calibration import Calibration, TaskEvidence
from dass.meta.novelty import TeacherSketch

CALIBRATION_VERSION = 3  # version 1 knew no sampler, version 2 no tasks elsewhere


def to_document(calibration: Calibration) -> dict[str, Any]:
    """The mapping; `from_document` reads it."""
    return {"version": CALIBRATION_VERSION, **dataclasses.asdict(calibration)}


def from_document(document: Mapping[str, Any]) -> Calibration:
    """The calibration of a mapping that `to_document` made; lists may stand for tuples, as JSON has them.

    Raises:
        SchemaTooNewError: a newer version of this package wrote it.
        StoreError: a field is missing, unknown, of another type, not finite or out of range.
    """
    try:
        fields = dict(document)
        version = _exactly(int, fields.pop("version"))
        if version > CALIBRATION_VERSION:
            raise SchemaTooNewError(
                f"calibrations up to version {CALIBRATION_VERSION} are readable, got {version}; update the package"
            )
        noise = fields.pop("label_noise_pct")
        return Calibration(
            tasks=tuple(_task(each) for each in _items(fields.pop("tasks"))),
            elsewhere=tuple(_task(each) for each in _items(fields.pop("elsewhere", ()))),
            unit=fields.pop("unit"),
            temperature=_number(fields.pop("temperature")),
            pair_log_loss=_number(fields.pop("pair_log_loss")),
            label_noise_pct=None if noise is None else _number(noise),
            **fields,  # none is left of a document that is whole
        )
    except (KeyError, TypeError, ValueError, OverflowError, DataError) as error:
        raise StoreError(
            f"expected a complete calibration, got one that does not fit together ({error!s:.200}); calibrate again"
        ) from error


def _task(value: Mapping[str, Any]) -> TaskEvidence:
    fields = dict(value)
    teacher = dict(fields.pop("teacher"))
    statistics = _numbers(teacher.pop("map_statistics"))
    return TaskEvidence(
        name=_exactly(str, fields.pop("name")),
        group=_exactly(str, fields.pop("group")),
        teacher=TeacherSketch(_number(teacher.pop("accuracy_pct")), statistics, **teacher),
        errors_pct=_numbers(fields.pop("errors_pct")),
        behind_pct=_numbers(fields.pop("behind_pct")),
        **{name: _number(number) for name, number in fields.items()},
    )


def _numbers(value: Any) -> tuple[float, ...]:  # noqa: ANN401 - any JSON type
    return tuple(map(_number, _items(value)))


def _items(value: Any) -> list[Any] | tuple[Any, ...]:  # noqa: ANN401
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, got {value!r:.80}")
    return value


def _number(value: Any) -> float:  # noqa: ANN401
    return float(_exactly(int, value)) if type(value) is int else _exactly(float, value)


def _exactly(kind: type, value: Any) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, got {value!r:.80}")
    return value
