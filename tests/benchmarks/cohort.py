"""Distillation: student-epochs per second of cohorts of K students, against one student at a time.

    python -m tests.benchmarks cohort [--json] [--cohorts K ...] [--device cpu|cuda] [--resolution R] [--images N]
        [--rounds R] [--threads T] [--precision float32|tf32|bfloat16]

Students of `paper5` whose MACs are closest to the space's mean; one epoch with the default recipe; valid has a sixteenth
of train's images and is evaluated twice, which is the share that it has in 50 epochs with 11 evaluations of a valid part
half as large as train. *published* and *strong*: see reference.py; they train the first REFERENCES of the students one
after the other, because students of as many MACs take different times. `cohort`: the first cohort of a task, which
computes the teacher's logits. `next`: a later cohort of the same task, which finds them kept. `limit_share`: FLOPs
executed after all sharing, over time, over the machine's best convolution rate in the same run. `gpu_utilisation_pct`:
the time in which the GPU had a kernel to run, as nvidia-smi tells it, while the first cohort of the largest size trains.
"""

import argparse
import math
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from statistics import mean
from typing import Any, get_args

import torch

from dass.allocator import keep_freed_memory
from dass.cost import IMAGE_CHANNELS, KERNEL_AREA, count_macs
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack, Part
from dass.data.splits import whole_task
from dass.kd.cohort import Cohort
from dass.kd.logits import TeacherLogits
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.precision import full_float32
from dass.records import Precision, Recipe, Run, Status, Student
from dass.spaces import get_space
from tests.benchmarks import measure
from tests.benchmarks.reference import EncodedImages, published_distil, strong_distil

SPACE = get_space("paper5")
NUM_CLASSES = 10
NUM_DRAWN = 512  # students, of which those of average cost are taken
TRAIN_PER_VALID = 16
REFERENCES = 8
UTILISATION_MS = 200  # from sample to sample


@dataclass
class Site:
    """A task with its teacher, and all that the sides train on.

    logits: by size of cohort, what its first one left to its next.
    """

    data: ResidentBatches
    teacher: Teacher
    runs: list[Run]
    train: EncodedImages
    valid: EncodedImages
    logits: dict[int, TeacherLogits] = field(default_factory=dict)


def make_site(
    num_runs: int,
    num_images: int,
    resolution: int,
    batch_size: int,
    device: torch.device,
    precision: Precision = "float32",
) -> Site:
    """Smooth random images (so that JPEG has its usual work), a teacher with random weights, and average students."""
    rng = torch.Generator().manual_seed(0)
    num_valid = max(NUM_CLASSES, num_images // TRAIN_PER_VALID)
    num = num_images + num_valid
    coarse = torch.rand(num, 3, 8, 8, generator=rng) * 255
    images = torch.nn.functional.interpolate(coarse, size=(resolution, resolution), mode="bilinear").to(torch.uint8)
    parts = torch.tensor([Part.TRAIN] * num_images + [Part.VALID] * num_valid, dtype=torch.uint8)
    names = tuple(f"class {number}" for number in range(NUM_CLASSES))
    pack = Pack(images, torch.arange(num) % NUM_CLASSES, parts, names, "smooth")
    data = ResidentBatches.of(pack, whole_task(pack, "smooth"), device)
    state = build(SPACE.largest, NUM_CLASSES, rng).state_dict()
    teacher = Teacher("t" * 32, SPACE.largest, state, 50.0)
    recipe = Recipe(epochs=1, batch_size=batch_size, lr=0.001, precision=precision)
    runs = [Run(data.task.id, teacher.id, student, recipe) for student in average_students(num_runs, resolution)]
    return Site(
        data,
        teacher,
        runs,
        EncodedImages.of((images[:num_images], data.parts["train"][1]), recipe),
        EncodedImages.of((images[num_images:], data.parts["valid"][1]), None),
    )


def average_students(num: int, resolution: int) -> list[Student]:
    """Those students of a uniform sample whose MACs are closest to its mean."""
    drawn = list(dict.fromkeys(SPACE.sample(NUM_DRAWN, torch.Generator().manual_seed(0))))
    macs = {student: count_macs(student, resolution, NUM_CLASSES) for student in drawn}
    middle = mean(macs.values())
    return sorted(drawn, key=lambda student: abs(macs[student] - middle))[:num]


def train_cohort(site: Site, size: int, *, is_first: bool) -> None:
    """One cohort to its end."""
    if is_first:
        site.logits[size] = TeacherLogits()
    cohort = Cohort(site.runs[:size], site.data, site.teacher, logits=site.logits[size])
    ended = [ended.result.status for progress in cohort.train() for ended in progress.ended]
    if ended != [Status.FINISHED] * size:
        raise RuntimeError(f"every student must finish, else less was measured than is claimed, got {ended}")


def executed_flops(site: Site, size: int, *, with_teacher: bool, evaluations: int = 2) -> float:
    """FLOPs of one epoch of a cohort; a backward pass is two forward ones, but no gradient of the images is needed."""
    resolution = site.data.task.resolution
    recipe = site.runs[0].recipe
    num_train = site.data.num_images("train") // recipe.batch_size * recipe.batch_size
    macs = 0
    for run in site.runs[:size]:
        forward = count_macs(run.student, resolution, NUM_CLASSES)
        stem = IMAGE_CHANNELS * KERNEL_AREA * run.student.widths[0][0] * resolution**2
        macs += num_train * (3 * forward - stem) + evaluations * site.data.num_images("valid") * forward
    if with_teacher:
        macs += num_train * count_macs(site.teacher.student, resolution, NUM_CLASSES)
    return 2.0 * macs


def sides_of(site: Site, sizes: Sequence[int]) -> dict[str, Callable[[], float]]:
    """What is measured; each returns seconds."""
    device = site.data.device

    def published() -> None:
        for run in site.runs[:REFERENCES]:
            published_distil(run, site.teacher, site.train, site.valid, device)

    def strong() -> None:
        for run in site.runs[:REFERENCES]:
            strong_distil(run, site.teacher, site.data)

    calls: dict[str, Callable[[], object]] = {"published": published, "strong": strong}
    for size in sizes:
        calls[f"cohort {size}"] = partial(train_cohort, site, size, is_first=True)
        calls[f"next {size}"] = partial(train_cohort, site, size, is_first=False)
    return {name: partial(measure.seconds, call, device) for name, call in calls.items()}


def figures(site: Site, sizes: Sequence[int], rounds: int) -> dict[str, Any]:
    """Medians, ratios and shares; the headline is the largest cohort's, its teacher's pass included."""
    device, sides, top = site.data.device, sides_of(site, sizes), f"cohort {max(sizes)}"
    busy: list[float] = []
    sides[top] = partial(observed, sides[top], device, busy)
    took = measure.medians(measure.alternate(sides, rounds))
    peak_mb = measure.peak_mb(device)  # before the limit takes memory of its own
    limit = measure.convolution_limit(SPACE.largest, site.data.task.resolution, device, site.runs[0].recipe.precision)
    trained = {name: int(name.split()[1]) if " " in name else len(site.runs[:REFERENCES]) for name in took}
    rates = {name: trained[name] / seconds for name, seconds in took.items()}
    shares = {
        f"{kind} {size}": executed_flops(site, size, with_teacher=kind == "cohort") / took[f"{kind} {size}"] / limit
        for size in sizes
        for kind in ("cohort", "next")
    }
    return {
        "ratio": rates[top] / rates["published"],
        "ratio_strong": rates[top] / rates["strong"],
        "limit_share": shares[top],
        "peak_mb": peak_mb,
        "ratios": {name: rate / rates["published"] for name, rate in rates.items()},
        "ratios_strong": {name: rate / rates["strong"] for name, rate in rates.items()},
        "limit_shares": shares,
        "medians": rates,
        "units": dict.fromkeys(rates, "student-epochs/s"),
        "limit_gflops": limit / 1e9,
        "gpu_utilisation_pct": mean(busy) if busy else None,
    }


def observed(side: Callable[[], float], device: torch.device, busy: list[float]) -> float:
    """What the side returns; the GPU's utilisation meanwhile is added to `busy`."""
    with utilisation(device) as samples:
        took = side()
    busy += samples
    return took


@contextmanager
def utilisation(device: torch.device) -> Iterator[list[float]]:
    """A list that holds, once the `with` block has ended, what the GPU said of itself meanwhile, in percent.

    Empty without a GPU, without nvidia-smi, and on a part of a GPU (MIG), of which it says nothing.
    """
    samples: list[float] = []
    if device.type != "cuda":
        yield samples
        return
    command = (
        "nvidia-smi",
        f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}",
        "--query-gpu=utilization.gpu",
        "--format=csv,noheader,nounits",
        f"--loop-ms={UTILISATION_MS}",
    )
    try:
        program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield samples
        return
    try:
        yield samples
    finally:
        program.terminate()
        for line in program.communicate()[0].splitlines():
            with suppress(ValueError):
                samples.append(float(line))


def lines(document: dict[str, Any]) -> Iterator[str]:
    """The document for a reader."""
    sizes = document["sizes"]
    yield (
        f"{sizes['images']} images of {sizes['resolution']} px in batches of {sizes['batch_size']}, {sizes['precision']} on "
        f"{sizes['device']}; medians of {sizes['rounds']} rounds"
    )
    yield f"{'':12} {'student-epochs/s':>17} {'/ published':>12} {'/ strong':>9} {'of the limit':>13}"
    for name, rate in document["medians"].items():
        share = document["limit_shares"].get(name, math.nan)
        ratios = f"{document['ratios'][name]:12.2f} {document['ratios_strong'][name]:9.2f}"
        yield f"{name:12} {rate:17.4f} {ratios} " + (f"{'':>13}" if math.isnan(share) else f"{share:13.0%}")
    yield f"limit {document['limit_gflops']:.0f} GFLOP/s (3x3 convolution); peak memory {document['peak_mb']:.0f} MB"
    if document["gpu_utilisation_pct"] is not None:
        yield f"GPU utilisation {document['gpu_utilisation_pct']:.0f} % in cohort {max(sizes['cohorts'])}"


@full_float32()
def main(argv: Sequence[str]) -> None:
    """Measure and tell."""
    options = _parser().parse_args(argv)
    if options.images < options.batch_size:
        raise SystemExit(f"error: --images must be >= {options.batch_size}, got {options.images}; give a whole batch")
    if options.allocator == "keep":
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    site = make_site(
        max(options.cohorts), options.images, options.resolution, options.batch_size, device, options.precision
    )
    sizes = {name: value for name, value in vars(options).items() if name != "json"}
    document = measure.document("cohort", **figures(site, options.cohorts, options.rounds), sizes=sizes)
    measure.tell(document, as_json=options.json, lines=lines(document))


def _parser() -> argparse.ArgumentParser:
    parser = measure.parser("cohort", __doc__)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[1, 4, 8, 16], help="sizes of cohorts")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--resolution", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=256, help="of an epoch; a GPU wants thousands")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="of all sides, one after the other")
    parser.add_argument("--threads", type=int, default=1, help="of torch, for all sides")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help="of training, all sides")
    parser.add_argument(
        "--allocator", choices=("keep", "system"), default="keep", help="keep: all sides keep freed memory, as lanes do"
    )
    return parser
