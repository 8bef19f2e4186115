"""The benchmark of the embedder: what it claims to have executed, and that its documents are complete."""

import json
from collections.abc import Sequence

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dass.embed import Embedder, draw_noise
from dass.networks import build
from dass.records import Student
from dass.search.budget import Budget
from dass.search.select import SearchConfig, search
from dass.search.strategies import Strategy, make_strategy
from dass.seeding import generator
from dass.spaces import get_space
from dass.threads import one_thread
from tests.benchmarks import embed
from tests.benchmarks.embed import chunks_of, executed_flops, main

TINY = ["--space", "paper5_w8", "--resolution", "16", "--rounds", "1", "--json"]


class Recorded:
    """Scores at no cost, and keeps what it was given."""

    def __init__(self) -> None:
        self.chunks: list[Sequence[Student]] = []

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        self.chunks.append(students)
        return torch.zeros(len(students))

    def to(self, device: torch.device) -> "Recorded":  # noqa: ARG002
        return self


def test_the_flops_of_two_students_that_share_a_stage_and_a_block() -> None:
    first = Student(((2,), (3, 4), (5,), (6,)))
    second = Student(((2,), (3, 7), (5,), (6,)))
    both = 8 * 8 * (2 * 2 + 2 * 2) + 4 * 4 * (2 * 3 + 3 * 3)
    apart = [4 * 4 * (3 * n + n * n) + 2 * 2 * (n * 5 + 5 * 5) + 1 * 1 * (5 * 6 + 6 * 6) for n in (4, 7)]
    assert executed_flops([first, second], resolution=8, chunk=2) == 2 * 9 * (both + sum(apart))
    assert executed_flops([first, second], resolution=8, chunk=1) == 2 * 9 * (2 * both + sum(apart))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_the_flops_are_those_that_torch_counts(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dass.embed.WIDE", 1e9)  # direct convolutions only
    space = get_space("paper5")
    drawn = space.sample(6, generator("test flops"))
    students = [*drawn, *(space.mutate(student, generator("test mutants"), 0.1) for student in drawn), drawn[0]]
    embedder = Embedder(build(space.largest, 2, generator("test teacher")).state_dict(), space.largest, draw_noise(16))
    with one_thread(), FlopCounterMode(display=False) as counter:
        embedder.maps(students, chunk)
    assert counter.get_total_flops() == executed_flops(students, 16, chunk)


def test_the_chunks_are_those_that_a_search_scores() -> None:
    def proposals() -> Strategy:
        return make_strategy("random", get_space("paper5"), Budget(), 16, 10, 0)

    config, scorer = SearchConfig(candidates=130, batch=60, chunk=25), Recorded()
    for _ in search(proposals(), scorer, config, 16, 10, threads=1):
        pass
    assert list(chunks_of(proposals(), config)) == scorer.chunks


@pytest.mark.parametrize(("images", "name"), [(1, "embed"), (3, "embed-images")])
def test_the_document_of_a_comparison_has_all_figures(
    images: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main([*TINY, "--candidates", "5", "--images", str(images)])
    document = json.loads(capsys.readouterr().out)
    assert (document["name"], document["sizes"]["images"]) == (name, images)
    assert document["medians"].keys() == {"published", "strong", "dass", "dass, bfloat16"}
    assert 0 < document["bfloat16_error"] < 0.05
    assert document["limit_share"] > 0
    assert document["peak_mb"] > 0
    assert document["sizes"]["rounds"] == 1


def test_the_share_of_a_stream_is_that_of_its_most_candidates(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "NUM_OF_A_KIND", 30)
    main([*TINY, "--stream", "--points", "6", "3"])
    document = json.loads(capsys.readouterr().out)
    (most, most_s), (least, _) = document["points"]
    assert (most, least) == (6, 3)
    flops = executed_flops(make_strategy("random", get_space("paper5_w8"), Budget(), 16, 10, 0).ask(6), 16, chunk=6)
    assert document["limit_share"] * document["limit_gflops"] * 1e9 * most_s == pytest.approx(flops)
    assert document["sizes"]["rounds"] == 1
