"""What every verb works with: the configuration, the store, and where to write."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from cluster.cache import load_pack, open_cache
from cluster.database import RunDatabase
from cluster.documents import get_latest, get_task, put_latest, put_task
from cluster.objects import ObjectStore, open_store
from cluster.packs import put_pack
from cluster.runtime import check_store_url
from cluster.schema import STORE_KEY, check_schema, claim_schema, upgrade_schema
from dass.data.pack import Pack
from dass.data.sources import FORMS, read_source
from dass.data.splits import assign_parts, whole_task
from dass.data.tasks import TaskSet, make_tasks
from dass.errors import ConfigError, ObjectNotFoundError
from dass.records import Record, Task, content_id
from dass.spaces import get_space
from dass.spaces.space import SearchSpace
from jobs.config import Config
from jobs.console import Console

FIRST_ANSWER_S = 8.0  # for a store that never answered yet the address may be wrong: told soon, not tried for long


@dataclass(frozen=True)
class Job:
    """One verb under way. With `dry_run` nothing is written and nothing is trained.

    takeover: whether to train although another job may still train the same.
    """

    config: Config
    store: ObjectStore
    console: Console
    dry_run: bool = False
    takeover: bool = False
    _packs: dict[str, Pack] = field(default_factory=dict, repr=False)  # by source or id: those read in this process

    @classmethod
    def open(
        cls,
        config: Config,
        store_url: str,
        console: Console,
        *,
        dry_run: bool,
        is_reader: bool = False,
        is_keeper: bool = False,
        takeover: bool = False,
    ) -> "Job":
        """Check the store before anything else; see `check_schema` and ObjectStore.check_writable for the errors.

        is_reader: the verb only ever reads, so a store that cannot be written will do.
        is_keeper: the verb looks after what is there, so a store in which nothing was ever written is a wrong one.
        """
        check_store_url(store_url)
        is_owned = check_schema(open_store(store_url, FIRST_ANSWER_S))
        if is_keeper and not is_owned:
            raise ConfigError(
                f"--store must hold what other verbs have written, got {store_url} without {STORE_KEY}; correct the path"
            )
        store = open_store(store_url)
        if not is_reader:
            store.check_writable()
        if not (is_reader or dry_run):
            upgrade_schema(store)
        return cls(config, store, console, dry_run, takeover)

    @property
    def reader(self) -> "Job":
        """The same job, but it writes nothing: to check everything before the first write."""
        return replace(self, dry_run=True)

    @property
    def device(self) -> torch.device:
        """What this process computes on: what lanes do where it has such, else its CPU, as on the head of a cluster."""
        wanted = self.config.lanes.device
        return wanted if wanted.type != "cuda" or torch.cuda.is_available() else torch.device("cpu")

    @cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return get_space(self.config.space)

    @cached_property
    def database(self) -> RunDatabase:
        """The store's records."""
        return RunDatabase(self.store)

    def records(self, run_ids: Iterable[str]) -> dict[str, Record]:
        """The records of those runs that have one, by run id."""
        return {record.run.id: record for record in self.database.scan(set(run_ids))}

    @property
    def has_tasks(self) -> bool:
        """Whether the recipe's tasks are in the store, so that no image is read for them."""
        data = self.config.data
        name = self._whole_name(data.source) if data.split == "whole" else self._tasks_name
        return self._known(name) is not None

    def tasks(self, *, refresh: bool = False) -> TaskSet:
        """The tasks of the recipe; cut from the source at the first time, or anew with `refresh`."""
        if (
            self.config.data.split == "whole"
        ):  # the one task of its source, under the name that every recipe finds it by
            return TaskSet((), (), self.whole_source(self.config.data.source, refresh=refresh))
        kinds = {"train": tuple[str, ...], "valid": tuple[str, ...], "target": str | None}
        if not refresh and (known := self._known(self._tasks_name, **kinds)) is not None:
            train, valid = (tuple(get_task(self.store, task) for task in known[role]) for role in ("train", "valid"))
            return TaskSet(train, valid, get_task(self.store, known["target"]) if known["target"] else None)
        if not self.config.data.source:
            raise ConfigError(
                f"recipe {self.config.name} must know the images that its tasks are cut from, got none; give them with --data, "
                f"or where --data gives the target with --set data.source=SPEC, SPEC being {', '.join(FORMS[:-1])} or {FORMS[-1]}"
            )
        pack = self._read(self.config.data.source)
        tasks = make_tasks(pack, self.config.data)
        self._keep(pack)
        self.keep_tasks(tasks)
        return tasks

    def keep_tasks(self, tasks: TaskSet) -> None:
        """Let the recipe's tasks be these, whatever becomes of its source."""
        target = tasks.target.id if tasks.target else None
        value = {"train": [t.id for t in tasks.train], "valid": [t.id for t in tasks.valid], "target": target}
        self._point(self._tasks_name, value, tasks.all)

    def whole_source(self, source: str, *, refresh: bool = False) -> Task:
        """All images of a source as one task: the user's own dataset as the target; read anew with `refresh`."""
        if not refresh and (known := self._known(self._whole_name(source), task=str)) is not None:
            return get_task(self.store, known["task"])
        pack = self._read(source)
        task = whole_task(pack, pack.name)
        self._keep(pack)
        self.keep_whole(source, task)
        return task

    def keep_whole(self, source: str, task: Task) -> None:
        """Let this be the task of a source, whatever becomes of it."""
        self._point(self._whole_name(source), {"task": task.id}, [task])

    def pack(self, task: Task) -> Pack:
        """The packed images of a task."""
        for pack in self._packs.values():
            if pack.id == task.source:
                return pack
        loaded = load_pack(self.store, task.source, open_cache(self.config.lanes))
        if loaded.problem:
            self.console.say(f"packs are not cached: {loaded.problem}")
        self._packs[task.source] = loaded.pack  # tasks share packs
        return loaded.pack

    def _read(self, source: str) -> Pack:
        if source in self._packs:
            return self._packs[source]
        data = self.config.data
        with self.console.phase("read images") as bar:
            pack = read_source(source, data.resolution, progress=bar.update)
        self._packs[source] = assign_parts(pack, data.seed, data.valid_fraction, data.test_fraction)
        return self._packs[source]

    def _keep(self, pack: Pack) -> None:
        if not self.dry_run:
            claim_schema(self.store)
            put_pack(self.store, pack)

    def _point(self, name: str, value: Mapping[str, Any], tasks: Iterable[Task]) -> None:
        if not self.dry_run:
            for task in tasks:
                put_task(self.store, task)
            put_latest(self.store, name, value)

    @property
    def _tasks_name(self) -> str:
        return f"tasks-{content_id({'data': self.config.data})}"

    def _whole_name(self, source: str) -> str:
        data = self.config.data
        return f"whole-{content_id([source, data.resolution, data.valid_fraction, data.test_fraction, data.seed])}"

    def _known(self, name: str, **kinds: Any) -> dict[str, Any] | None:  # noqa: ANN401 - see get_latest
        try:
            return get_latest(self.store, name, **kinds)
        except ObjectNotFoundError:
            return None
