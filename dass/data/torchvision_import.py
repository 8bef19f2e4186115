"""torchvision beside any build of torch; it is imported when it is first needed, for that takes seconds."""

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from dass.errors import DataError

_KEPT: list[torch.library.Library] = []  # an operator is gone with the object that declared it


def import_torchvision(part: Literal["datasets", "models"]) -> Any:  # noqa: ANN401 - a module
    """This part of torchvision.

    Raises:
        DataError: it is not installed.
    """
    _declare_operators()
    return importlib.import_module(f"torchvision.{part}")


@cache
def _declare_operators() -> None:
    """Let torchvision find the two operators that it expects.

    The wheel from the package index is built for CUDA. Beside a torch without it the library of operators does not load;
    declaring them is enough, as no dataset and no classifier calls them. Can go when torchvision's import no longer needs
    its operators.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise DataError("a torchvision source needs torchvision, got none installed; install torchvision==0.28.0")
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))  # type: ignore[no-untyped-call]
    except OSError:
        library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
        _KEPT.append(library)
