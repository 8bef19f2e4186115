"""Altered and arbitrary input gives a value or an error of ours, at every reader; `tests.security.fuzz` tries for longer."""

import pytest

from tests.security.fuzz import Target, attempt, targets

INPUTS = 60

NAMES = (
    "record as JSON", "records as Parquet", "documents", "events", "owner of a plan", "trial of a tuning", "scores of a search",
    "report of a lane", "calibration", "features", "checkpoint", "student file", "predictor", "MetaD2A", "TANS", "pack",
    "tensors", "data SPEC", "--set", "recipe TOML", "image", "Parquet of images", "key",
)  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return targets(tmp_path_factory.mktemp("fuzz"))


def test_every_target_is_tried(found: dict[str, Target]) -> None:
    assert tuple(found) == NAMES


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's and torch's, about what they read
@pytest.mark.parametrize("name", NAMES)
def test_any_input_gives_a_value_or_an_error_of_ours(name: str, found: dict[str, Target]) -> None:
    assert attempt(found[name], INPUTS, 0) >= INPUTS // 2


def test_a_reader_that_fails_is_caught(found: dict[str, Target]) -> None:
    fragile = Target(lambda data: {}[data], found["key"].inputs)
    with pytest.raises(KeyError):
        attempt(fragile, INPUTS, 0)
