"""The recipe that needs no collection: students for your images, ranked by the predictor that the package brings."""

from dataclasses import replace

from dass.data.tasks import DataConfig
from dass.search.select import SearchConfig
from jobs.config import CollectConfig, Config
from jobs.recipes.tiny_imagenet import tiny25_32px


def pretrained() -> Config:
    """All classes of the images that you give are the target: `search --data SPEC`, then `distil` and `report`.

    A search takes half a minute beside its teacher's training; teacher and nine final runs take minutes for a thousand images.
    Teacher and students are trained as those were that the predictor has learned from, so that what it predicts is what
    comes out.
    """
    made_for = tiny25_32px()
    return replace(
        made_for,
        name="pretrained",
        predictor="package",
        data=DataConfig(source="", resolution=made_for.data.resolution, split="whole"),
        collect=CollectConfig(),
        search=SearchConfig(candidates=3000, max_macs_ratio=0.5),
    )
