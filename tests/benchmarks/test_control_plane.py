"""The benchmark of the control plane: it drives the product's own collection, so it must go on fitting it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANES, RUNS, RUN_S = (1, 2), 6, 0.5


def test_runs_that_take_time_are_shared_by_lanes() -> None:
    """In a process of its own, as its lanes are not those of other tests."""
    options = [
        "--json",
        "--runs",
        str(RUNS),
        "--lanes",
        *map(str, LANES),
        "--planned",
        "20",
        "--run-seconds",
        str(RUN_S),
    ]
    command = [sys.executable, "-m", "tests.benchmarks", "control-plane", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    took = dict(document["points"])
    assert took.keys() == set(LANES)
    assert all(
        seconds * lanes > 0.99 * RUNS * RUN_S for lanes, seconds in took.items()
    )  # nobody skips what it waits for
    assert document["medians"]["run by number of lanes"]["values"]["1"] == pytest.approx(
        1000 * took[1] / RUNS, rel=0.01
    )
    parts = document["medians"]["parts of a run"]["values"]
    assert parts["all"] == pytest.approx(sum(value for name, value in parts.items() if name != "all"), abs=0.1)
