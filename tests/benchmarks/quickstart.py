"""Where the wall time of the quickstart goes: the real command in an empty store, phase by phase.

    python -m tests.benchmarks quickstart [--json] [--recipe NAME]

The phases are those that the command itself measures and leaves in the store. Importing and Ray's start and end are
measured beside it, each in a fresh process; what none of them explains is told as `else`. Memory is that of the command
and all processes that it starts, at its peak.

`ratio`: the wall time over that of its phases, so 1 would be no time lost around them. `limit_share` is null: the phases
decode, train, search and draw, and only `cohort`, `meta` and `embed` know the FLOPs of what they do.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import document, parser, tell
from tests.benchmarks.processes import watched

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import jobs.__main__, jobs.quickstart, cluster.lanes"
RAY = "from cluster.runtime import session\nwith session(): pass"
PATIENCE_S = 3600.0


def run(recipe: str) -> tuple[float, float, dict[str, float]]:
    """Seconds of the command, the peak of its memory in MB, and seconds by phase."""
    with tempfile.TemporaryDirectory(prefix="dass-benchmark-") as folder:
        command = [
            sys.executable,
            "-m",
            "jobs",
            "quickstart",
            "--recipe",
            recipe,
            "--store",
            f"{folder}/store",
            "--json",
        ]
        began = time.perf_counter()
        with (
            subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
            watched(process.pid) as memory,
        ):
            out, err = process.communicate(timeout=PATIENCE_S)
            wall_s = time.perf_counter() - began
        if process.returncode != 0:
            sys.exit(f"error: the quickstart must succeed, got exit code {process.returncode}: {err[-2000:]}")
        return wall_s, memory.peak_mb, dict(json.loads(out)["phases"])


def start_s(code: str) -> float:
    """Seconds of a fresh process that does nothing else."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return time.perf_counter() - began


def measure(recipe: str) -> dict[str, Any]:
    """The document."""
    imports_s, only_ray_s = start_s(IMPORTS), start_s(f"{IMPORTS}\n{RAY}")
    wall_s, peak_mb, phases = run(recipe)
    parts = {**phases, "(imports)": imports_s, "(Ray's start and end)": max(0.0, only_ray_s - imports_s)}
    parts["(else)"] = wall_s - sum(parts.values())
    return document(
        "quickstart",
        sizes={"recipe": recipe},
        ratio=round(wall_s / sum(phases.values()), 3),
        limit_share=None,
        peak_mb=round(peak_mb),
        wall_s=round(wall_s, 2),
        medians={"phases": {"unit": "s", "values": {name: round(value, 2) for name, value in parts.items()}}},
        share={name: round(value / wall_s, 3) for name, value in parts.items()},
    )


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The table, the longest phase first."""
    values = found["medians"]["phases"]["values"]
    yield f"quickstart, recipe {found['sizes']['recipe']}: {found['wall_s']:.1f} s, {found['peak_mb']} MB at the peak"
    for name in sorted(values, key=lambda name: -values[name]):
        yield f"  {name:32} {values[name]:8.1f} s {100 * found['share'][name]:6.1f} %"
    yield f"wall time / time of the phases: {found['ratio']}"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options = parser("quickstart", __doc__)
    options.add_argument("--recipe", default="quickstart", help="of the quickstart")
    chosen = options.parse_args(arguments)
    found = measure(chosen.recipe)
    tell(found, as_json=chosen.json, lines=lines(found))
