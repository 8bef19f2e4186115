"""Ray Tune for scoring: warm actors score the chunks of a search, where one process would take too long.

    strategy -> rounds -> chunks -> Tune's searcher -> actors -> scores -> rounds -> a scored batch in the ledger

Tune only schedules. The strategy runs in the process that drives Tune, and the same strategy once more in the caller's,
which reads the ledger: so it makes no difference whether a batch was scored now or by a search that was killed. Tune
never reads its own files again, and nothing but the ledger crosses from one process to the other.

Chunks are the unit that fixes a score's bits (see dass/search/rounds.py), each on one thread: on the same type of CPU
the ranking is that of a search in process, bit for bit, with any number of workers.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from cluster.objects import open_store
from cluster.runtime import cancel_running, compute_on, on_this_node
from cluster.scores import ScoreLedger
from cluster.settings import LaneConfig
from dass.errors import ClusterError
from dass.records import Student, content_id
from dass.search.budget import Budget
from dass.search.ranking import Candidate
from dass.search.rounds import Batch, Chunk, Rounds
from dass.search.select import Scorer, SearchConfig, to_candidates
from dass.search.strategies import Strategy
from dass.spaces import get_space

POLL_S = 0.2
END_S = 60.0  # for Tune to end once everything is scored; mostly it takes less than one
VERSION = 2  # of proposals and scores: another one forgets the ledgers of all earlier searches


@dataclass(frozen=True)
class ScoreJob:
    """A search on a cluster.

    scorer_id: what the scores depend on beside the students, such as predictor, teacher and task.
    workers: actors that score at the same time, each with one CPU, or with `lanes.gpus` of a GPU where that is set.
    """

    store_url: str
    scorer_id: str
    space: str
    budget: Budget
    resolution: int
    num_classes: int
    search: SearchConfig
    lanes: LaneConfig
    workers: int

    @property
    def ledger(self) -> ScoreLedger:
        """Where this search writes; one with more or fewer candidates shares it."""
        endless = replace(self.search, candidates=1, max_macs=None, max_macs_ratio=None, max_params=None)
        space = [self.space, self.budget, self.resolution, self.num_classes]
        key = content_id([VERSION, torch.__version__, self.scorer_id, *space, endless, str(self.lanes.device)])
        return ScoreLedger(open_store(self.store_url), key)

    def strategy(self) -> Strategy:
        """The strategy, at its beginning."""
        return self.search.begin(get_space(self.space), self.budget, self.resolution, self.num_classes)

    def batches(self) -> Generator[tuple[int, list[Student]], Sequence[float], None]:
        """What the strategy asks for, batch by batch; each wants its scores sent before the next."""
        strategy, left, number = self.strategy(), self.search.candidates, 0
        while left > 0 and (students := strategy.ask(min(self.search.batch, left))):
            strategy.tell(students, (yield number, students))
            left, number = left - len(students), number + 1


def score_candidates(job: ScoreJob, scorer: Scorer) -> Generator[list[Candidate], None, None]:
    """`dass.search.select.search` on workers: yields the candidates of each batch, in the order of the batches.

    Needs a session of Ray. Closing the iterator early ends the workers, whose CPUs are free again when the session ends;
    a later call goes on from the ledger. A worker that dies costs its chunk's time, which another one scores again.

    Raises:
        ClusterError: a chunk failed more often than `lanes.max_failures`, or Tune could not be brought to its end.
    """
    ledger = job.ledger
    batches = job.batches()
    with _driven(job, scorer) as check:
        asked = next(batches, None)
        while asked is not None:
            number, students = asked
            while (scores := ledger.get(number, students)) is None:
                check()
            yield to_candidates(students, scores, job.resolution, job.num_classes)
            try:
                asked = batches.send(scores)
            except StopIteration:
                asked = None


@contextmanager
def _driven(job: ScoreJob, scorer: Scorer) -> Iterator[Callable[[], None]]:
    """A call that waits a moment for Tune, which it starts at the first time; Tune ends with the `with` block.

    It is driven by a process beside the caller's, for the reason that lanes have one. That process is not started anew:
    what Tune reserves for its trials is given back when Tune ends by itself or the session does, not when it is killed.
    """
    outcomes: list[Any] = []
    was_over = False

    def check() -> None:
        nonlocal was_over
        if was_over:  # and the batch that is waited for is still not there
            raise ClusterError("every batch must be scored when Ray Tune ends, got one that is not; search again")
        if not outcomes:
            drive = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=on_this_node())(_drive)
            outcomes.append(drive.remote(job, [ray.put(scorer)]))
        if ray.wait(outcomes, timeout=POLL_S)[0]:
            _raise(outcomes[0])
            was_over = True

    try:
        yield check
        if outcomes:
            ray.wait(outcomes, timeout=END_S)
    finally:
        if outcomes:
            cancel_running(outcomes)


def _raise(outcome: Any) -> None:  # noqa: ANN401 - Ray's references have no static type
    """Raise what ended Tune early, if anything."""
    try:
        cause = ray.get(outcome)
    except RayError as error:
        cause = str(error).strip().splitlines()[-1]
    if cause is not None:
        raise ClusterError(
            f"every chunk must be scored within lanes.max_failures retries, got {cause}; cure the cause, then search again: "
            "what is scored is kept"
        )


class ChunkSearcher(Searcher):  # type: ignore[misc]  # Ray's classes have no static type
    """A search as Tune's searcher: a trial is a chunk. Batches that are known from the ledger make no trials."""

    def __init__(self, rounds: Rounds, write: Callable[[Batch], None], max_failures: int) -> None:
        super().__init__()
        self._rounds, self._write, self._max_failures = rounds, write, max_failures
        self._live: dict[str, Chunk] = {}
        self._failures: Counter[Chunk] = Counter()
        self.is_given_up = False

    def suggest(self, trial_id: str) -> Any:  # noqa: ANN401 - a configuration, None for "later", or FINISHED
        """The next chunk."""
        chunk = None if self.is_given_up else self._rounds.take()
        if chunk is None:
            return Searcher.FINISHED if self.is_given_up or self._rounds.is_done else None
        self._live[trial_id] = chunk
        return {"chunk": _encode(chunk)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take in scores; a chunk without them is given out again, to whom ever is free."""
        chunk = self._live.pop(trial_id)
        if error or result is None or "scores" not in result:
            self._failures[chunk] += 1
            self.is_given_up = self.is_given_up or self._failures[chunk] > self._max_failures
            self._rounds.give_back(chunk)
            return
        for batch in self._rounds.put(chunk, result["scores"]):
            self._write(batch)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune writes a pickle of its searcher, which is never read."""
        return {}

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: what must outlast Tune stands in the ledger."""


class _ChunkActor(tune.Trainable):  # type: ignore[misc]
    """A process that scores one chunk after another."""

    def setup(self, config: dict[str, Any], scorer: list[Any], device: torch.device) -> None:
        """Take up the scorer; it comes as a reference in a list, so that a node's object store holds it once."""
        compute_on(threads=1)
        self._scorer: Scorer = ray.get(scorer[0]).to(device)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take up another chunk."""
        self._chunk = _decode(new_config["chunk"])
        return True

    def step(self) -> dict[str, Any]:
        """Score the chunk, which is all of a trial."""
        return {"scores": self._scorer.score(self._chunk).tolist(), "done": True}


def _drive(job: ScoreJob, scorer: list[Any]) -> str | None:
    """Drive Ray Tune to its end; what made it give up, or None when everything is scored."""
    search, ledger = job.search, job.ledger
    rounds = Rounds(job.strategy(), search.candidates, search.batch, search.chunk, ledger.get)
    searcher = ChunkSearcher(
        rounds, lambda batch: ledger.put(batch.number, batch.students, batch.in_order), job.lanes.max_failures
    )
    resources = {"cpu": 1.0} | ({"gpu": job.lanes.gpus} if job.lanes.gpus else {})
    trainable = tune.with_parameters(_ChunkActor, scorer=scorer, device=job.lanes.device)
    with tempfile.TemporaryDirectory(prefix="dass-score-", ignore_cleanup_errors=True) as storage:
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher, num_samples=-1, max_concurrent_trials=job.workers, reuse_actors=True
            ),
            run_config=tune.RunConfig(
                name="score",
                storage_path=storage,
                failure_config=tune.FailureConfig(max_failures=0),  # the searcher gives the chunk out again
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                verbose=0,
            ),
        )
        results = tuner.fit()
    if searcher.is_given_up:
        return str(results.errors[-1]).strip().splitlines()[-1]
    return None


def _encode(chunk: Chunk) -> str:
    """One text, which Tune copies at no cost."""
    return json.dumps([(student.widths, student.family) for student in chunk])


def _decode(text: str) -> Chunk:
    return tuple(Student(tuple(map(tuple, widths)), family) for widths, family in json.loads(text))
