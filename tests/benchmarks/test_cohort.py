"""The benchmark of cohorts: what it claims to have executed, and that its sides and its document are complete."""

import json
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.cohort import average_students, executed_flops, main, make_site, train_cohort

TINY = ["--cohorts", "1", "2", "--images", "10", "--batch-size", "5", "--resolution", "8", "--rounds", "1"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_flops_are_those_that_torch_counts(*, is_first: bool) -> None:
    site = make_site(2, num_images=11, resolution=8, batch_size=5, device=torch.device("cpu"))
    if not is_first:
        train_cohort(site, 2, is_first=True)
    with FlopCounterMode(display=False) as counter:
        train_cohort(site, 2, is_first=is_first)
    assert counter.get_total_flops() == executed_flops(site, 2, with_teacher=is_first)


def test_students_of_average_cost_are_all_different() -> None:
    assert len(set(average_students(16, 64))) == 16


def test_the_document_has_a_figure_for_every_side(capsys: pytest.CaptureFixture[str]) -> None:
    main([*TINY, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["medians"].keys() == {"published", "strong", "cohort 1", "next 1", "cohort 2", "next 2"}
    rates = document["medians"]
    assert document["ratio"] == pytest.approx(rates["cohort 2"] / rates["published"])
    assert document["ratio_strong"] == pytest.approx(rates["cohort 2"] / rates["strong"])
    assert document["sizes"]["images"] == 10
    assert document["peak_mb"] > 0
    assert document["limit_share"] > 0
