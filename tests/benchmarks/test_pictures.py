import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.benchmarks import pictures

DOCUMENTS: list[dict[str, Any]] = [
    {"name": "cohort", "ratio": 2.34, "ratio_strong": 1.46, "machine": {}},
    {"name": "cohort", "ratio": 4.5, "machine": {}, "sizes": {"cohorts": [1, 8], "precision": "bfloat16"}},
    {"name": "cohort", "ratio": 12.3, "machine": {"gpu": "NVIDIA H200"}},
    {"name": "store", "ratio": 99.9, "machine": {}},
    {"name": "search-workers", "ratio": 0.5, "points": [[10, 0.2], [1000, 3.0]], "machine": {}},
    {"name": "control-plane", "points": [[1, 31.0], [2, 20.5]], "machine": {}, "sizes": {"runs": [2000], "run_s": 0.0}},
    {"name": "control-plane", "points": [[1, 99.0], [4, 26.0]], "machine": {}, "sizes": {"runs": [64], "run_s": 1.5}},
]


def draw(folder: Path, documents: list[dict[str, Any]], ending: str) -> tuple[Path, Path]:
    results = folder / "results"
    results.mkdir()
    for place, document in enumerate(documents):
        (results / f"{place}.json").write_text(json.dumps(document))
    ratios, scaling = folder / f"ratios.{ending}", folder / f"scaling.{ending}"
    pictures.main([str(results), str(ratios), str(scaling)])
    return ratios, scaling


def test_the_pictures_say_what_the_documents_do_and_nothing_that_has_no_reference(tmp_path: Path) -> None:
    ratios, scaling = (path.read_text() for path in draw(tmp_path, DOCUMENTS, "svg"))
    for text in ("cohort", "cohort of 8, bfloat16", "cohort, NVIDIA H200", "2.3×", "1.5×", "12.3×"):
        assert f">{text}<" in ratios
    assert "99.9" not in ratios
    for text in ("candidates", "lanes", "1,000", "2", "2,000 runs that train nothing", "64 runs that take 1.5 s"):
        assert f">{text}<" in scaling


@pytest.mark.parametrize("documents", [DOCUMENTS, []])
def test_the_pictures_are_twice_as_wide_as_the_readme(documents: list[dict[str, Any]], tmp_path: Path) -> None:
    for path in draw(tmp_path, documents, "png"):
        with Image.open(path) as image:
            assert image.width == 2 * pictures.WIDTH
