"""Meta-training: episodes of 8 tasks with 50 queries, against a plain loop.

    python -m tests.benchmarks meta [--json] [--episodes N] [--rounds R] [--device cpu|cuda]

Tasks of 100 students with random maps of `paper5` at 64 px, (256, 8, 8), and the default configuration. *plain*: what
the method prescribes with torch's own layers (reference_meta.py). Each sample is N episodes with the evaluation that
ends them, from training that goes on. `limit_share`: FLOPs of all products and convolutions executed, over time, over
the machine's best convolution rate in the same run. `peak_mb` has both sides in it. All in float32 (without TF32).

Levers. One core, a batch of 50 maps, best of a second, in the directions that training takes: the products of windows
that stand for convolutions ran at 138 to 153 GFLOP/s, torch's convolutions of channels-last maps at 58 to 153, of others
at 63 to 142; so windows, with channels-last filters. The chain rule written out took a fifth less processor time than
autograd through the inner step, on a busy machine. Not weighed: torch.compile, inference mode in evaluation.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dass.meta.episodes import MetaTask
from dass.meta.train import MetaConfig, MetaPredictor, MetaTraining
from dass.precision import full_float32
from dass.spaces import get_space
from dass.threads import one_thread
from tests.benchmarks import measure
from tests.benchmarks.reference_meta import PlainTraining

NUM_TASKS, NUM_VALID, NUM_STUDENTS = 8, 2, 100
RESOLUTION, SIDE = 64, 8
GOAL_EPISODES = 1000


@full_float32()
def main(arguments: Sequence[str]) -> None:
    """Measure, and print a table or a JSON document."""
    parser = measure.parser("meta", __doc__)
    parser.add_argument("--episodes", type=int, default=20, help="of each sample")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each side")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    figures = document(options)
    measure.tell(figures, as_json=options.json, lines=table(figures))


def document(options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run."""
    device, space = torch.device(options.device), get_space("paper5")
    tasks = [random_task(number, space.encoding_dim, device) for number in range(NUM_TASKS + NUM_VALID)]
    train, valid = tasks[:NUM_TASKS], tasks[NUM_TASKS:]
    config = MetaConfig(episodes=options.episodes * (options.rounds + 1), eval_every=options.episodes)
    spec = config.spec(
        space="paper5",
        resolution=RESOLUTION,
        num_channels=train[0].maps.shape[1],
        arch_dim=space.encoding_dim,
        noise_sha="",
    )
    flops = flops_per_episode(MetaTraining(spec, MetaConfig(episodes=1), train, valid))
    plain, ours = PlainTraining(spec, config, train), MetaTraining(spec, config, train, valid)
    next(ours)  # the evaluation of the untrained predictor
    done = iter(range(config.episodes))

    def run_plain() -> None:
        for _ in range(options.episodes):
            plain.episode(next(done))
        plain.evaluate(valid)

    def per_episode_ms(side: Callable[[], object]) -> float:
        return measure.seconds(side, device) / config.eval_every * 1000

    sides = {"plain": lambda: per_episode_ms(run_plain), "ours": lambda: per_episode_ms(lambda: next(ours))}
    measure.alternate(sides, 1)  # warms both up
    samples = measure.alternate(sides, options.rounds)
    middle = measure.medians(samples)
    peak_mb = measure.peak_mb(device)  # before the limit takes memory of its own
    limit = measure.convolution_limit(space.largest, RESOLUTION, device)
    ratios = [plain / ours for plain, ours in zip(samples["plain"], samples["ours"], strict=True)]
    return measure.document(
        "meta",
        ratio=statistics.median(ratios),
        limit_share=flops / (middle["ours"] / 1000) / limit,
        peak_mb=peak_mb,
        medians=middle | {"thousand_episodes": middle["ours"] * GOAL_EPISODES / 60_000},
        units={"plain": "ms/episode", "ours": "ms/episode", "thousand_episodes": "min"},
        sizes={
            "tasks": NUM_TASKS,
            "queries": config.queries,
            "students": NUM_STUDENTS,
            "map": list(train[0].maps.shape[1:]),
        },
        samples=samples,
        flops_per_episode=flops,
        limit_flops_per_s=limit,
    )


def random_task(seed: int, arch_dim: int, device: torch.device) -> MetaTask:
    """A task whose numbers mean nothing."""
    rng = torch.Generator().manual_seed(seed)
    return MetaTask(
        name=f"task-{seed}",
        arch=torch.rand(NUM_STUDENTS, arch_dim, generator=rng).to(device).round(),
        maps=torch.rand(NUM_STUDENTS, 256, SIDE, SIDE, generator=rng).to(device),
        targets_pct=60 + 10 * torch.rand(NUM_STUDENTS, generator=rng),
        teacher_arch=torch.ones(arch_dim),
        teacher_map=torch.rand(256, SIDE, SIDE, generator=rng),
        teacher_accuracy_pct=70.0,
    )


def flops_per_episode(training: MetaTraining[MetaPredictor]) -> float:
    """FLOPs of the products of one episode, without its evaluation: counted on one thread, which sees all of them."""
    with one_thread(), FlopCounterMode(display=False) as first:
        next(training)
    with one_thread(), FlopCounterMode(display=False) as both:
        next(training)
    return float(both.get_total_flops() - first.get_total_flops())


def table(figures: dict[str, Any]) -> list[str]:
    """The figures for a reader."""
    middle = figures["medians"]
    return [
        f"plain    {middle['plain']:8.1f} ms per episode",
        f"dass     {middle['ours']:8.1f} ms per episode, {figures['ratio']:.2f} times as fast; "
        f"{middle['thousand_episodes']:.1f} min for {GOAL_EPISODES} episodes",
        f"limit    {figures['limit_share']:8.1%} of {figures['limit_flops_per_s'] / 1e9:.0f} GFLOP/s, "
        f"{figures['flops_per_episode'] / 1e9:.1f} GFLOP per episode",
        f"peak     {figures['peak_mb']:8.0f} MB",
    ]
