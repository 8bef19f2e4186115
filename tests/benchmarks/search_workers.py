"""Where scoring on workers overtakes scoring in process: `search --workers N` against `search`, by number of candidates.

    python -m tests.benchmarks search_workers [--json] [--candidates N ...] [--workers N ...] [--resolution R] [--space NAME]

Teacher and predictor are untrained: neither's values change what scoring costs. The machine's own rate, the start of a
session and of Tune, and the cost of a chunk on Tune are measured; from them a model says what N workers would take:

    in process   rate_threads x candidates
    on workers   start + candidates / N x (rate_1 + tune_per_chunk / chunk)

The first of them is only measured up to the CPUs that are here. On a shared machine the least of the repetitions counts.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cluster.runtime import session
from cluster.score import ScoreJob, score_candidates
from cluster.settings import LaneConfig
from dass.embed import Embedder, draw_noise, noise_sha
from dass.networks import build
from dass.predictor import MetaPredictor, Predictor, PredictorSpec
from dass.records import Student
from dass.search.budget import Budget
from dass.search.select import PredictorScorer, SearchConfig, one_thread, search
from dass.seeding import generator
from dass.spaces import get_space

NUM_CLASSES = 10
CHUNKS = 100  # of a scorer that costs nothing, to see what Tune takes for each
MODELLED = (2, 4, 8, 16, 32)  # workers


class FreeScorer:
    """Scores at no cost."""

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """Zeros."""
        return torch.zeros(len(students))

    def to(self, device: torch.device) -> "FreeScorer":  # noqa: ARG002
        """Itself."""
        return self


@dataclass(frozen=True)
class Bench:
    """What is searched."""

    space: str
    resolution: int

    def config(self, candidates: int, chunk: int = 250) -> SearchConfig:
        """Random search: it never waits for scores."""
        return SearchConfig(candidates=candidates, chunk=chunk, batch=500)

    def scorer(self) -> PredictorScorer:
        """An untrained predictor adapted to an untrained teacher."""
        space, noise = get_space(self.space), draw_noise(self.resolution)
        spec = PredictorSpec(
            space=space.name,
            resolution=self.resolution,
            num_channels=space.num_channels,
            arch_dim=space.encoding_dim,
            noise_sha=noise_sha(noise),
        )
        model = Predictor(spec, seed=0)
        rates = {name: torch.full_like(value, 0.005) for name, value in model.named_parameters()}
        state = build(space.largest, NUM_CLASSES, generator("benchmark")).state_dict()
        with one_thread():
            embedder = Embedder(state, space.largest, noise)
            teacher_map = embedder.maps([space.largest])[0]
            adapted = MetaPredictor(model, rates).adapt(space.encode(space.largest), teacher_map, 80.0)
        return PredictorScorer(adapted, embedder, space)

    def job(self, store: str, config: SearchConfig, workers: int) -> ScoreJob:
        """The search on workers."""
        place = (self.space, Budget(), self.resolution, NUM_CLASSES)
        return ScoreJob(store, f"{time.time_ns()}", *place, config, LaneConfig(), workers)

    def in_process(self, candidates: int, threads: int) -> float:
        """Seconds of a search in this process."""
        config, scorer = self.config(candidates), self.scorer()
        strategy = self.job("/unused", config, 1).strategy()
        with stopwatch() as seconds:
            for _ in search(strategy, scorer, config, self.resolution, NUM_CLASSES, threads=threads):
                pass
        return seconds[0]

    def on_workers(self, candidates: int, workers: int) -> tuple[float, float, float]:
        """Seconds of a search on workers: in all but the session, of the session, and to the first batch."""
        scorer = self.scorer()
        with tempfile.TemporaryDirectory() as store, stopwatch() as opened, session(workers):
            session_s = time.perf_counter() - opened[0]
            began, first = time.perf_counter(), math.nan
            for _ in score_candidates(self.job(store, self.config(candidates), workers), scorer):
                first = min(time.perf_counter() - began, first if first == first else math.inf)
            return time.perf_counter() - began, session_s, first


@contextmanager
def stopwatch() -> Iterator[list[float]]:
    """A list with when the `with` block began, and at its end how many seconds it took."""
    seconds = [time.perf_counter()]
    yield seconds
    seconds[0] = time.perf_counter() - seconds[0]


def seconds_per_chunk(bench: Bench) -> float:
    """What Tune takes for a chunk of no work, on one worker once it is warm."""
    config = bench.config(CHUNKS * 10, chunk=10)
    with tempfile.TemporaryDirectory() as store, session(1):
        times = []
        for _ in score_candidates(bench.job(store, config, 1), FreeScorer()):
            times.append(time.perf_counter())
    return (times[-1] - times[0]) / (CHUNKS - config.batch / config.chunk)


def crossover(start_s: float, rate_process_s: float, rate_workers_s: float) -> int | None:
    """Candidates from which on workers are faster; None: never."""
    gain = rate_process_s - rate_workers_s
    return math.ceil(start_s / gain) if gain > 0 else None


def measure(bench: Bench, candidates: Sequence[int], workers: Sequence[int], repeats: int) -> dict[str, object]:
    """All figures."""
    cpus = len(os.sched_getaffinity(0))
    rows, starts, sessions = [], [], []
    for num in candidates:
        row: dict[str, float] = {"candidates": num}
        for threads in sorted({1, cpus}):
            row[f"in_process_{threads}_s"] = min(bench.in_process(num, threads) for _ in range(repeats))
        for count in workers:
            total, session_s, first = min(bench.on_workers(num, count) for _ in range(repeats))
            row[f"workers_{count}_s"] = total + session_s
            sessions.append(session_s)
            starts.append(first)
        rows.append(row)
    last = rows[-1]
    rate_1, rate_all = (last[f"in_process_{threads}_s"] / last["candidates"] for threads in (1, cpus))
    per_chunk = seconds_per_chunk(bench)
    start = min(sessions) + max(0.0, min(starts) - 500 * rate_1)
    chunk = bench.config(1).chunk
    rate_worker = rate_1 + per_chunk / chunk
    return {
        "space": bench.space,
        "resolution": bench.resolution,
        "cpus": cpus,
        "load": os.getloadavg()[0],
        "rows": rows,
        "session_s": min(sessions),
        "start_s": start,
        "tune_per_chunk_s": per_chunk,
        "rate_1_ms": 1000 * rate_1,
        f"rate_{cpus}_ms": 1000 * rate_all,
        "crossover": {f"{n} workers": crossover(start, rate_all, rate_worker / n) for n in MODELLED},
    }


def main(argv: list[str]) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="search_workers")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--space", default="paper5")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    found = measure(Bench(args.space, args.resolution), args.candidates, args.workers, args.repeats)
    if args.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    for row in found.pop("rows"):  # type: ignore[attr-defined]
        sys.stdout.write("  ".join(f"{name} {value:.1f}" for name, value in row.items()) + "\n")
    for name, value in found.items():
        sys.stdout.write(f"{name}: {value}\n")
