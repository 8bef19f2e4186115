"""Searches on a real local Ray: real kills, compared with the same search in this process."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from ray.tune.search import Searcher

from cluster.objects import FolderStore
from cluster.runtime import session
from cluster.score import ChunkSearcher, ScoreJob, score_candidates
from cluster.scores import ScoreLedger
from dass.errors import ClusterError
from dass.records import Student
from dass.search.ranking import Candidate
from dass.search.rounds import Batch, Rounds
from dass.search.select import Scorer
from dass.search.strategies import StrategyName
from tests.cluster.score_site import SPACE, NotedScorer, in_process, make_job, make_scorer

ROOT = Path(__file__).resolve().parents[2]
NUM_BATCHES = 4  # of make_job


def on_workers(job: ScoreJob, scorer: Scorer) -> list[Candidate]:
    return [candidate for batch in score_candidates(job, scorer) for candidate in batch]


def batches_of(store: Path) -> list[str]:
    return list(FolderStore(store).list("searches/"))


class BrokenScorer:
    def score(self, students: Sequence[Student]) -> torch.Tensor:
        raise RuntimeError(f"cannot score {len(students)}")

    def to(self, device: torch.device) -> "BrokenScorer":  # noqa: ARG002
        return self


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray warns of its own deprecations
class TestOnRay:
    @pytest.fixture(scope="class", autouse=True)
    @staticmethod
    def ray_session() -> Iterator[None]:
        with session(num_cpus=2):
            yield

    @pytest.mark.parametrize(("strategy", "workers"), [("random", 2), ("evolution", 1), ("evolution", 2)])
    def test_candidates_order_and_scores_are_those_of_a_search_in_process(
        self, strategy: StrategyName, workers: int, tmp_path: Path
    ) -> None:
        job = make_job(tmp_path / "store", strategy, workers)
        found = on_workers(job, make_scorer())
        assert found == in_process(job)
        assert len(found) == 150
        assert len(batches_of(tmp_path / "store")) == NUM_BATCHES

    def test_a_killed_worker_loses_nothing_and_changes_nothing(self, tmp_path: Path) -> None:
        job, scorer = make_job(tmp_path / "store", "evolution", 2), NotedScorer(tmp_path / "noted", 0.1)
        progress = score_candidates(job, scorer)
        found = list(next(progress))
        next(workers_of(psutil.Process())).kill()
        found += [candidate for batch in progress for candidate in batch]
        assert found == in_process(job)
        assert set(scorer.noted()) == {candidate.student.key for candidate in found}
        assert len(batches_of(tmp_path / "store")) == NUM_BATCHES

    def test_what_a_scorer_raises_ends_the_search_with_its_reason(self, tmp_path: Path) -> None:
        job = make_job(tmp_path / "store", "random", 1)
        with pytest.raises(ClusterError, match=r"within lanes\.max_failures retries, got .*cannot score"):
            on_workers(job, BrokenScorer())
        assert batches_of(tmp_path / "store") == []

    def test_a_killed_driver_is_continued_and_scores_nothing_twice(self, tmp_path: Path) -> None:
        store, noted = tmp_path / "store", NotedScorer(tmp_path / "noted")
        command = [sys.executable, "-W", "ignore", "-m", "tests.cluster.score_site", str(store), str(noted.folder)]
        with subprocess.Popen(command, cwd=ROOT) as process:
            until = time.monotonic() + 120
            while not batches_of(store) and process.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            process.kill()
        kept = len(batches_of(store))
        assert 0 < kept < NUM_BATCHES
        job, again = make_job(store, "evolution", 2), NotedScorer(tmp_path / "again")
        found = on_workers(job, again)
        assert found == in_process(job)
        assert sorted(again.noted()) == sorted(each.student.key for each in found[40 * kept :])


def workers_of(process: psutil.Process) -> Iterator[psutil.Process]:
    """Ray's processes below this one that score, or wait for something to score."""
    for child in process.children(recursive=True):
        with suppress(psutil.Error):  # it ended meanwhile
            if any(name in "".join(child.cmdline()) for name in ("_ChunkActor", "Trainable")):
                yield child


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_closing_a_search_ends_its_workers(tmp_path: Path) -> None:
    with session(num_cpus=2):
        progress = score_candidates(make_job(tmp_path / "store", "random", 1), NotedScorer(tmp_path / "noted", 0.1))
        next(progress)
        assert any(workers_of(psutil.Process()))
        progress.close()
        until = time.monotonic() + 60
        while any(workers_of(psutil.Process())) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(workers_of(psutil.Process()))
        assert 0 < len(batches_of(tmp_path / "store")) < NUM_BATCHES


class TestChunkSearcher:
    """The searcher, driven by hand."""

    def parts(self, strategy: StrategyName, tmp_path: Path) -> tuple[ScoreJob, list[Batch], ChunkSearcher]:
        job, written = make_job(tmp_path, strategy, 1), list[Batch]()
        search = job.search
        rounds = Rounds(job.strategy(), search.candidates, search.batch, search.chunk, job.ledger.get)
        return job, written, ChunkSearcher(rounds, written.append, max_failures=1)

    def test_a_strategy_that_learns_waits_for_its_scores_and_another_runs_ahead(self, tmp_path: Path) -> None:
        for strategy, num_given in (("evolution", 3), ("random", 11)):
            *_, searcher = self.parts(strategy, tmp_path)  # type: ignore[arg-type]
            given = [searcher.suggest(f"{index}") for index in range(12)]
            assert [suggestion is not None for suggestion in given] == [index < num_given for index in range(12)]

    def test_results_in_any_order_are_told_in_the_order_asked(self, tmp_path: Path) -> None:
        job, written, searcher = self.parts("random", tmp_path)
        trials = list[str]()
        while searcher.suggest(f"{len(trials)}") is not None:
            trials.append(f"{len(trials)}")
        for trial_id in reversed(trials):
            searcher.on_trial_complete(trial_id, {"scores": self.scores(searcher, trial_id)})
        assert searcher.suggest("end") == Searcher.FINISHED
        assert [batch.number for batch in written] == [0, 1, 2, 3]
        assert [student for batch in written for student in batch.students] == asked_blindly(job)

    def test_a_chunk_that_fails_is_given_out_again_first_and_given_up_in_the_end(self, tmp_path: Path) -> None:
        *_, searcher = self.parts("evolution", tmp_path)
        first = searcher.suggest("a")
        searcher.on_trial_complete("a", error=True)
        assert searcher.suggest("b") == first
        searcher.on_trial_complete("b", error=True)
        assert searcher.is_given_up
        assert searcher.suggest("c") == Searcher.FINISHED

    def test_batches_of_the_ledger_are_not_given_out(self, tmp_path: Path) -> None:
        job, _, searcher = self.parts("evolution", tmp_path)
        candidates = in_process(job)
        for number in (0, 1):
            batch = candidates[40 * number : 40 * (number + 1)]
            job.ledger.put(number, [each.student for each in batch], [each.score for each in batch])
        given = searcher.suggest("a")
        expected = sorted(each.student.widths for each in candidates[80:120])[:13]
        assert given == {"chunk": searcher_text(expected)}

    def scores(self, searcher: ChunkSearcher, trial_id: str) -> list[float]:
        return [float(sum(map(sum, student.widths))) for student in searcher._live[trial_id]]


def asked_blindly(job: ScoreJob) -> list[Student]:
    """What the job's strategy asks for when it is told nothing."""
    strategy = job.strategy()
    return [student for num in (40, 40, 40, 30) for student in strategy.ask(num)]


def searcher_text(widths: list[tuple[tuple[int, ...], ...]]) -> str:
    return json.dumps([(each, "small_resnet") for each in widths])


def test_a_longer_search_shares_the_ledger_and_another_one_does_not(tmp_path: Path) -> None:
    short, long = (make_job(tmp_path, "random", workers, num) for workers, num in ((1, 100), (2, 150)))
    other = make_job(tmp_path, "evolution", 1)
    assert short.ledger == long.ledger != other.ledger
    assert SPACE.size > 150
    assert isinstance(short.ledger, ScoreLedger)
