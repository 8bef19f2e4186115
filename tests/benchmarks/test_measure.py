"""What all benchmarks share."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.benchmarks import measure


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., str]:
    """Runs git in a folder that holds one commit: code.py, and a file of results."""

    def run(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    results = tmp_path / "tests/benchmarks/results"
    results.mkdir(parents=True)
    (results / "old.json").write_text("{}")
    (tmp_path / "code.py").write_text("a = 1\n")
    run("init", "--quiet")
    run("add", ".")
    run("commit", "--quiet", "--message", "first")
    return run


def test_the_commit_is_dirty_when_code_was_changed(git: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 2\n")
    assert measure.commit(tmp_path) == f"{git('rev-parse', '--short', 'HEAD')}-dirty"


def test_the_commit_is_clean_when_only_results_were_changed(git: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "tests/benchmarks/results/old.json").write_text("")
    (tmp_path / "new.txt").write_text("not tracked")
    assert measure.commit(tmp_path) == git("rev-parse", "--short", "HEAD")


def test_there_is_no_commit_without_git(
    git: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure.commit(tmp_path / "tests") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure.commit(tmp_path) is None


def test_a_document_says_what_it_was_measured_on() -> None:
    document = measure.document("some", ratio=2.0)
    assert document["ratio"] == 2.0
    assert document["commit"] == measure.commit()
    assert document["versions"]["torch"] == torch.__version__
    assert document["machine"]["threads"] == torch.get_num_threads()


def test_the_peak_without_a_gpu_is_that_of_the_process() -> None:
    assert measure.peak_mb(torch.device("cpu")) == measure.memory_mb() > 10
