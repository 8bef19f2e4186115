"""What all benchmarks share: sides that alternate, the machine's convolution rate, memory, and the document of figures.

Sides are measured in turn, A B A B ..., so that a machine whose speed drifts drifts for all of them; the median counts.
"""

import argparse
import gc
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.cost import KERNEL_AREA
from dass.networks.small_resnet import STRIDES
from dass.precision import rounding
from dass.records import Precision, Student

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = ("dass", "torch", "ray", "numpy", "pyarrow")
RATE_BATCH, GPU_RATE_BATCH = 32, 512  # images of a convolution whose rate is taken as the machine's limit
GPU_RATE_CALLS = 20  # between two waits for a GPU, which would otherwise stand still while each call is launched
RATE_S = 0.2  # for each shape


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    commit()  # asked now: files may change while a benchmark runs
    made = argparse.ArgumentParser(prog=f"python -m tests.benchmarks {name}", description=(doc or "").splitlines()[0])
    made.add_argument("--json", action="store_true", help="one JSON document")
    return made


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each side returned, round by round; within a round the sides come one after the other."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            gc.collect()
            values[name].append(side())
    return values


def seconds(call: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """How long a call takes, what it left to do on the device included."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def synchronise(device: torch.device | str) -> None:
    """Wait for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each side."""
    return {name: statistics.median(each) for name, each in values.items()}


def convolution_limit(
    student: Student, resolution: int, device: torch.device | str = "cpu", precision: Precision = "float32"
) -> float:
    """FLOP/s: the best rate of a plain 3x3 convolution with as many channels in as out, among those of `student`.

    On all threads of torch, channels-last, inference mode; a multiply-add is two FLOPs.
    """
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    num, calls = (GPU_RATE_BATCH, GPU_RATE_CALLS) if torch.device(device).type == "cuda" else (RATE_BATCH, 1)
    best = 0.0
    for stage, width in enumerate(sorted({row[-1] for row in student.widths})):
        side = resolution
        for stride in STRIDES[: stage + 1]:
            side //= stride
        images, weight = (
            torch.randn(*shape, device=device).to(dtype, memory_format=torch.channels_last)
            for shape in ((num, width, side, side), (width, width, 3, 3))
        )
        flops = 2 * KERNEL_AREA * width**2 * side**2 * num * calls

        def convolve(images: torch.Tensor = images, weight: torch.Tensor = weight) -> None:
            for _ in range(calls):
                F.conv2d(images, weight, padding=1)

        with torch.inference_mode(), rounding(precision, torch.device(device)):
            convolve()
            ends = time.perf_counter() + RATE_S
            while time.perf_counter() < ends:
                best = max(best, flops / seconds(convolve, device))
    return best


def peak_mb(device: torch.device | str = "cpu") -> float:
    """The most held so far: by torch's tensors on a GPU, else by this process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return memory_mb()


def memory_mb(name: str = "VmHWM") -> float:
    """What Linux says of this process: VmHWM is the peak of its resident memory, VmRSS what it holds; NaN elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return math.nan
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@contextmanager
def sampled(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls `look` again and again, on a thread beside, during a `with` block."""
    is_over = threading.Event()

    def sample() -> None:
        while not is_over.wait(every_s):
            look()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def document(name: str, **figures: Any) -> dict[str, Any]:
    """The figures of a benchmark with the machine, the versions and the commit that they belong to."""
    return {"name": name, **figures, "machine": machine(), "versions": versions(), "commit": commit()}


def machine(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Processor, cores that this process may use, threads of torch, and the GPU if there is one."""
    found: dict[str, Any] = {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(device if torch.device(device).type == "cuda" else None)
    return found


def versions() -> dict[str, str]:
    """Of Python and of those of our libraries that are installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@cache
def commit(root: Path = ROOT) -> str | None:
    """The short hash of the code, with -dirty where tracked files were changed since; None where git knows of none.

    Results are not code: a document is often written over the one before, which is emptied first.
    """
    if not (root / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(root)]
    changes = ["status", "--porcelain", "--untracked-files=no", "--", ".", ":!tests/benchmarks/results"]
    try:
        head, changed = (
            subprocess.run([*git, *asked], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for asked in (["rev-parse", "--short", "HEAD"], changes)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}-dirty" if changed else head


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def tell(figures: Mapping[str, Any], *, as_json: bool, lines: Iterable[str]) -> None:
    """Print the document, or the lines that say the same to a reader."""
    print(json.dumps(figures, indent=2) if as_json else "\n".join(lines), flush=True)  # noqa: T201 - its purpose
