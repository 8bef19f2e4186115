"""A small search and its scorer, for the tests and for a process that they kill."""

import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cluster.runtime import session
from cluster.score import ScoreJob, score_candidates
from cluster.settings import LaneConfig
from dass.embed import Embedder, draw_noise
from dass.meta.episodes import Support
from dass.networks import build
from dass.predictor import MetaPredictor, Predictor, PredictorSpec
from dass.records import Student
from dass.search.budget import Budget
from dass.search.ranking import Candidate
from dass.search.select import PredictorScorer, Scorer, SearchConfig, search
from dass.search.strategies import StrategyName
from dass.spaces import get_space
from dass.threads import one_thread

SPACE = get_space("smoke")
RESOLUTION, NUM_CLASSES = 16, 3


def make_scorer() -> PredictorScorer:
    """An untrained predictor adapted to an untrained teacher."""
    with one_thread():
        state = build(SPACE.largest, NUM_CLASSES, torch.Generator().manual_seed(0)).state_dict()
        embedder = Embedder(state, SPACE.largest, draw_noise(RESOLUTION))
        place = {"space": SPACE.name, "resolution": RESOLUTION, "noise_sha": "n"}
        spec = PredictorSpec(**place, num_channels=SPACE.num_channels, arch_dim=SPACE.encoding_dim, map_norm="layer")  # type: ignore[arg-type]
        model = Predictor(spec, seed=0)
        rates = {name: torch.full_like(value, 0.005) for name, value in model.named_parameters()}
        teacher_map = embedder.maps([SPACE.largest])[0]
        adapted = MetaPredictor(model, rates).adapt(Support(SPACE.encode(SPACE.largest), teacher_map, 80.0))
        return PredictorScorer(adapted, embedder, SPACE)


@dataclass(frozen=True)
class NotedScorer:
    """A scorer that takes its time and leaves a file with the students of each call."""

    folder: Path
    seconds: float = 0.0
    scorer: Scorer = field(default_factory=make_scorer)

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        time.sleep(self.seconds)
        scores = self.scorer.score(students)
        self.folder.mkdir(exist_ok=True)
        (self.folder / uuid.uuid4().hex).write_text("\n".join(student.key for student in students))
        return scores

    def to(self, device: torch.device) -> "NotedScorer":
        return NotedScorer(self.folder, self.seconds, self.scorer.to(device))

    def noted(self) -> list[str]:
        """The keys of the students that were scored, once for each time."""
        return [key for file in self.folder.iterdir() for key in file.read_text().split()]


def make_job(store: Path, strategy: StrategyName, workers: int, candidates: int = 150) -> ScoreJob:
    config = SearchConfig(candidates=candidates, batch=40, chunk=16, strategy=strategy, seed=3)
    place = (SPACE.name, Budget(), RESOLUTION, NUM_CLASSES)
    return ScoreJob(str(store), "scorer", *place, config, LaneConfig(max_failures=1), workers)


def in_process(job: ScoreJob, threads: int = 1) -> list[Candidate]:
    found = search(job.strategy(), make_scorer(), job.search, job.resolution, job.num_classes, threads=threads)
    return [candidate for batch in found for candidate in batch]


def main(store: str, folder: str) -> None:
    """A slow search by evolution, until it is killed."""
    with session(num_cpus=2):
        for _ in score_candidates(make_job(Path(store), "evolution", 2), NotedScorer(Path(folder), 0.4)):
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
