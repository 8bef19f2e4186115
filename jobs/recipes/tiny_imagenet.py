"""Recipes on Tiny-ImageNet, whose images you bring: `--data parquet:PATH` or `--data imagefolder:PATH`."""

from dataclasses import replace

from cluster.settings import LaneConfig
from dass.data.tasks import DataConfig
from dass.evaluation import EvaluateConfig
from dass.kd.teacher import TEACHER_RECIPE
from dass.meta.train import MetaConfig
from dass.records import Recipe
from dass.search.select import SearchConfig
from jobs.config import CollectConfig, Config, DistilConfig


def tiny10() -> Config:
    """The paper's database: 10 splits of 40 classes at 64 px, 200 students each, 50 epochs: `collect --recipe tiny10`.

    Source: DaSS, sections 5.1 to 5.4, and the released scripts. 2,000 KD runs of 10,000 images: 1e9 image passes.
    """
    return Config(
        name="tiny10",
        space="paper5",
        data=DataConfig(source="", resolution=64, split="tiny10", train_tasks=8, valid_tasks=2),
        teacher=TEACHER_RECIPE,
        student=Recipe(),
        final=Recipe(),
        lanes=LaneConfig(
            num=1, cpus=2.0, gpus=1.0, threads=2, cohort_size=16, yield_every=50, checkpoint_s=120.0, lease_s=300.0,
            memory_format="channels_last",
        ),
        collect=CollectConfig(students_per_task=200),
        meta=MetaConfig(),
        search=SearchConfig(candidates=3000),
        distil=DistilConfig(seeds=(1, 2, 3)),
    )  # fmt: skip


def tiny25_32px() -> Config:
    """The same splits, and small tasks of their classes, at 32 px: base widths of a quarter and few epochs, for 2 cores.

    The records that the package ships were collected with it. Small batches and a low rate, because 20 narrow blocks
    that see so few images learn nothing in so few steps otherwise: on `tiny10-0` a teacher of 10 epochs reached 21 % with
    batches of 16 and a rate of 0.01 or 0.02, and 8 % with 32 and 0.05. Targets are cut in halves, as the splits are:
    accuracies on many valid images are less noisy. With so few records the predictor is one that sees few numbers: chosen
    on splits that were held out.
    """
    full = tiny10()
    student = Recipe(epochs=6, batch_size=16, lr=0.01, eval_every=3)
    return replace(
        full,
        name="tiny25_32px",
        space="paper5_w8",
        data=replace(full.data, split="tiny25", train_tasks=20, valid_tasks=5, resolution=32, valid_fraction=0.5),
        teacher=replace(TEACHER_RECIPE, epochs=20, batch_size=16, lr=0.01),
        student=student,
        final=student,
        lanes=LaneConfig(num=2, cpus=1.0, threads=1, cohort_size=16, checkpoint_s=60.0, lease_s=120.0),
        meta=MetaConfig(episodes=300, unit="teacher", inputs="ARE", encoding="summary", loss="correlation"),
        collect=CollectConfig(students_per_task=30, target_students=30, target_repeats=10, target_draw="own"),
        evaluate=EvaluateConfig(short_epochs=1),
    )
