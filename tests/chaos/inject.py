"""Faults at random moments into long collections that really train, on a real Ray; each must leave no trace.

A collection is paced so that it outlasts many faults, one after another. A fault is recovered from when as many lanes
come forward as before, and all visible records are those of an undisturbed collection. What is found is appended to a
file of results, so the table is built over several calls.
"""

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.runtime import code_version
from dass.records import Record
from tests.chaos import inside
from tests.chaos.injections import FAULTS, Fault, Strike
from tests.chaos.site import CHECKPOINT_S, NUM_LANES, PACE_S, Collection, Site, open_site, wait_until
from tests.chaos.trace import Repeated
from tests.chaos.verdict import left_behind, look, undisturbed

RESULTS = Path(__file__).with_name("results.json")
EPOCHS = 20
SECONDS_PER_STRIKE = 15.0  # a collection is made long enough for so much each
RUNS_PER_SECOND = 0.15  # of two paced lanes
MOST_RUNS = 120
RECOVERY_S = 240.0
START_S = 120.0
END_S = 600.0


@dataclass
class Tally:
    """What the strikes of one fault did. interval_exceeded: see `trace.Repeated`."""

    fault: str
    recover_s: list[float] = field(default_factory=list)
    injections: int = 0
    recovered: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    epochs_repeated: float = 0.0
    runs_repeated: int = 0
    interval_exceeded: int = 0
    submitted: int = 0
    left: list[Any] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether all was as it should be."""
        return self.recovered == self.injections and not (
            self.lost or self.duplicated or self.wrong or self.interval_exceeded or self.left
        )

    def note(self, repeated: Repeated) -> None:
        """Count a run that was trained again from an earlier step."""
        self.runs_repeated += 1
        self.epochs_repeated += repeated.epochs
        self.interval_exceeded += repeated.is_exceeding

    def document(self, seed: int) -> dict[str, Any]:
        """One object of the results."""
        times = self.recover_s or [math.nan]
        return {
            "fault": self.fault,
            "injections": self.injections,
            "recovered": self.recovered,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "wrong": self.wrong,
            "runs_repeated": self.runs_repeated,
            "epochs_repeated": round(self.epochs_repeated, 2),
            "interval_exceeded": self.interval_exceeded,
            "recover_s": round(statistics.median(times), 1),
            "recover_s_max": round(max(times), 1),
            "submitted": self.submitted,
            "left_behind": self.left,
            "seed": seed,
            "code_version": code_version(),
        }


class Trial:
    """One collection under fire.

    Args:
        site: where it runs.
        collection: what it collects.
        expected: the records of the undisturbed one.
        rng: when and where is struck.
    """

    def __init__(self, site: Site, collection: Collection, expected: Mapping[str, Record], rng: random.Random) -> None:
        self._site = site
        self._collection = collection
        self._expected = expected
        self._rng = rng
        self._diverged: set[str] = set()
        self._seen: frozenset[str] = frozenset()
        self._hits: list[tuple[float, frozenset[str], Tally]] = []  # when, what was under way, and whose strike it was
        self.is_over = False
        inside.set_pace(site.folder, PACE_S)

    def strike(self, fault: Fault, tally: Tally) -> bool:
        """Wait a moment, strike, and wait for recovery; False when the collection ended before the strike."""
        wait_until(self._is_busy, START_S)
        time.sleep(self._rng.uniform(0, CHECKPOINT_S + 1))
        if not wait_until(lambda: self._is_busy(1), START_S) or self.is_over:
            return False
        lanes = self._site.trace.training().values()
        self._hits.append((time.time(), frozenset().union(*(lane.runs for lane in lanes)), tally))
        submitted = self._site.submitted
        struck = fault.strike(Strike(self._site, self._collection, self._rng))
        over = time.time()
        self._diverged |= struck.diverged
        is_recovered = wait_until(lambda: self._is_busy(len(lanes), over), RECOVERY_S)
        tally.injections += 1
        tally.submitted += self._site.submitted - submitted
        seen = look(self._site.store, self._expected, self._diverged)
        lost, duplicated = len(self._seen - seen.ids) + struck.lost, len(seen.duplicated) + struck.duplicated
        self._seen = seen.ids
        tally.lost += lost
        tally.duplicated += duplicated
        tally.wrong += len(seen.wrong)
        if is_recovered and not (lost or duplicated or seen.wrong):
            tally.recovered += 1
            tally.recover_s.append(time.time() - over)
        return True

    def finish(self, tally: Tally) -> None:
        """Let the collection end undisturbed, and look at all that it leaves; `tally` is charged with what was never struck."""
        inside.set_pace(self._site.folder, 0.0)
        if not wait_until(lambda: self._is_busy() and self.is_over, END_S, pause_s=0.5):
            raise TimeoutError(f"the collection must end, got {[process.poll() for process in self._site.drivers]}")
        for process in self._site.drivers:  # one that looked on
            process.wait(timeout=END_S)
        self._site.end_drivers()
        self._site.trace.read()
        for repeated in self._site.trace.repeated:
            self._last_hit(repeated.run, tally, repeated.time).note(repeated)
        self._site.trace.repeated.clear()
        seen = look(self._site.store, self._expected, self._diverged)
        for run in self._expected.keys() - seen.ids:
            self._last_hit(run, tally).lost += 1
        for run in seen.duplicated:
            self._last_hit(run, tally).duplicated += 1
        for run in seen.wrong:
            self._last_hit(run, tally).wrong += 1
        if left := left_behind(self._site):
            tally.left.append(left)

    def _last_hit(self, run: str, otherwise: Tally, before: float = math.inf) -> Tally:
        """Who struck last while this run was under way."""
        return next((tally for at, runs, tally in reversed(self._hits) if run in runs and at < before), otherwise)

    def _is_busy(self, lanes: int = NUM_LANES, since: float = 0.0) -> bool:
        """Whether so many lanes have come forward since then, or all is done; submits again where that ended too early."""
        self._site.trace.read()
        codes = [process.poll() for process in self._site.drivers]
        if 0 in codes:
            self.is_over = True
        elif all(code is not None for code in codes):
            self._site.drivers.clear()
            self._site.submit(self._collection)
        training = self._site.trace.training().values()
        return self.is_over or sum(lane.advanced > since for lane in training) >= lanes


def inject(wanted: Mapping[str, int], seed: int, folder: Path) -> Iterator[list[Tally]]:
    """Strike each fault as often as wanted; yields what has happened so far after each collection."""
    rng = random.Random(seed)
    tallies = {name: Tally(name) for name in wanted}
    groups: dict[tuple[str, float], list[Fault]] = {}
    for name in wanted:
        groups.setdefault((FAULTS[name].kind, FAULTS[name].hang_s), []).append(FAULTS[name])
    for faults in groups.values():
        todo = [fault for fault in faults for _ in range(wanted[fault.name])]
        rng.shuffle(todo)
        place = folder / f"{faults[0].kind}-{faults[0].hang_s:g}"
        place.mkdir(parents=True)
        with open_site(place, faults[0].kind) as site:
            _say(f"a site with {faults[0].kind} is up")
            while todo:
                _one_collection(site, todo, tallies, rng, folder)
                yield [tally for tally in tallies.values() if tally.injections]


def _one_collection(
    site: Site, todo: list[Fault], tallies: Mapping[str, Tally], rng: random.Random, folder: Path
) -> None:
    """Take faults from `todo` until it is empty or the collection is over."""
    runs = min(len(todo) * SECONDS_PER_STRIKE * RUNS_PER_SECOND, MOST_RUNS)
    collection = Collection(rng.randrange(10**6), math.ceil(runs / 4), EPOCHS, hang_s=todo[0].hang_s)
    expected = undisturbed(collection, folder / "undisturbed" / str(collection.seed))
    _say(f"a collection of {len(expected)} runs begins")
    trial = Trial(site, collection, expected, rng)
    site.submit(collection)
    fault = todo[-1]
    while todo and not trial.is_over:
        fault = todo[-1]
        tally = tallies[fault.name]
        if trial.strike(fault, tally):
            todo.pop()
            _say(f"{tally.injections:3} {fault.name}: {tally.recovered} recovered, {len(todo)} strikes to come")
    trial.finish(tallies[fault.name])
    _say(f"a collection of {len(expected)} runs is over")


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows of all calls as Markdown, one line for each fault in the order of FAULTS."""
    sums = ("injections", "recovered", "lost", "duplicated", "wrong", "interval_exceeded", "epochs_repeated")
    columns = ("fault", *sums, "left behind", "recover_s", "longest")
    yield f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
    yield "| --- " * len(columns) + "|"
    for name in FAULTS:
        if of := [row for row in rows if row["fault"] == name]:
            typical = statistics.median([row["recover_s"] for row in of for _ in range(row["injections"])])
            longest = max(row["recover_s_max"] for row in of)
            numbers = [f"{sum(row[key] for row in of):.0f}" for key in sums]
            left = sum(len(things) for row in of for each in row["left_behind"] for things in each.values())
            yield f"| {' | '.join([name, *numbers, str(left), f'{typical:.1f}', f'{longest:.1f}'])} |"


def main(arguments: Sequence[str]) -> None:
    """Strike what the options ask for, append to the results, and print the table; exit code 1 unless all recovered."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos inject", description=__doc__)
    parser.add_argument("--faults", nargs="+", type=_wanted, metavar="NAME[=TIMES]", help=f"among: {', '.join(FAULTS)}")
    parser.add_argument("--times", type=int, help="strikes of each; default: as many as a release needs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="file to append to")
    parser.add_argument("--table", action="store_true", help="only print the table of the results")
    options = parser.parse_args(arguments)
    before: list[dict[str, Any]] = json.loads(options.results.read_text()) if options.results.exists() else []
    rows, broken = before, False
    if not options.table:
        faults = options.faults or [(name, None) for name in FAULTS]
        wanted = {name: times or options.times or FAULTS[name].at_least for name, times in faults}
        with tempfile.TemporaryDirectory(prefix="dass-chaos-", ignore_cleanup_errors=True) as folder:
            for tallies in inject(wanted, options.seed, Path(folder)):
                rows = before + [tally.document(options.seed) for tally in tallies]
                options.results.write_text(json.dumps(rows, indent=1) + "\n")
                broken = not all(tally.is_clean for tally in tallies)
    print("\n".join(table(rows)))
    sys.exit(1 if broken else 0)


def _wanted(text: str) -> tuple[str, int | None]:
    """An item of --faults."""
    name, _, times = text.partition("=")
    if name not in FAULTS:
        raise argparse.ArgumentTypeError(f"a fault must be among {', '.join(FAULTS)}, got {name!r}; choose one")
    return name, int(times) if times else None


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)
