import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dass.records import Student
from dass.search import ranking
from dass.search.ranking import Candidate, Ranking, pareto, rank

scores = st.one_of(st.integers(0, 5).map(float), st.just(math.nan))
candidates = st.lists(
    st.builds(
        Candidate,
        student=st.integers(1, 9).map(lambda width: Student(((width,),))),
        score=scores,
        macs=st.integers(1, 5),
        params=st.integers(1, 5),
    )
)


def candidate(score: float, macs: int = 1, params: int = 1, width: int = 1) -> Candidate:
    return Candidate(Student(((width,),)), score, macs, params)


class TestRank:
    def test_best_score_first_then_macs_then_params_then_the_key_as_text(self) -> None:
        ordered = [
            candidate(2.0, macs=9, params=9),
            candidate(1.0, macs=1, params=9),
            candidate(1.0, macs=2, params=1, width=16),
            candidate(1.0, macs=2, params=1, width=8),
            candidate(1.0, macs=2, params=2),
            candidate(-math.inf, macs=1, width=1),
        ]
        assert rank(reversed(ordered)) == ordered

    def test_nan_comes_last_however_cheap(self) -> None:
        ranked = rank([candidate(math.nan, macs=1), candidate(0.0, macs=9), candidate(5.0, macs=5)])
        assert [each.macs for each in ranked] == [5, 9, 1]

    @given(candidates)
    def test_the_order_given_in_does_not_matter(self, given_in: list[Candidate]) -> None:
        keys = [(c.student, str(c.score), c.macs, c.params) for c in rank(given_in)]
        turned = [(c.student, str(c.score), c.macs, c.params) for c in rank(given_in[::-1])]
        assert keys == turned


class TestPareto:
    def test_it_keeps_what_nothing_cheaper_reaches(self) -> None:
        good = [candidate(1.0, macs=1), candidate(3.0, macs=2), candidate(4.0, macs=5)]
        beaten = [candidate(0.5, macs=1), candidate(3.0, macs=3), candidate(2.0, macs=2)]
        without = [candidate(math.nan, macs=1), candidate(-math.inf, macs=0)]
        assert pareto(beaten + without + good) == good

    @given(candidates)
    def test_it_is_what_the_definition_says(self, given_in: list[Candidate]) -> None:
        def beats(one: Candidate, other: Candidate) -> bool:
            at_least = one.macs <= other.macs and one.score >= other.score
            return at_least and (one.macs < other.macs or one.score > other.score)

        scored = [each for each in given_in if not math.isnan(each.score)]
        expected = {(c.macs, c.score) for c in scored if not any(beats(other, c) for other in scored)}
        assert [(c.macs, c.score) for c in pareto(given_in)] == sorted(expected)


class TestRanking:
    @pytest.fixture
    @staticmethod
    def many(monkeypatch: pytest.MonkeyPatch) -> list[Candidate]:
        """200 candidates, where 40 are kept in full and 20 of more."""
        for name, num in (("KEEP_ALL", 40), ("KEEP_BEST", 20), ("SAMPLE", 10)):
            monkeypatch.setattr(ranking, name, num)
        draws = torch.randint(1000, (200, 2), generator=torch.Generator().manual_seed(0)).tolist()
        return [Candidate(Student(((index,),)), score / 10, macs, 1) for index, (score, macs) in enumerate(draws)]

    def test_up_to_the_limit_nothing_is_left_out(self, many: list[Candidate]) -> None:
        kept = Ranking()
        kept.add(many[:40])
        assert kept.is_complete
        assert kept.ranked == rank(many[:40])

    @pytest.mark.parametrize("batch", [1, 7, 200])
    def test_beyond_it_the_best_of_all_and_the_whole_frontier_stay(self, batch: int, many: list[Candidate]) -> None:
        kept = Ranking()
        for start in range(0, 200, batch):
            kept.add(many[start : start + batch])
        assert (kept.scored, kept.is_complete) == (200, False)
        best = rank(many)[:20]
        assert kept.ranked == rank({*best, *pareto(many)})
        assert len(kept.ranked) > 20

    def test_the_sample_is_the_same_in_any_order_and_not_of_the_best(self, many: list[Candidate]) -> None:
        forwards, backwards = Ranking(), Ranking()
        for index in range(200):
            forwards.add(many[index : index + 1])
            backwards.add(many[199 - index : 200 - index])
        assert forwards.sample == backwards.sample
        assert len(set(forwards.sample)) == 10
        assert set(forwards.sample) - set(forwards.ranked)
