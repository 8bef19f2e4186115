"""The benchmark of cohorts: what it claims to have executed, and that its sides and its document are complete."""

import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dass.threads import one_thread
from tests.benchmarks import cohort
from tests.benchmarks.cohort import average_students, executed_flops, main, make_site, train_cohort, utilisation

TINY = ["--cohorts", "1", "2", "--images", "10", "--batch-size", "5", "--resolution", "8", "--rounds", "1"]


NVIDIA_SMI = """#!/bin/sh
echo "$@" > {folder}/asked
printf '37\\n[N/A]\\n\\n41\\n'
touch {folder}/said
exec sleep 60
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


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


def test_the_document_has_a_figure_for_every_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    observed = iter([[20.0, 40.0]])  # of one side in one round, and no other
    monkeypatch.setattr(cohort, "utilisation", lambda _: nullcontext(next(observed)))
    main([*TINY, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["medians"].keys() == {"published", "strong", "cohort 1", "next 1", "cohort 2", "next 2"}
    rates = document["medians"]
    assert document["ratio"] == pytest.approx(rates["cohort 2"] / rates["published"])
    assert document["ratio_strong"] == pytest.approx(rates["cohort 2"] / rates["strong"])
    assert document["sizes"]["images"] == 10
    assert document["peak_mb"] > 0
    assert document["limit_share"] > 0
    assert document["gpu_utilisation_pct"] == 30.0
    assert "GPU utilisation 30 % in cohort 2" in list(cohort.lines(document))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A GPU of which only the name is there."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="12-34"))
    return torch.device("cuda")


def test_utilisation_is_what_nvidia_smi_says_of_the_device(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidia-smi").write_text(NVIDIA_SMI.format(folder=tmp_path))
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    ends = time.monotonic() + 30
    with utilisation(gpu) as samples:
        while not (tmp_path / "said").exists() and time.monotonic() < ends:
            time.sleep(0.01)
    assert samples == [37.0, 41.0]
    asked = "--id=GPU-12-34 --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop-ms=200"
    assert (tmp_path / "asked").read_text().strip() == asked


def test_utilisation_is_unknown_without_nvidia_smi(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with utilisation(gpu) as samples:
        pass
    assert samples == []


def test_utilisation_is_unknown_without_a_gpu() -> None:
    with utilisation(torch.device("cpu")) as samples:
        pass
    assert samples == []
