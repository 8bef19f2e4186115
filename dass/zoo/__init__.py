"""Three lines of Python: a predictor, the students that it ranks for images and a teacher, the student distilled.

    ranking = load("predictor.safetensors").rank("imagefolder:photos", teacher="teacher.safetensors", max_macs_ratio=0.5)
    student = ranking.distil(seed=1)
    student.save("student.safetensors")

And what the package brings along: nothing yet.
"""

from pathlib import Path

from dass.errors import ConfigError
from dass.zoo.distilled import Distilled
from dass.zoo.files import PREDICTOR
from dass.zoo.pretrained import Pretrained, load
from dass.zoo.ranked import RankedStudents

__all__ = ["PREDICTOR", "RECORDS", "Distilled", "Pretrained", "RankedStudents", "load", "shipped_records"]

RECORDS = Path(__file__).parent / "records"


def shipped_records() -> Path:
    """The folder, laid out as a store, of the records that this version ships.

    Raises:
        ConfigError: it ships none.
    """
    if not RECORDS.is_dir():
        raise ConfigError(
            "--records shipped needs records in the package, got a version without: no records ship with this version "
            "yet; leave --records out and name a store of your own with --store"
        )
    return RECORDS
