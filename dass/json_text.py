"""JSON that others may have written: parsed with a bound on its depth, so that nothing downstream runs out of stack."""

import json
from typing import Any

MAX_DEPTH = 64  # lists and objects inside each other; what this package writes has fewer than ten


def parse_json(text: bytes | str) -> Any:  # noqa: ANN401 - any JSON type
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON, holds an integer of more than 4,300 digits, or is nested deeper than MAX_DEPTH.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep() from error
    num_openings = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if num_openings > MAX_DEPTH:
        _check_depth(value)
    return value


def _check_depth(value: Any) -> None:  # noqa: ANN401
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, dict | list))
        level = [item for items in inner for item in items]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"lists and objects nested deeper than {MAX_DEPTH}")
