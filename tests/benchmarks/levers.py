"""What was weighed to make a step of a cohort faster: each lever alone against the cohort as it ships.

    python -m tests.benchmarks levers [--json] [--students K] [--device cpu|cuda] [--resolution R] [--batch-size B]
        [--steps N] [--rounds R] [--compile]

`base`: optimiser steps of a cohort on one thread, channels-last, float32, with the teacher's logits held. The others
change one thing: `teacher`: its logits computed at every step; `contiguous`: the memory format; `bfloat16` and, on CUDA,
`tf32`: the recipe's precision; `compiled`: torch.compile of each student, once compiled; `threads`: all of torch's in
one cohort, against `processes`: as many cohorts side by side, on one thread each, both as students' steps per second of
the machine. `grouped`: all convolutions of K students as one of K groups, as wide as the widest of
them; its `one by one` is K convolutions after each other; forward and backward pass of one layer of each stage, mean.
`evaluating`: how much longer an epoch takes that evaluates every time instead of every fifth, with valid half as large
as train.

`ratio`: the fastest lever of those that change no label (not bfloat16, not tf32), over base.

Outcome on 2 cores of a Xeon that has AMX, 4 students: processes 1.73, the share of both cores that one-thread lanes have;
threads 0.95, so a second thread in one cohort only costs; teacher 0.85; contiguous 0.74; compiled 0.95 after 29 s of
compiling for each student; grouped 0.48 on a CPU; evaluating every epoch takes 1.16 times as long. So a lane has one
thread, cohorts are channels-last and share kept logits, and nothing is compiled or grouped. bfloat16 is 2.01, and a
choice of the recipe's, since other labels come from it.

Elsewhere: images that are decoded once and stay in memory, augmented by the batch, are what `strong` has over `published` in
`cohort`. Folded batch norm and inference mode are for maps (`embed`), as a student that trains can have neither. Not weighed,
for want of a GPU: CUDA graphs, several streams, and grouped convolutions there.
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.allocator import keep_freed_memory
from dass.kd.cohort import Cohort, evaluate
from dass.kd.logits import TeacherLogits
from dass.networks.small_resnet import STRIDES
from dass.precision import full_float32
from dass.records import Precision
from tests.benchmarks import measure
from tests.benchmarks.cohort import SPACE, Site, executed_flops, make_site

VALID_PER_TRAIN = 0.5
ROUNDING = ("bfloat16", "tf32")  # levers that change labels
_gate: Any = None  # where processes wait for each other


class Steps:
    """Optimiser steps of one cohort on one batch, which can be taken again and again."""

    def __init__(
        self,
        site: Site,
        num: int,
        *,
        memory_format: torch.memory_format = torch.channels_last,
        holds_logits: bool = True,
        is_compiled: bool = False,
        precision: Precision = "float32",
    ) -> None:
        runs = [replace(run, recipe=replace(run.recipe, precision=precision)) for run in site.runs]
        logits = TeacherLogits() if holds_logits else TeacherLogits(max_bytes=0)
        self.cohort = Cohort(runs, site.data, site.teacher, memory_format=memory_format, logits=logits)
        self.num, self.site = num, site
        self.batch = site.data.train_epoch(site.runs[0].recipe, 0, 0).batch(0)
        self.compile_s = 0.0
        if is_compiled:
            for member in self.cohort._members:
                member.network.compile(dynamic=False)
            self.compile_s = measure.seconds(self.one, site.data.device)

    def one(self) -> None:
        """One step of every student."""
        for member in self.cohort._members:
            member.network.train()
        self.cohort._step(*self.batch, 0.001)

    def seconds(self) -> float:
        """Of one student's step, mean over all."""

        def all_of_them() -> None:
            for _ in range(self.num):
                self.one()

        took = measure.seconds(all_of_them, self.site.data.device)
        return took / self.num / len(self.cohort.runs)

    def threaded(self, threads: int) -> float:
        """The same on as many threads."""
        torch.set_num_threads(threads)
        try:
            return self.seconds()
        finally:
            torch.set_num_threads(1)

    def evaluation_s(self) -> float:
        """Of one image and student in evaluation."""
        networks = [member.network.eval() for member in self.cohort._members]
        took = measure.seconds(lambda: evaluate(networks, self.site.data), self.site.data.device)
        return took / self.site.data.num_images("valid") / len(networks)


class Processes:
    """Cohorts in processes of their own, on one thread each, that step at the same time."""

    def __init__(self, options: argparse.Namespace, num: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(num, context, _enter, (context.Barrier(num), options))
        self.num = num
        self.seconds()  # all start, and warm up

    def seconds(self) -> float:
        """Of one student's step, of the machine: the mean over processes, over their number."""
        took = [asked.result() for asked in [self.pool.submit(_side_by_side) for _ in range(self.num)]]
        return sum(took) / self.num**2


_steps: Steps


def _enter(gate: Any, options: argparse.Namespace) -> None:
    global _gate, _steps
    _gate, _steps = gate, Steps(_site(options), options.steps)
    _steps.one()


def _side_by_side() -> float:
    _gate.wait()
    took = _steps.seconds()
    _gate.wait()  # nobody takes a second turn before all had theirs
    return took


def convolve_seconds(width: int, side: int, students: int, options: argparse.Namespace, *, is_grouped: bool) -> float:
    """Forward and backward pass of a 3x3 convolution of each of K students, as wide as it is deep."""
    groups, calls = (students, 1) if is_grouped else (1, students)
    made: dict[str, Any] = {"device": options.device, "requires_grad": True}
    layers = []
    for _ in range(calls):
        images = torch.randn(options.batch_size, groups * width, side, side, **made)
        layers.append((images, torch.randn(groups * width, width, 3, 3, **made)))

    def convolve() -> None:
        for images, weight in layers:
            out = F.conv2d(images.contiguous(memory_format=torch.channels_last), weight, padding=1, groups=groups)
            torch.autograd.grad(out.sum(), (images, weight))

    convolve()
    return measure.seconds(convolve, options.device) / students


def grouped_sides(site: Site, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of a student's layer, one by one and grouped; geometric mean over the first layers of all stages."""
    found: dict[str, list[float]] = {"one by one": [], "grouped": []}
    side = options.resolution
    for stage, stride in enumerate(STRIDES):
        side //= stride
        widths = [run.student.widths[stage][0] for run in site.runs]
        one_by_one = [convolve_seconds(width, side, 1, options, is_grouped=False) for width in widths]
        found["one by one"].append(sum(one_by_one) / len(widths))
        found["grouped"].append(convolve_seconds(max(widths), side, len(widths), options, is_grouped=True))
    return {name: geometric_mean(seconds) for name, seconds in found.items()}


def sides_of(site: Site, options: argparse.Namespace) -> tuple[dict[str, Callable[[], float]], Steps]:
    """What is measured, each in seconds of a student's step, and the cohort as it ships."""
    base = Steps(site, options.steps)
    sides: dict[str, Callable[[], float]] = {
        "base": base.seconds,
        "teacher": Steps(site, options.steps, holds_logits=False).seconds,
        "contiguous": Steps(site, options.steps, memory_format=torch.contiguous_format).seconds,
        "bfloat16": Steps(site, options.steps, precision="bfloat16").seconds,
    }
    cores = measure.machine()["cores"]
    if options.device == "cuda":
        sides["tf32"] = Steps(site, options.steps, precision="tf32").seconds
    elif cores > 1:
        sides["threads"] = partial(base.threaded, cores)
        sides["processes"] = Processes(options, cores).seconds
    return sides, base


def figures(site: Site, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of all sides, and each against base."""
    device = site.data.device
    sides, base = sides_of(site, options)
    compile_s = None
    if options.compile:
        compiled = Steps(site, options.steps, is_compiled=True)
        sides["compiled"], compile_s = compiled.seconds, compiled.compile_s / len(site.runs)
    measure.alternate(sides, 1)  # warms all up
    samples = measure.alternate(sides, options.rounds)
    took = measure.medians(samples)
    rates = {name: 1 / seconds for name, seconds in took.items()}
    epoch_s = took["base"] / options.batch_size  # of one image
    evaluation_s = VALID_PER_TRAIN * base.evaluation_s()
    peak_mb = measure.peak_mb(device)  # before the limit takes memory of its own
    limit = measure.convolution_limit(SPACE.largest, options.resolution, device)
    flops = executed_flops(site, len(site.runs), with_teacher=False, evaluations=0) / len(site.runs)
    layers = grouped_sides(site, options)
    ratios = {name: rate / rates["base"] for name, rate in rates.items()}
    ratios["grouped"] = layers["one by one"] / layers["grouped"]
    return {
        "ratio": max(ratio for name, ratio in ratios.items() if name not in ROUNDING),
        "limit_share": flops / took["base"] / limit,
        "peak_mb": peak_mb,
        "ratios": ratios,
        "medians": rates,
        "units": dict.fromkeys(rates, "students' steps/s"),
        "samples": samples,
        "evaluating": (epoch_s + evaluation_s) / (epoch_s + evaluation_s / 5),
        "compile_s_per_student": compile_s,
        "limit_gflops": limit / 1e9,
    }


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The document for a reader."""
    sizes = document["sizes"]
    yield (
        f"{sizes['students']} students, batches of {sizes['batch_size']} images of {sizes['resolution']} px on "
        f"{sizes['device']}; medians of {sizes['rounds']} rounds of {sizes['steps']} steps"
    )
    yield f"{'':12} {'steps/s':>9} {'/ base':>8}"
    for name, ratio in document["ratios"].items():
        rate = document["medians"].get(name)
        yield f"{name:12} {'' if rate is None else f'{rate:.3f}':>9} {ratio:8.2f}"
    yield f"evaluating every epoch: {document['evaluating']:.2f} times as long as every fifth"
    if document["compile_s_per_student"] is not None:
        yield f"torch.compile: {document['compile_s_per_student']:.0f} s for each student before its first step"
    yield f"base: {document['limit_share']:.0%} of {document['limit_gflops']:.0f} GFLOP/s; peak {document['peak_mb']:.0f} MB"


@full_float32()
def main(argv: Sequence[str]) -> None:
    """Measure and tell."""
    options = _parser().parse_args(argv)
    site = _site(options)
    sizes = {name: value for name, value in vars(options).items() if name != "json"}
    document = measure.document("levers", **figures(site, options), sizes=sizes)
    measure.tell(document, as_json=options.json, lines=lines(document))


def _site(options: argparse.Namespace) -> Site:
    """One batch of images, on one thread, with memory kept as lanes do."""
    keep_freed_memory()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    return make_site(options.students, options.batch_size, options.resolution, options.batch_size, device)


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser("levers", __doc__)
    parser.add_argument("--students", type=int, default=4, help="of the cohort")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="of each sample")
    parser.add_argument("--rounds", type=int, default=3, help="of all sides, one after the other")
    parser.add_argument("--compile", action="store_true", help="weigh torch.compile too; it needs a C++ compiler")
    return parser
