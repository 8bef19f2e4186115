"""Maps of candidates: one prefix tree of batched convolutions, against one student at a time.

    python -m tests.benchmarks embed [--json] [--candidates N] [--device cpu|cuda] [--rounds R] [--images B]
    python -m tests.benchmarks embed --stream [--json] [--points N ...]

Uniform `paper5` candidates at 64 px, on all threads of torch, in float32 (without TF32). Two references, each measured
on a few of the same students and scaled, because their time is linear in the number:

- *published*: each student built, remapped from the teacher and run alone, as in the released code;
- *strong*: the best that plain PyTorch gives one at a time: nothing drawn for the weights, channels-last, inference mode.

With `--images 64 --space paper5_w8 --resolution 16` it is the other half of a search by the predictor that ships: what candidates
make of 64 images (`Embedder.features`), the means of their maps, in the place of the map of one image of noise.

`dass, bfloat16` is `dass` under `search.precision=bfloat16`, and `bfloat16_error` what that changes the maps by, in Euclidean
norms; it is no part of a ratio, as the references compute in float32. With the predictor that ships, the 3,000 students of a
search have a rank correlation of 0.992 (cifar10) and above 0.9999 (three targets) with themselves in float32: the first is the
same, of the first hundred 99 are. It pays where networks are wide; those of `paper5_w8` at 32 px take half as long again in
bfloat16.

`limit_share` is what is executed after all sharing, in FLOPs, over time, over the best rate of a plain convolution in the
same run; a convolution counts as if it were a direct one. `--stream` searches (embeds and scores) in a stream, by number
of candidates, and sets a candidate that comes from mutations of others beside one that is drawn uniformly. There
`limit_share` is that of the most candidates: embedding's FLOPs over the time of all, proposing and scoring included.

Levers, for 1,000 candidates on 2 cores, in seconds after the first call. Kept: channels-last maps and filters (before them
convolutions ran at 40 to 134 GFLOP/s a core, with them at 95 to 168); Winograd's filtering of wide convolutions by tiles of
4x4 (4.3 to 3.6), now of 6x6, in points that keep the error at some 1e-6 of the largest map (in the usual ones it was 1e-5, and
not kept), together with memory that is used again from level to level (another 12 %, and no page faults); filters sliced once
(3 %); chunks on one-thread workers (groups of one chunk on them: 4.2, as levels wait for their largest group; two processes
in place of two threads: a tenth less, which is what Python's lock costs); more kernels kept than oneDNN would (3.8 to 3.1 where
other shapes come in between, as here; a search of 3,000 by the predictor that ships 9.7 to 6.6; nothing for cohorts, which
have fewer shapes); chunks of 250 in place of 128 (6 %, 300 MB more, so not in a stream), cut by the room that their maps take,
so that 64 images go together (of `paper5_w8` at 32 px 8.2 to 6.7) with few candidates rather than 16 with many; most work first
(5 %); maps that leave a stage where they were made (4 %); pieces of 8 MB (no faster, 170 MB less on one thread).

Not kept: Winograd for narrower convolutions (64 channels: 3 % longer), and only for many tiles (no difference); huge pages (no
difference); sharing first convolutions between children of other widths (2.5 % fewer FLOPs); groups cut into powers of two, for
a third fewer kernels (the first call 0.3 s less, all others 3 % longer); pieces that stay in a core's cache (1 MB: no
difference, less: slower); narrow filters copied out of the teacher's (no difference). What is left is half direct convolutions of
64 channels and fewer, many of them of numbers that fill no whole vector, at 130 to 165 GFLOP/s a core. A process's first call
takes 0.3 to 0.6 s more: oneDNN generates a kernel for each of 900 shapes, and memory comes in fresh pages.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from dass.cost import count_macs, count_shared_macs
from dass.embed import Embedder, cut, draw_noise
from dass.meta.episodes import Support
from dass.networks import build
from dass.precision import full_float32
from dass.predictor import MetaPredictor, Predictor, PredictorSpec
from dass.records import Student
from dass.search.budget import Budget
from dass.search.rounds import Chunk, Rounds
from dass.search.select import PredictorScorer, SearchConfig, search
from dass.search.strategies import MUTATION_RATE, Strategy, make_strategy
from dass.seeding import generator
from dass.spaces import get_space
from dass.spaces.space import SearchSpace
from tests.benchmarks import measure
from tests.benchmarks.reference import published_map, strong_map

NUM_CLASSES = 10
SAMPLE = 40  # students that the references are measured on
NUM_OF_A_KIND = 1000  # students, uniform ones and mutants


def executed_flops(students: Sequence[Student], resolution: int, chunk: int) -> float:
    """FLOPs of the convolutions that embedding executes: every prefix once per chunk."""
    chunks = ([students[index] for index in indices] for indices in cut(students, chunk))
    return 2.0 * sum(count_shared_macs(each, resolution) for each in chunks)


def chunks_of(strategy: Strategy, config: SearchConfig) -> Iterator[Chunk]:
    """What a search gives its scorer, call by call, if the strategy does not learn."""
    rounds = Rounds(strategy, config.candidates, config.batch, config.chunk)
    while chunk := rounds.take():
        rounds.put(chunk, [0.0] * len(chunk))
        yield chunk


def scorer_of(space: SearchSpace, embedder: Embedder, noise_sha: str, resolution: int) -> PredictorScorer:
    """An untrained predictor, adapted; its values do not matter for what scoring costs."""
    spec = PredictorSpec(
        space=space.name,
        resolution=resolution,
        num_channels=space.num_channels,
        arch_dim=space.encoding_dim,
        noise_sha=noise_sha,
    )
    model = Predictor(spec, seed=0)
    rates = {name: torch.full_like(value, 0.005) for name, value in model.named_parameters()}
    teacher_map = embedder.maps([space.largest])[0]
    adapted = MetaPredictor(model.to(teacher_map.device), rates).adapt(
        Support(space.encode(space.largest), teacher_map, 80.0)
    )
    return PredictorScorer(adapted, embedder, space)


def mutants(space: SearchSpace, num: int) -> list[Student]:
    """Different mutants of few parents, as a late generation of evolution has them."""
    rng = generator("benchmark", "mutants")
    parents = space.sample(25, rng)
    found: dict[Student, None] = {}
    while len(found) < num:
        found[space.mutate(parents[len(found) % len(parents)], rng, MUTATION_RATE)] = None
    return list(found)


def compare(options: Any) -> dict[str, Any]:
    """The figures of the batched engine beside both references."""
    space, device, num = get_space(options.space), torch.device(options.device), options.candidates
    resolution = options.resolution
    students = space.sample(num, generator("benchmark", "uniform"))
    state = build(space.largest, NUM_CLASSES, generator("benchmark")).state_dict()
    shape = (options.images, 3, resolution, resolution)
    noise = (
        draw_noise(resolution)
        if options.images == 1
        else torch.randn(shape, generator=generator("benchmark", "images"))
    )
    noise = noise.to(device)
    few = students[: min(SAMPLE, num)]
    scale: float = num / len(few)
    on_device = {name: tensor.to(device) for name, tensor in state.items()}

    def one_at_a_time(run: Callable[..., torch.Tensor]) -> float:
        def all_of_them() -> None:
            for student in few:
                maps = run(on_device, space.largest, student, NUM_CLASSES, noise)
                if options.images > 1:
                    maps.mean(dim=(2, 3))

        return scale * measure.seconds(all_of_them, device)

    embedder = Embedder(state, space.largest, noise)
    rounded = Embedder(state, space.largest, noise, precision="bfloat16")

    def seen(by: Embedder) -> torch.Tensor:
        return by.maps(students) if options.images == 1 else by.features(students)

    exact = seen(embedder)
    error = float((seen(rounded) - exact).norm() / exact.norm())
    del exact  # or it would count as a part of the peak
    scorer = scorer_of(space, embedder, "benchmark", resolution)
    sides = {
        "published": lambda: one_at_a_time(published_map),
        "strong": lambda: one_at_a_time(strong_map),
        "dass": lambda: measure.seconds(lambda: seen(embedder), device),
        "dass, bfloat16": lambda: measure.seconds(lambda: seen(rounded), device),
    }
    if device.type == "cuda" and options.images == 1:
        sides["dass, embedded and scored"] = lambda: measure.seconds(lambda: scorer.score(students), device)
    found = measure.alternate(sides, options.rounds)
    middle = measure.medians(found)
    peak_mb = measure.peak_mb(device)  # before the limit takes memory of its own
    limit = measure.convolution_limit(space.largest, resolution, device)
    flops = options.images * executed_flops(students, resolution, embedder.chunk)
    alone = 2.0 * options.images * sum(count_macs(student, resolution, 0) for student in students)
    return measure.document(
        "embed" if options.images == 1 else "embed-images",
        ratio=middle["published"] / middle["dass"],
        ratio_strong=middle["strong"] / middle["dass"],
        limit_share=flops / middle["dass"] / limit,
        limit_gflops=limit / 1e9,
        bfloat16_error=error,
        shared_share=1 - flops / alone,
        peak_mb=peak_mb,
        medians={name: {"unit": "s", "value": value} for name, value in middle.items()},
        sizes={
            "candidates": num,
            "images": options.images,
            "space": space.name,
            "resolution": resolution,
            "device": str(device),
            "referred": len(few),
            "rounds": options.rounds,
        },
    )


def stream(options: Any) -> dict[str, Any]:
    """Time and peak memory by number of candidates, and the cost of a mutant beside that of a uniform draw."""
    space, device, resolution = get_space(options.space), torch.device(options.device), options.resolution
    state = build(space.largest, NUM_CLASSES, generator("benchmark")).state_dict()
    embedder = Embedder(state, space.largest, draw_noise(resolution).to(device))
    scorer = scorer_of(space, embedder, "benchmark", resolution)

    def proposals() -> Strategy:
        return make_strategy("random", space, Budget(), resolution, NUM_CLASSES, 0)

    def searched(num: int) -> None:
        for _ in search(proposals(), scorer, SearchConfig(candidates=num), resolution, NUM_CLASSES):
            pass

    points = [(num, measure.seconds(partial(searched, num), device), measure.peak_mb(device)) for num in options.points]
    kinds = {
        "uniform": space.sample(NUM_OF_A_KIND, generator("benchmark", "kinds")),
        "mutants": mutants(space, NUM_OF_A_KIND),
    }
    each = measure.medians(
        measure.alternate(
            {
                name: lambda some=some: measure.seconds(lambda: embedder.maps(some), device) / len(some)  # type: ignore[misc]
                for name, some in kinds.items()
            },
            options.rounds,
        )
    )
    peak_mb = measure.peak_mb(device)  # before the limit takes memory of its own
    limit = measure.convolution_limit(space.largest, resolution, device)
    most, most_s, _ = max(points)
    flops = sum(
        executed_flops(chunk, resolution, embedder.stream_chunk)
        for chunk in chunks_of(proposals(), SearchConfig(candidates=most))
    )
    rates = [taken / num for num, taken, _ in points if num >= 1000]
    return measure.document(
        "embed-stream",
        ratio=each["uniform"] / each["mutants"],
        linearity=max(rates) / min(rates) if rates else None,
        limit_share=flops / most_s / limit,
        limit_gflops=limit / 1e9,
        peak_mb=peak_mb,
        medians={f"candidate, {name}": {"unit": "ms", "value": 1000 * value} for name, value in each.items()},
        points=[[num, taken] for num, taken, _ in points],
        peaks_mb=[[num, peak] for num, _, peak in points],
        sizes={"space": space.name, "resolution": resolution, "device": str(device), "rounds": options.rounds},
    )


@full_float32()
def main(arguments: list[str]) -> None:
    """Measure and print."""
    parser = measure.parser("embed", __doc__)
    parser.add_argument("--candidates", type=int, default=1000, metavar="N")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--resolution", type=int, default=64, metavar="PX")
    parser.add_argument("--space", default="paper5", metavar="NAME")
    parser.add_argument(
        "--images", type=int, default=1, metavar="B", help="of which each candidate's features are taken"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="R")
    parser.add_argument("--stream", action="store_true", help="by number of candidates, embedded and scored")
    parser.add_argument("--points", type=int, nargs="+", default=[10, 100, 1000, 10_000, 100_000], metavar="N")
    options = parser.parse_args(arguments)
    found = stream(options) if options.stream else compare(options)
    lines = [f"{name}: {value['value']:.3g} {value['unit']}" for name, value in found["medians"].items()]
    if options.stream:
        lines += [f"{num} candidates: {taken:.1f} s" for num, taken in found["points"]]
        lines += [f"a mutant costs {1 / found['ratio']:.2f} of a uniform draw"]
    else:
        lines += [f"{found['ratio']:.1f} times published, {found['ratio_strong']:.1f} times strong"]
        lines += [f"bfloat16 changes the maps by {100 * found['bfloat16_error']:.2g} %"]
    lines += [f"{100 * found['limit_share']:.0f} % of the convolution limit of {found['limit_gflops']:.0f} GFLOP/s"]
    measure.tell(found, as_json=options.json, lines=[*lines, f"peak memory {found['peak_mb']:.0f} MB"])
