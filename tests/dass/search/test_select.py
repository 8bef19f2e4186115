from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dass.cost import count_macs, count_params
from dass.embed import Embedder, draw_noise
from dass.errors import ConfigError
from dass.meta.episodes import Support
from dass.networks import build
from dass.predictor import Adapted, MetaPredictor, Predictor, PredictorSpec
from dass.records import Student
from dass.search.budget import Budget
from dass.search.ranking import Candidate
from dass.search.select import PredictorScorer, Scorer, SearchConfig, search
from dass.search.strategies import StrategyName, make_strategy
from dass.spaces import get_space
from dass.threads import one_thread

SPACE = get_space("smoke")
RESOLUTION, NUM_CLASSES = 16, 3
NO_BUDGET = Budget()


@dataclass
class SizeScorer:
    """Values students by their parameters, and notes how many it was asked for at once."""

    calls: list[int] = field(default_factory=list)

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        self.calls.append(len(students))
        return torch.tensor([float(count_params(student, NUM_CLASSES)) for student in students])

    def to(self, device: torch.device) -> "SizeScorer":  # noqa: ARG002
        return self


def run_search(scorer: Scorer, config: SearchConfig, budget: Budget = NO_BUDGET) -> list[list[Candidate]]:
    strategy = make_strategy(config.strategy, SPACE, budget, RESOLUTION, NUM_CLASSES, config.seed)
    return list(search(strategy, scorer, config, RESOLUTION, NUM_CLASSES, threads=1))


class TestSearch:
    @pytest.mark.parametrize("strategy", ["random", "evolution"])
    def test_it_yields_the_batches_that_it_scores_until_it_has_enough(self, strategy: StrategyName) -> None:
        scorer = SizeScorer()
        batches = run_search(scorer, SearchConfig(candidates=100, batch=40, strategy=strategy))
        assert [len(batch) for batch in batches] == scorer.calls == [40, 40, 20]
        assert len({candidate.student for batch in batches for candidate in batch}) == 100

    def test_candidates_carry_their_score_and_their_cost(self) -> None:
        for candidate in run_search(SizeScorer(), SearchConfig(candidates=20))[0]:
            assert candidate.params == candidate.score == count_params(candidate.student, NUM_CLASSES)
            assert candidate.macs == count_macs(candidate.student, RESOLUTION, NUM_CLASSES)

    def test_it_ends_when_no_student_is_left(self) -> None:
        batches = run_search(SizeScorer(), SearchConfig(candidates=10_000, batch=200))
        assert sum(map(len, batches)) == SPACE.size == 256

    def test_it_keeps_to_the_budget(self) -> None:
        most = (
            count_macs(SPACE.smallest, RESOLUTION, NUM_CLASSES) + count_macs(SPACE.largest, RESOLUTION, NUM_CLASSES)
        ) // 2
        batches = run_search(SizeScorer(), SearchConfig(candidates=10_000), Budget(max_macs=most))
        assert max(candidate.macs for batch in batches for candidate in batch) <= most
        assert sum(map(len, batches)) < SPACE.size

    def test_the_strategy_learns_the_scores(self) -> None:
        config = SearchConfig(candidates=150, batch=50, strategy="evolution", seed=1)
        first, *_, last = run_search(SizeScorer(), config)
        assert sum(each.score for each in last) / len(last) > sum(each.score for each in first) / len(first)

    def test_it_runs_ahead_by_no_more_than_its_threads(self) -> None:
        scorer, config = SizeScorer(), SearchConfig(candidates=100, batch=10)
        strategy = make_strategy("random", SPACE, NO_BUDGET, RESOLUTION, NUM_CLASSES, 0)
        progress = search(strategy, scorer, config, RESOLUTION, NUM_CLASSES, threads=2)
        next(progress)
        assert 1 <= len(scorer.calls) <= 4
        assert isinstance(progress, Generator)
        progress.close()
        assert len(scorer.calls) <= 4

    def test_a_scorers_error_is_the_searchs_and_torch_keeps_its_threads(self) -> None:
        class Broken(SizeScorer):
            def score(self, students: Sequence[Student]) -> torch.Tensor:
                raise RuntimeError(f"cannot score {len(students)}")

        before = torch.get_num_threads()
        with pytest.raises(RuntimeError, match="cannot score 20"):
            run_search(Broken(), SearchConfig(candidates=20))
        assert torch.get_num_threads() == before


class TestConfig:
    @pytest.mark.parametrize("name", ["candidates", "batch", "chunk"])
    def test_numbers_below_one_are_refused(self, name: str) -> None:
        changes: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match=rf"search\.{name} must be >= 1, got 0"):
            SearchConfig(**changes)

    @pytest.mark.parametrize("name", ["max_macs", "max_params"])
    def test_a_limit_below_one_is_refused_under_the_name_it_was_set_by(self, name: str) -> None:
        changes: dict[str, Any] = {name: 0}
        with pytest.raises(ConfigError, match=rf"search\.{name} must be >= 1, got 0"):
            SearchConfig(**changes)

    def test_two_limits_on_macs_are_refused_with_the_way_to_drop_either(self) -> None:
        rule = r"only one of search\.max_macs and search\.max_macs_ratio may be set, got 10 and 0\.5"
        with pytest.raises(ConfigError, match=rf"{rule}; .*search\.max_macs_ratio=none"):
            SearchConfig(max_macs=10, max_macs_ratio=0.5)

    @pytest.mark.parametrize("ratio", [0.0, -0.5, 1.01, float("nan")])
    def test_a_ratio_that_is_no_share_is_refused(self, ratio: float) -> None:
        with pytest.raises(ConfigError, match=r"search\.max_macs_ratio must be in \(0, 1\], got"):
            SearchConfig(max_macs_ratio=ratio)

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            (SearchConfig(), Budget()),
            (SearchConfig(max_macs=7, max_params=9), Budget(7, 9)),
            (SearchConfig(max_macs_ratio=0.5), Budget(500)),
            (SearchConfig(max_macs_ratio=1.0, max_params=9), Budget(1001, 9)),
        ],
    )
    def test_the_budget_is_in_absolute_numbers(self, config: SearchConfig, expected: Budget) -> None:
        assert config.budget(1001) == expected


class TestPredictorScorer:
    @pytest.fixture(scope="class")
    @staticmethod
    def parts() -> tuple[Adapted, Embedder]:
        rng = torch.Generator().manual_seed(0)
        noise = draw_noise(RESOLUTION)
        spec = PredictorSpec(
            space=SPACE.name,
            resolution=RESOLUTION,
            num_channels=SPACE.num_channels,
            arch_dim=SPACE.encoding_dim,
            noise_sha="n",
        )
        model = Predictor(spec, seed=0)
        rates = {name: torch.full_like(value, 0.005) for name, value in model.named_parameters()}
        embedder = Embedder(build(SPACE.largest, NUM_CLASSES, rng).state_dict(), SPACE.largest, noise)
        teacher_map = embedder.maps([SPACE.largest])[0]
        return MetaPredictor(model, rates).adapt(Support(SPACE.encode(SPACE.largest), teacher_map, 80.0)), embedder

    def test_scores_are_those_of_each_student_alone_in_the_order_given(self, parts: tuple[Adapted, Embedder]) -> None:
        adapted, embedder = parts
        students = SPACE.sample(256, torch.Generator().manual_seed(3))
        students += students[:70]  # more than one chunk, and some students twice
        scores = PredictorScorer(adapted, embedder, SPACE).score(students)
        alone = torch.cat([adapted.score(embedder.maps([s]), SPACE.encode(s)[None]) for s in students])
        assert (scores.dtype, scores.shape) == (torch.float32, (326,))
        torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-4)
        assert len(set(scores.round(decimals=3).tolist())) > 50

    def test_it_ranks_the_candidates_of_a_search(self, parts: tuple[Adapted, Embedder]) -> None:
        scorer = PredictorScorer(*parts, SPACE)
        (batch,) = run_search(scorer, SearchConfig(candidates=30))
        with one_thread():
            assert [each.score for each in batch] == scorer.score([each.student for each in batch]).tolist()

    @pytest.mark.parametrize("strategy", ["random", "evolution"])
    def test_scores_are_the_same_bits_with_any_number_of_threads(
        self, strategy: StrategyName, parts: tuple[Adapted, Embedder]
    ) -> None:
        scorer = PredictorScorer(*parts, SPACE)
        config = SearchConfig(candidates=200, batch=60, chunk=8, strategy=strategy)
        proposals = (make_strategy(strategy, SPACE, NO_BUDGET, RESOLUTION, NUM_CLASSES, 0) for _ in range(3))
        one, two, four = (
            list(search(each, scorer, config, RESOLUTION, NUM_CLASSES, threads=threads))
            for each, threads in zip(proposals, (1, 2, 4), strict=True)
        )
        assert one == two == four

    def test_a_scorer_on_another_device_leaves_the_first_one_as_it_was(self, parts: tuple[Adapted, Embedder]) -> None:
        scorer, students = PredictorScorer(*parts, SPACE), SPACE.sample(10, torch.Generator().manual_seed(3))
        before = scorer.score(students)
        scorer.to(torch.device("meta"))
        assert torch.equal(scorer.score(students), before)
        assert torch.equal(scorer.to(torch.device("cpu")).score(students), before)
