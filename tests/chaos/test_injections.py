"""The short mode of `make chaos`: some faults into one collection, and whether the judge sees what is wrong."""

from pathlib import Path

import pytest

from tests.chaos.inject import inject

SHORT = {"lane killed": 1, "queue killed": 1, "S3 answers 500": 1, "student exhausts memory": 1}


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_faults_in_a_real_collection_leave_no_trace(tmp_path: Path) -> None:
    *_, tallies = inject(SHORT, seed=0, folder=tmp_path)
    assert {tally.fault: tally.injections for tally in tallies} == SHORT
    assert [tally for tally in tallies if not tally.is_clean] == []
