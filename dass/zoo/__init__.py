"""Three lines of Python: a predictor, the students that it ranks for images and a teacher, the student distilled.

    ranking = load("predictor.safetensors").rank("imagefolder:photos", teacher="teacher.safetensors", max_macs_ratio=0.5)
    student = ranking.distil(seed=1)
    student.save("student.safetensors")

The file may be left out: then it is the predictor that the package brings along. `RECORDS` is a folder, laid out as a store, of
the records that it was meta-trained and checked on; MODEL_CARD.md and DATA_CARD.md tell of both.
"""

from pathlib import Path

from dass.zoo.distilled import Distilled
from dass.zoo.files import PREDICTOR
from dass.zoo.pretrained import Pretrained, load
from dass.zoo.ranked import RankedStudents

__all__ = ["PREDICTOR", "RECORDS", "Distilled", "Pretrained", "RankedStudents", "load"]

RECORDS = Path(__file__).parent / "records"
