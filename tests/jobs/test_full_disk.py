"""A disk that fills up under the lanes: a small file system of our own, mounted for the test."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.database import RunDatabase
from cluster.objects import FolderStore
from tests.jobs.command import spawn

FAST = ("--recipe", "smoke", "--set", "lanes.max_failures=0")


def mount(folder: Path, options: str) -> None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    mount(tmp_path, "size=3500k")  # room for the images and the teachers, not for the students' checkpoints
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


@pytest.mark.ray
def test_a_disk_that_fills_up_under_a_lane_is_told_and_nothing_that_ended_is_lost(disk: Path) -> None:
    store = disk / "store"
    stopped = spawn("collect", *FAST, "--store", store)
    assert stopped.code == 1
    assert "the disk is full" in stopped.error
    assert "free some space" in stopped.error
    before = {record.run.id: record for record in RunDatabase(FolderStore(store)).scan()}
    assert before
    mount(disk, "remount,size=64m")
    ended = spawn("collect", *FAST, "--store", store, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["pending"] == 0
    after = {record.run.id: record for record in RunDatabase(FolderStore(store)).scan()}
    assert len(after) == json.loads(ended.out)["planned"]
    assert before.items() <= after.items()
