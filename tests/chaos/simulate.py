"""Many seeded schedules, one after another or on several cores, and what happened in them."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from cluster.runtime import code_version
from tests.chaos.simulator import Outcome, simulate

SUMS = ("runs", "records", "submissions", "leases", "steps", "steps_repeated", "hits", "events")
REPORTED_S = 10.0


@dataclass
class Summary:
    """What happened in all schedules so far. Times are virtual seconds, but for `wall_s`."""

    schedules: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    max_recovery_s: float = 0.0
    max_virtual_s: float = 0.0
    broken: list[Outcome] = field(default_factory=list)

    def add(self, outcome: Outcome) -> None:
        """Count one more."""
        self.schedules += 1
        self.faults += outcome.faults
        self.sums.update({name: getattr(outcome, name) for name in SUMS})
        self.max_recovery_s = max(self.max_recovery_s, outcome.recovery_s)
        self.max_virtual_s = max(self.max_virtual_s, outcome.virtual_s)
        if outcome.violation:
            self.broken.append(outcome)

    def document(self, seed: int, wall_s: float) -> dict[str, Any]:
        """All of it as JSON types."""
        return {
            "seed": seed,
            "schedules": self.schedules,
            "wall_s": round(wall_s, 1),
            "code_version": code_version(),
            **self.sums,
            "max_recovery_s": round(self.max_recovery_s, 1),
            "max_virtual_s": round(self.max_virtual_s, 1),
            "faults": dict(sorted(self.faults.items())),
            "violations": [{"seed": outcome.seed, "rule": outcome.violation} for outcome in self.broken],
        }


def outcomes(seeds: Sequence[int], workers: int) -> Iterator[Outcome]:
    """The outcome of each seed, in order."""
    if workers == 1:
        yield from map(simulate, seeds)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(simulate, seeds, chunksize=20)


def main(arguments: Sequence[str]) -> None:
    """Run the schedules that the options ask for; exit code 1 when a rule was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=300, help="how many, of seeds that count up")
    parser.add_argument("--seed", type=int, default=0, help="the first one's seed")
    parser.add_argument("--workers", type=int, default=1, help="processes at work at the same time")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one schedule and print its last events")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        _replay(options.replay)
        return
    began = reported = time.perf_counter()
    summary = Summary()
    for outcome in outcomes(range(options.seed, options.seed + options.schedules), options.workers):
        summary.add(outcome)
        if outcome.violation:
            _tell(outcome)
        if time.perf_counter() - reported > REPORTED_S:
            reported = time.perf_counter()
            print(f"{summary.schedules} of {options.schedules} schedules", file=sys.stderr, flush=True)
    document = summary.document(options.seed, time.perf_counter() - began)
    print(json.dumps(document, indent=2) if options.json else "\n".join(_lines(document)))
    sys.exit(1 if summary.broken else 0)


def _replay(seed: int) -> None:
    outcome = simulate(seed, traced=True)
    print("\n".join(outcome.trace))
    print(f"seed {seed}: {outcome.violation or 'all rules hold'}")
    sys.exit(1 if outcome.violation else 0)


def _tell(outcome: Outcome) -> None:
    last = "\n".join(f"    {line}" for line in outcome.trace[-20:])
    print(
        f"{last}\nseed {outcome.seed}: {outcome.violation}\n"
        f"see all of it with: python -m tests.chaos simulate --replay {outcome.seed}",
        file=sys.stderr,
        flush=True,
    )


def _lines(document: dict[str, Any]) -> Iterator[str]:
    for name, value in document.items():
        if isinstance(value, dict):
            yield f"{name}:"
            yield from (f"  {number:8} {kind}" for kind, number in value.items())
        else:
            yield f"{name}: {value}"
