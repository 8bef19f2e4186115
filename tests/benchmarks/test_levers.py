"""The benchmark of levers: each changes what its name says and nothing else, and the document is complete."""

import json
from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dass.threads import one_thread
from tests.benchmarks.cohort import executed_flops, make_site
from tests.benchmarks.levers import Steps, main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def weights_after_a_step(**settings: object) -> list[torch.Tensor]:
    site = make_site(2, num_images=10, resolution=8, batch_size=10, device=CPU)
    steps = Steps(site, 1, **settings)  # type: ignore[arg-type]
    steps.seconds()
    return [weight.detach().contiguous() for member in steps.cohort._members for weight in member.network.parameters()]


@pytest.mark.parametrize("settings", [{"memory_format": torch.contiguous_format}, {"holds_logits": False}])
def test_what_changes_the_speed_alone_leaves_the_weights_as_they_are(settings: dict[str, object]) -> None:
    for ours, theirs in zip(weights_after_a_step(), weights_after_a_step(**settings), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_flops_of_a_step_are_those_that_torch_counts() -> None:
    site = make_site(2, num_images=10, resolution=8, batch_size=10, device=CPU)
    steps = Steps(site, 1)
    steps.one()  # after which the logits are held
    with FlopCounterMode(display=False) as counter:
        steps.seconds()
    assert counter.get_total_flops() == executed_flops(site, 2, with_teacher=False, evaluations=0)


def test_the_document_has_a_figure_for_every_lever(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--students", "2", "--resolution", "8", "--batch-size", "10", "--steps", "1", "--rounds", "1"]
    main([*sizes, "--json"])
    document = json.loads(capsys.readouterr().out)
    ratios = document["ratios"]
    assert {"base", "teacher", "contiguous", "bfloat16", "grouped"} <= ratios.keys()
    assert ratios["contiguous"] == pytest.approx(document["medians"]["contiguous"] / document["medians"]["base"])
    assert document["ratio"] == max(ratio for name, ratio in ratios.items() if name != "bfloat16")
    assert document["evaluating"] > 1
    assert document["limit_share"] > 0
