"""The benchmark of the run database, at its smallest: every phase runs, and the figures are those of the phases."""

import json

import pytest

from tests.benchmarks import store


def test_a_small_run_measures_every_phase(capsys: pytest.CaptureFixture[str]) -> None:
    store.main(["--json", "--records", "40", "--packed", "60", "--repeats", "1"])
    found = json.loads(capsys.readouterr().out)
    assert (found["store"], found["sizes"]) == ("folder", [40, 60])
    for name, of_phase in found["medians"].items():
        assert of_phase.pop("unit") == store.UNITS[name]
        assert of_phase.keys() == ({"40", "60"} if name.endswith("packed") else {"40"})
        assert min(of_phase.values()) > 0
        assert found["growth_mb"][name].keys() == of_phase.keys()
    assert found["ratio"] == pytest.approx(
        found["medians"]["scan_loose"]["40"] / found["medians"]["scan_packed"]["40"], abs=0.01
    )
    assert found["peak_mb"] == round(max(mb for of_phase in found["growth_mb"].values() for mb in of_phase.values()))


@pytest.mark.parametrize(
    ("peaks_mb", "bytes_per_record"), [({1000: 50.0}, None), ({1000: 1.0, 3000: 70.0, 5000: 72.0}, 2 * store.MB / 2000)]
)
def test_memory_by_record_is_what_the_largest_sizes_tell(
    peaks_mb: dict[int, float], bytes_per_record: float | None
) -> None:
    measured = {
        num: {"resume_packed": store.Measured(1.0, mb), "scan_packed": store.Measured(1.0, 0.0)}
        for num, mb in peaks_mb.items()
    }
    told = store.figures("folder", measured)["resume_bytes_per_record"]
    assert told == (None if bytes_per_record is None else round(bytes_per_record))
