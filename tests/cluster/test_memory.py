import math
import os
from pathlib import Path

import pytest
import torch

from cluster.memory import MemoryMeter, free_bytes, share_of
from cluster.settings import LaneConfig

CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_of_a_cpu_is_that_since_the_meter_was_made() -> None:
    held = torch.ones(400 * MIB, dtype=torch.uint8)
    before = MemoryMeter(CPU, 1.0).read().peak_bytes
    del held
    meter = MemoryMeter(CPU, 1.0)
    after = meter.read().peak_bytes
    assert before - after > 350 * MIB
    torch.ones(200 * MIB, dtype=torch.uint8)  # freed at once
    assert 150 * MIB < meter.read().peak_bytes - after < 250 * MIB


def test_the_room_of_a_cpu_is_what_is_held_and_a_share_of_what_is_free() -> None:
    whole, half = MemoryMeter(CPU, 1.0).read(), MemoryMeter(CPU, 0.5).read()
    free = free_bytes()
    assert whole.fixed_bytes == 0
    assert whole.room_bytes - half.room_bytes == pytest.approx(free / 2, rel=0.2)
    assert whole.room_bytes > free * 0.8


def machine(tmp_path: Path, files: dict[str, str]) -> tuple[Path, Path]:
    """Folders in the place of /proc and /sys/fs/cgroup."""
    for name, text in {
        "proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   500 kB\nHugePages_Total:  0\n",
        **files,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "proc", tmp_path / "cgroup"


def test_without_a_container_the_machine_says_what_is_free(tmp_path: Path) -> None:
    assert free_bytes(*machine(tmp_path, {})) == 500 * 1024
    assert free_bytes(tmp_path / "no", tmp_path / "where") == math.inf


@pytest.mark.parametrize(
    ("limit", "use", "stat", "line"),
    [
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_a_containers_limit_counts_where_it_is_tighter(
    limit: str, use: str, stat: str, line: str, tmp_path: Path
) -> None:
    files = {f"cgroup/{use}": "90000\n", f"cgroup/{stat}": f"anon 5\n{line} 10000\n"}
    for text, free in (("100000", 20_000), ("70000", 0), (str(2**63 - 4096), 500 * 1024)):
        assert free_bytes(*machine(tmp_path, {**files, f"cgroup/{limit}": f"{text}\n"})) == free
    assert free_bytes(*machine(tmp_path, {**files, f"cgroup/{limit}": "max\n"})) == 500 * 1024


def test_lanes_share_the_memory_of_their_device() -> None:
    cores = os.cpu_count() or 1
    assert share_of(LaneConfig(num=1)) == 1.0
    assert share_of(LaneConfig(num=10**6)) == 1 / cores  # the others train elsewhere
    assert share_of(LaneConfig(num=3, cpus=cores)) == 1.0
    assert share_of(LaneConfig(num=3, gpus=0.25)) == 0.25
    assert share_of(LaneConfig(num=3, gpus=1.0)) == 1.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_of_a_gpu_is_told_apart_from_what_was_there_before() -> None:
    device = torch.device("cuda")
    held = torch.ones(100 * MIB, dtype=torch.uint8, device=device)
    torch.ones(300 * MIB, dtype=torch.uint8, device=device)
    meter = MemoryMeter(device, 0.5)
    torch.ones(50 * MIB, dtype=torch.uint8, device=device)
    use = meter.read()
    assert use.peak_bytes - use.fixed_bytes == 50 * MIB
    assert use.fixed_bytes >= held.nbytes
    assert use.peak_bytes < use.room_bytes <= torch.cuda.get_device_properties(device).total_memory / 2
