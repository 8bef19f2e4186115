import math

from hypothesis import given
from hypothesis import strategies as st

from dass.records import Student
from dass.search.ranking import Candidate, pareto, rank

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
        beaten = [candidate(0.5, macs=1), candidate(3.0, macs=3), candidate(2.0, macs=2), candidate(math.nan, macs=1)]
        assert pareto(beaten + good) == good

    @given(candidates)
    def test_it_is_what_the_definition_says(self, given_in: list[Candidate]) -> None:
        def beats(one: Candidate, other: Candidate) -> bool:
            at_least = one.macs <= other.macs and one.score >= other.score
            return at_least and (one.macs < other.macs or one.score > other.score)

        scored = [each for each in given_in if not math.isnan(each.score)]
        expected = {(c.macs, c.score) for c in scored if not any(beats(other, c) for other in scored)}
        assert [(c.macs, c.score) for c in pareto(given_in)] == sorted(expected)
