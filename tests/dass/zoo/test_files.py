"""A predictor's file and the calibration beside it."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from dass.errors import ConfigError, SchemaTooNewError
from dass.meta.calibration import Calibration, calibrate
from dass.zoo.files import calibration_bytes, calibration_path, read_predictor
from tests.dass.meta.simulated import World


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(World().held_out(np.random.default_rng(0), 5, 12))


def write(file: Path, calibration: Calibration) -> Path:
    file.write_bytes(b"weights")
    calibration_path(file).write_bytes(calibration_bytes(calibration, sha256(b"weights").hexdigest()))
    return file


def test_the_calibration_beside_a_predictor_is_read_with_it(tmp_path: Path, calibration: Calibration) -> None:
    file = write(tmp_path / "predictor.safetensors", calibration)
    assert {path.name for path in tmp_path.iterdir()} == {"predictor.safetensors", "predictor.json"}
    found = read_predictor(str(file))
    assert (found.data, found.calibration) == (b"weights", calibration)
    assert found.sha == sha256(b"weights").hexdigest()


def test_a_predictor_alone_has_none(tmp_path: Path) -> None:
    (tmp_path / "alone").write_bytes(b"weights")
    assert read_predictor(tmp_path / "alone").calibration is None


def test_a_calibration_of_another_predictor_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    file = write(tmp_path / "predictor.safetensors", calibration)
    file.write_bytes(b"other weights")
    with pytest.raises(
        ConfigError, match=r"must be of the predictor beside it, .*write both with `calibrate --output`"
    ):
        read_predictor(file)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"predictor": 1, "calibration": {}}', "[" * 100_000])
def test_what_is_no_calibration_is_refused(text: str, tmp_path: Path, calibration: Calibration) -> None:
    file = write(tmp_path / "predictor.safetensors", calibration)
    calibration_path(file).write_text(text)
    with pytest.raises(ConfigError, match="what lies beside a predictor must be its calibration, got "):
        read_predictor(file)


def test_a_newer_one_says_so(tmp_path: Path, calibration: Calibration) -> None:
    file = write(tmp_path / "predictor.safetensors", calibration)
    document = json.loads(calibration_path(file).read_text())
    document["calibration"]["version"] = 99
    calibration_path(file).write_text(json.dumps(document))
    with pytest.raises(SchemaTooNewError, match="got 99; update the package"):
        read_predictor(file)
