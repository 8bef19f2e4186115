"""Where scoring on workers overtakes scoring in process: `search --workers N` against `search`, by number of candidates.

    python -m tests.benchmarks search-workers [--json] [--candidates N ...] [--workers N ...] [--alone N ...]
                                              [--resolution R] [--space NAME] [--repeats R]

Teacher and predictor are untrained: neither's values change what scoring costs. The machine's own rate, the start of a
session and of Tune, and the cost of a chunk on Tune are measured; from them a model says what N workers would take:

    in process   rate_threads x candidates
    on workers   start + candidates / N x (rate_1 + tune_per_chunk / chunk)

The first of them is only measured up to the CPUs that are here. On a shared machine the least of the repetitions counts.
`--alone` adds numbers of candidates that are scored in this process only; `points` are all of its times on all threads.

`ratio`: in process on all threads over the workers that were most, at most candidates; under 1 the workers lose.
`limit_share` is null: `embed` knows the FLOPs of scoring.
"""

import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cluster.runtime import session
from cluster.score import ScoreJob, score_candidates
from cluster.settings import LaneConfig
from dass.embed import Embedder, draw_noise, noise_sha
from dass.meta.episodes import Support
from dass.networks import build
from dass.predictor import MetaPredictor, Predictor, PredictorSpec
from dass.records import Student
from dass.search.budget import Budget
from dass.search.select import PredictorScorer, SearchConfig, search
from dass.seeding import generator
from dass.spaces import get_space
from dass.threads import one_thread
from tests.benchmarks.measure import document, memory_mb, parser, tell

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
            adapted = MetaPredictor(model, rates).adapt(Support(space.encode(space.largest), teacher_map, 80.0))
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


def measure(
    bench: Bench, candidates: Sequence[int], workers: Sequence[int], alone: Sequence[int], repeats: int
) -> dict[str, Any]:
    """The document."""
    cpus = len(os.sched_getaffinity(0))
    points = {num: bench.in_process(num, cpus) for num in alone}
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
        points[num] = row[f"in_process_{cpus}_s"]
    last = rows[-1]
    rate_1, rate_all = (last[f"in_process_{threads}_s"] / last["candidates"] for threads in (1, cpus))
    per_chunk = seconds_per_chunk(bench)
    start = min(sessions) + max(0.0, min(starts) - 500 * rate_1)
    rate_worker = rate_1 + per_chunk / bench.config(1).chunk
    return document(
        "search-workers",
        sizes={"space": bench.space, "resolution": bench.resolution, "candidates": list(candidates)},
        ratio=round(last[f"in_process_{cpus}_s"] / last[f"workers_{max(workers)}_s"], 3),
        limit_share=None,
        peak_mb=round(memory_mb()),
        rows=rows,
        medians={
            "session": {"unit": "s", "value": min(sessions)},
            "start": {"unit": "s", "value": start},
            "Tune for each chunk": {"unit": "s", "value": per_chunk},
            "candidate on 1 thread": {"unit": "ms", "value": 1000 * rate_1},
            f"candidate on {cpus} threads": {"unit": "ms", "value": 1000 * rate_all},
        },
        crossover={f"{n} workers": crossover(start, rate_all, rate_worker / n) for n in MODELLED},
        points=[[num, points[num]] for num in sorted(points)],
    )


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """A row for each number of candidates, then what the model is made of."""
    for row in found["rows"]:
        yield "  ".join(f"{name} {value:.4g}" for name, value in row.items())
    for name, figure in found["medians"].items():
        yield f"{name:24} {figure['value']:10.3f} {figure['unit']}"
    for name, least in found["crossover"].items():
        yield f"{name:24} {'never faster' if least is None else f'faster from {least:,} candidates on'}"


def main(arguments: list[str]) -> None:
    """Measure and print."""
    options = parser("search-workers", __doc__)
    options.add_argument("--candidates", type=int, nargs="+", default=[1000, 3000, 10_000], metavar="N")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2], metavar="N")
    options.add_argument("--alone", type=int, nargs="*", default=[10, 100], metavar="N", help="in this process only")
    options.add_argument("--resolution", type=int, default=32)
    options.add_argument("--space", default="paper5")
    options.add_argument("--repeats", type=int, default=1)
    chosen = options.parse_args(arguments)
    bench = Bench(chosen.space, chosen.resolution)
    found = measure(bench, chosen.candidates, chosen.workers, chosen.alone, chosen.repeats)
    tell(found, as_json=chosen.json, lines=lines(found))
