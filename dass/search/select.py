"""The search itself: a strategy proposes students in the budget, a scorer values them, the best come first."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from dass.cost import count_macs, count_params
from dass.embed import Embedder
from dass.errors import ConfigError
from dass.meta.train import Adapted
from dass.records import Student
from dass.search.budget import Budget
from dass.search.ranking import Candidate
from dass.search.strategies import Strategy, StrategyName
from dass.spaces.space import Sampler, SearchSpace


@dataclass(frozen=True)
class SearchConfig:
    """How candidates are proposed and what they may cost."""

    candidates: int = field(default=3000, metadata={"help": "students to score"})
    strategy: StrategyName = field(default="random", metadata={"help": "who proposes students"})
    sampler: Sampler = field(default="uniform", metadata={"help": "how random students are drawn"})
    seed: int = field(default=0, metadata={"help": "seed of the strategy"})
    max_macs: int | None = field(default=None, metadata={"help": "budget in multiply-adds per image"})
    max_macs_ratio: float | None = field(default=None, metadata={"help": "budget as a share of the teacher's MACs"})
    max_params: int | None = field(default=None, metadata={"help": "budget in trainable parameters"})
    batch: int = field(default=500, metadata={"help": "students asked of the strategy at once"})

    def __post_init__(self) -> None:
        for name in ("candidates", "batch", "max_macs", "max_params"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"search.{name} must be >= 1, got {value}; set search.{name}")
        if self.max_macs is not None and self.max_macs_ratio is not None:
            raise ConfigError(
                "only one of search.max_macs and search.max_macs_ratio may be set, got "
                f"{self.max_macs} and {self.max_macs_ratio}; drop one with search.max_macs_ratio=none or search.max_macs=none"
            )
        if self.max_macs_ratio is not None and not 0 < self.max_macs_ratio <= 1:
            raise ConfigError(
                f"search.max_macs_ratio must be in (0, 1], got {self.max_macs_ratio}; set a share of the teacher"
            )

    def budget(self, teacher_macs: int) -> Budget:
        """The budget in absolute numbers."""
        ratio = self.max_macs_ratio
        return Budget(self.max_macs if ratio is None else int(ratio * teacher_macs), self.max_params)


class Scorer(Protocol):
    """Ranks students for one task: higher is better. What the value means is the scorer's own."""

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,) in the order of `students`."""


class PredictorScorer:
    """The adapted DaSS predictor as a scorer: predicted accuracy after distillation, in percent."""

    def __init__(self, adapted: Adapted, embedder: Embedder, space: SearchSpace) -> None:
        self._adapted = adapted
        self._embedder = embedder
        self._space = space

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): predicted accuracy in percent."""
        scores = torch.empty(len(students))
        arch = self._space.encode_many(students)
        for indices, maps in self._embedder.stream(students):
            scores[indices] = self._adapted.score(maps, arch[indices].to(maps.device)).cpu()
        return scores


def search(
    strategy: Strategy, scorer: Scorer, config: SearchConfig, resolution: int, num_classes: int
) -> Iterator[list[Candidate]]:
    """Yields the candidates of each batch as they are scored, until `config.candidates` are, or none are left."""
    remaining = config.candidates
    while remaining > 0 and (students := strategy.ask(min(config.batch, remaining))):
        scores = scorer.score(students).tolist()
        strategy.tell(students, scores)
        yield [
            Candidate(student, score, count_macs(student, resolution, num_classes), count_params(student, num_classes))
            for student, score in zip(students, scores, strict=True)
        ]
        remaining -= len(students)
