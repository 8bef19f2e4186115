"""The benchmark that the package ships, opened as a store of its own beside the user's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.documents import get_document, get_latest, list_documents
from cluster.objects import FolderStore, ObjectStore
from cluster.schema import build
from dass import zoo
from dass.baselines.catalog import Catalog
from dass.errors import ConfigError
from jobs.config import Config, with_settings
from jobs.console import Console
from jobs.job import Job
from jobs.recipes import get_recipe

MANIFEST = "shipped"  # the document that says what a shipped benchmark holds


def check_options(recipe: str | None, targets: Sequence[str] | None) -> None:
    """Raise ConfigError for options that were given and have no meaning with shipped records."""
    if recipe is not None or targets:
        raise ConfigError(
            f"--records shipped has its own recipe and targets, got {'--data' if targets else f'--recipe {recipe}'}; leave it out"
        )


def check_records(*, retrain: bool) -> None:
    """Raise ConfigError for options that have no meaning with a store's own records."""
    if retrain:
        raise ConfigError(
            "--retrain is for shipped records, got it without; give --records shipped too, or leave it out"
        )


@dataclass(frozen=True)
class Shipped:
    """What a shipped benchmark holds, as its manifest says.

    recipe: what it was collected with. targets: their names. methods: those that have results, under `seeds` seeds each.
    records: hash of the ids of all runs.
    """

    recipe: str
    targets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    records: str

    def config(self, settings: Sequence[str] | None) -> Config:
        """The recipe with its targets, by names and without a source of images, and settings laid over it."""
        config = with_settings(get_recipe(self.recipe), settings or ())
        return without_source(replace(config, evaluate=replace(config.evaluate, targets=self.targets)))


def without_source(config: Config) -> Config:
    """The same where only tasks are known, and no images to cut them from."""
    return replace(config, data=replace(config.data, source=""))


def read_manifest(store: ObjectStore) -> Shipped:
    """The manifest of a folder that `ship` wrote."""
    return build(Shipped, get_latest(store, MANIFEST), MANIFEST)


def open_shipped(
    settings: Sequence[str] | None, store: str, console: Console, *, seeds: int, retrain: bool, dry_run: bool
) -> tuple[Job, Shipped]:
    """The job of the recipe that the records were collected with, on a copy of them below `store`.

    retrain: leave the results of meta-learned methods out of the copy, so that these are trained and scored anew.

    Raises:
        ConfigError: there are results of fewer seeds.
    """
    source = FolderStore(zoo.RECORDS)
    shipped = read_manifest(source)
    config = shipped.config(settings)
    if seeds > shipped.seeds:
        raise ConfigError(
            f"the shipped records have results of {shipped.seeds} seeds, got --seeds {seeds}; ask for at most so many"
        )
    if dry_run:
        return Job.open(config, str(source.root), console, dry_run=True, is_reader=True), shipped
    place = f"{store.rstrip('/')}/shipped-{shipped.records[:8]}{'-retrained' if retrain else ''}"
    job = Job.open(config, place, console, dry_run=False)
    _copy(source, job.store, without=_learned_results(config, shipped, source) if retrain else ())
    return job, shipped


def _learned_results(config: Config, shipped: Shipped, source: ObjectStore) -> list[str]:
    """The ids of the results of methods that are meta-learned."""
    methods = Catalog(config.meta, config.meta_d2a, config.tans).choose(shipped.methods)
    learned = {method.name for method in methods if method.learned}
    ids = list_documents(source, "evaluation")
    return [id_ for id_ in ids if get_document(source, "evaluation", id_)["method"] in learned]


def _copy(source: ObjectStore, target: ObjectStore, without: Sequence[str]) -> None:
    """All objects but these results; what is there already stays."""
    left_out = {f"documents/evaluation/{id_}.json" for id_ in without}
    for key in source.list():
        if key not in left_out:
            target.put_if_absent(key, source.get(key))
