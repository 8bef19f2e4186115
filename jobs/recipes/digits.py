"""Recipes on the handwritten digits that scikit-learn ships: no download, no service, one machine."""

from dataclasses import replace

from cluster.settings import LaneConfig
from dass.baselines.meta_d2a import MetaD2AConfig
from dass.baselines.tans import TansConfig
from dass.data.tasks import DataConfig
from dass.meta.train import MetaConfig
from dass.records import Recipe
from dass.search.select import SearchConfig
from jobs.config import CollectConfig, Config, DistilConfig
from jobs.recipes.pretrained import pretrained


def quickstart() -> Config:
    """A student for the ten digits at 32 px by the package's predictor: `python -m jobs quickstart`.

    Most images are kept aside: with few to train on, students differ; all reach 97 % otherwise. Beside the winner some are
    distilled that were drawn at random, to check the predictor's ranking with. Three minutes on 2 cores.
    """
    given = pretrained()
    return replace(
        given,
        name="quickstart",
        data=replace(given.data, source="digits", valid_fraction=0.5, test_fraction=0.3),
        lanes=digits().lanes,
        collect=CollectConfig(target_students=24),
        search=replace(given.search, max_macs_ratio=0.3),
    )


def digits() -> Config:
    """The whole way on 8 x 8 digits in minutes, the predictor's meta-training included: `quickstart --recipe digits`.

    Ten classes in three disjoint pools: every two of 4 classes are a meta-training task, every two of 3 others a
    meta-validation task, and the last 3 are the target that nothing was learned from.
    Few images and few epochs keep the students apart; on saturated digits nothing could be ranked.
    """
    brief = Recipe(epochs=6, batch_size=16, lr=0.005, flip=0.0, crop_padding=2, eval_every=1)
    return Config(
        name="digits",
        space="paper5_w8",
        data=DataConfig(
            source="digits",
            resolution=16,
            split="classes",
            classes_per_task=2,
            train_tasks=6,
            valid_tasks=3,
            target_classes=3,
            valid_fraction=0.5,
            test_fraction=0.3,
        ),
        teacher=Recipe(
            loss="ce",
            label_smoothing=0.1,
            init="scratch",
            epochs=30,
            batch_size=16,
            lr=0.02,
            flip=0.0,
            crop_padding=2,
            eval_every=10,
        ),
        student=brief,
        final=brief,
        lanes=LaneConfig(num=2, cpus=1.0, threads=1, cohort_size=8, yield_every=20, checkpoint_s=5.0, lease_s=60.0),
        collect=CollectConfig(students_per_task=32, target_students=24),
        meta=MetaConfig(episodes=400, queries=32, lr=0.002, eval_every=20),
        search=SearchConfig(candidates=3000, max_macs_ratio=0.3),
        distil=DistilConfig(seeds=(1, 2, 3)),
    )


def smoke() -> Config:
    """The same way with almost nothing trained, to see that an installation works: seconds of training, no result."""
    brief = Recipe(epochs=1, batch_size=16, lr=0.02, flip=0.0, crop_padding=1, eval_every=1)
    full = digits()
    return Config(
        name="smoke",
        space="smoke",
        data=replace(full.data, train_tasks=2, valid_tasks=1),
        teacher=Recipe(
            loss="ce", init="scratch", epochs=1, batch_size=16, lr=0.05, flip=0.0, crop_padding=1, eval_every=1
        ),
        student=brief,
        final=brief,
        lanes=LaneConfig(num=1, cpus=1.0, threads=1, cohort_size=4, yield_every=5, checkpoint_s=1.0, lease_s=60.0),
        collect=CollectConfig(students_per_task=3, target_students=2),
        meta=MetaConfig(episodes=4, queries=3, eval_every=2),
        meta_d2a=MetaD2AConfig(episodes=4, eval_every=2, images_per_class=3),
        tans=TansConfig(episodes=4, eval_every=2),
        search=SearchConfig(candidates=50, max_macs_ratio=0.5),
        distil=DistilConfig(seeds=(1,)),
    )
