"""Reads what watched lanes write, as they write it: who trains what, how far each run has come, what is trained twice."""

import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Lane:
    """A process that trains: which runs it has under way, when it last told, and when it last came forward."""

    runs: frozenset[str]
    told: float
    advanced: float = 0.0


@dataclass
class Repeated:
    """A run that goes on from where it was before.

    epochs: what it trains again. is_exceeding: whether that is more than one interval between two checkpoints, as it
    goes on from an older one than the last two of the lane that trained it before.
    """

    run: str
    time: float
    epochs: float
    is_exceeding: bool


@dataclass
class Trace:
    """All lines of a collection so far; `read` takes in the new ones."""

    folder: Path
    lanes: dict[int, Lane] = field(default_factory=dict)
    reached: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # the furthest step of each run
    repeated: list[Repeated] = field(default_factory=list)
    _holder: dict[str, int] = field(default_factory=dict)  # the process that trained a run last
    _saved: dict[tuple[str, int], list[int]] = field(default_factory=lambda: defaultdict(list))  # its steps
    _offsets: dict[Path, int] = field(default_factory=dict)

    def read(self) -> None:
        """Take in what was written since the last call."""
        lines: list[dict[str, Any]] = []
        for path in self.folder.glob("trace-*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._offsets[path] = self._offsets.get(path, 0) + len(whole)
            lines += [json.loads(line) for line in whole.splitlines()]
        for line in sorted(lines, key=lambda line: line["time"]):
            self._take(line)

    def training(self, within_s: float = 3.0) -> dict[int, Lane]:
        """The lanes, by process, that have told of runs under way so lately."""
        now = time.time()
        return {pid: lane for pid, lane in self.lanes.items() if lane.runs and now - lane.told < within_s}

    def _take(self, line: dict[str, Any]) -> None:
        step, now, pid = line["step"], line["time"], line["pid"]
        if line["what"] == "saved":
            for run in line["runs"]:
                self._saved[run, pid].append(step)
            return
        begins = line["what"] == "begins"
        self.lanes[pid] = Lane(frozenset(line["runs"]) - set(line["ended"]), now, 0.0 if begins else now)
        for run in line["runs"]:
            if begins:
                self._begin(run, line)
            self.reached[run] = max(self.reached[run], step)

    def _begin(self, run: str, line: dict[str, Any]) -> None:
        step, pid = line["step"], line["pid"]
        again = self.reached[run] - step
        if again > 0:
            known = self._saved[run, self._holder[run]]
            is_exceeding = step < known[max(len(known) - 2, 0)]
            self.repeated.append(Repeated(run, line["time"], again / line["steps_per_epoch"], is_exceeding))
        self._holder[run] = pid
        self._saved[run, pid] = [step]
