"""A predictor as a file, and beside it, with the suffix .json, how far it can be trusted, where that was found out."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from dass.errors import ConfigError, SchemaTooNewError, StoreError
from dass.json_text import parse_json
from dass.meta.calibration import Calibration
from dass.meta.calibration_file import from_document, to_document
from dass.tensors import sha256

PREDICTOR = Path(__file__).parent / "predictor.safetensors"
"""The one that the package ships."""


@dataclass(frozen=True)
class PredictorFile:
    """What was read: the bytes of a predictor, and its calibration, None where there is none."""

    data: bytes = field(repr=False)
    calibration: Calibration | None

    @property
    def sha(self) -> str:
        """SHA-256 of the predictor."""
        return sha256(self.data)


def read_predictor(file: Path | str | None = None) -> PredictorFile:
    """The predictor of a file, and the calibration beside it; None: those that the package ships.

    Raises:
        ConfigError: there is no such file, or what lies beside it is no calibration of it.
        SchemaTooNewError: a newer version of this package wrote the calibration.
    """
    path = PREDICTOR if file is None else Path(file)
    try:
        data = path.read_bytes()
        beside = calibration_path(path).read_bytes() if calibration_path(path).is_file() else None
    except OSError as error:
        raise ConfigError(
            f"a predictor must be a readable file, got {error.filename} ({error.strerror}); correct the path"
        ) from error
    found = PredictorFile(data, None)
    return found if beside is None else PredictorFile(data, _calibration(beside, calibration_path(path), found.sha))


def calibration_path(predictor: Path) -> Path:
    """Where the calibration of a predictor's file lies."""
    return predictor.with_suffix(".json")


def calibration_bytes(calibration: Calibration, predictor: str) -> bytes:
    """What lies there. predictor: its SHA-256."""
    document = {"predictor": predictor, "calibration": to_document(calibration)}
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _calibration(data: bytes, path: Path, predictor: str) -> Calibration:
    remedy = "write both with `calibrate --output`, or remove it"
    try:
        document = parse_json(data)
        made_for, calibration = document["predictor"], from_document(document["calibration"])
    except SchemaTooNewError:
        raise
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"what lies beside a predictor must be its calibration, got {path} ({error!s:.200}); {remedy}"
        ) from error
    if made_for != predictor:
        raise ConfigError(
            f"a calibration must be of the predictor beside it, {predictor[:12]}, got that of {made_for!r:.20} in {path}; "
            f"{remedy}"
        )
    return calibration
