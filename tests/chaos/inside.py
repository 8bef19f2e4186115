"""What happens inside the processes of lanes under test: they tell how far they train, and fail when they are told to.

Ray calls `enter` when it starts a process for work; see tests/chaos/site.py.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch

import cluster.lane
from dass.kd.cohort import Cohort, Progress
from dass.records import Run

FOLDER = "DASS_CHAOS_FOLDER"  # an environment variable
Trouble = Literal["raise", "diverge", "exhaust", "hang"]


def order_path(folder: Path, trouble: Trouble) -> Path:
    """The file that makes one lane, whichever comes first, fail so among its students; it takes the file away."""
    return folder / f"order-{trouble}"


def outcome_path(folder: Path, trouble: Trouble) -> Path:
    """The file in which the lane that failed so names its runs, the struck one first."""
    return folder / f"outcome-{trouble}"


def curse(folder: Path, troubles: Mapping[str, Trouble]) -> None:
    """Let these runs, by their ids, get into such trouble whenever they train, until they are cursed no more."""
    _write(folder / "cursed.json", json.dumps(dict(troubles)))


def set_pace(folder: Path, seconds: float) -> None:
    """Let lanes sleep so long at each yield, from their next one on."""
    _write(folder / "pace", str(seconds))


def enter() -> None:
    """Let all cohorts of this process be watched."""
    vars(cluster.lane)["Cohort"] = WatchedCohort


class WatchedCohort(Cohort):
    """A cohort that writes a line when it begins, yields or is saved, and trains no faster than it is told."""

    def train(self) -> Iterator[Progress]:
        """As Cohort.train, with the troubles that were ordered."""
        folder = Path(os.environ[FOLDER])
        self._note("begins", self.runs)
        for progress in super().train():
            time.sleep(float((folder / "pace").read_text()))
            ended = tuple(each.run for each in progress.ended)
            self._note("yields", (*self.runs, *ended), ended)
            yield progress
            if self.runs and self.runs[0].teacher is not None:
                self._obey(folder)

    def state(self, run_id: str) -> bytes:
        """As Cohort.state."""
        state = super().state(run_id)
        self._note("saved", [run for run in self.runs if run.id == run_id])
        return state

    def _note(self, what: str, runs: Sequence[Run], ended: Sequence[Run] = ()) -> None:
        line = {
            "what": what,
            "time": time.time(),
            "pid": os.getpid(),
            "runs": [run.id for run in runs],
            "ended": [run.id for run in ended],
            "step": self.step,
            "steps_per_epoch": self._steps_per_epoch,
        }
        with Path(os.environ[FOLDER], f"trace-{os.getpid()}.jsonl").open("a") as trace:
            trace.write(json.dumps(line) + "\n")

    def _obey(self, folder: Path) -> None:
        """Get into the trouble that was ordered, if any, or that a run of ours always gets into."""
        cursed = folder / "cursed.json"
        troubles = json.loads(cursed.read_text()) if cursed.exists() else {}
        for run in self.runs:
            if run.id in troubles:
                self._get_into(troubles[run.id])
        for trouble in ("raise", "diverge", "exhaust", "hang"):
            order = order_path(folder, trouble)
            if not order.exists():
                continue
            try:
                order.unlink()
            except FileNotFoundError:
                continue  # another lane took it
            _write(outcome_path(folder, trouble), json.dumps([run.id for run in self.runs]))
            self._get_into(trouble)

    def _get_into(self, trouble: str) -> None:
        match trouble:
            case "raise":
                raise RuntimeError("a training function fails, by order")
            case "diverge":
                with torch.no_grad():
                    next(iter(self._members[0].network.parameters())).fill_(torch.nan)
            case "exhaust":
                torch.empty(2**60)
            case "hang":
                while True:
                    time.sleep(3600)


def _write(path: Path, text: str) -> None:
    """In one step: others read it at any moment."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(text)
    part.rename(path)
