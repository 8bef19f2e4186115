"""The frozen records of an evaluation: for each target the students that every method ranks, and what they are known by."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.documents import get_latest, put_latest
from dass.errors import ConfigError, DataError, ObjectNotFoundError
from dass.evaluation import MIN_STUDENTS
from dass.meta.episodes import split_support
from dass.records import Record, Status, Task, content_id
from jobs import teachers
from jobs.job import Job


@dataclass(frozen=True)
class Target:
    """A target task and its students, distilled from one teacher under the recipe's student.* and collect.seed.

    ranked: what every method ranks. shown: students that methods may adapt to, for meta.support_students. runs_pct: the
    accuracies of all runs of each of these students, of those with other seeds too. run_ids: of all runs, those that diverged
    and those with other seeds among them. own_id: the hash of the ids of the target's records that results depend on.
    set_id: the same with those of the meta-training, on which the results of what is meta-learned depend.
    """

    task: Task
    teacher: str
    ranked: tuple[Record, ...]
    shown: tuple[Record, ...]
    diverged: int
    runs_pct: tuple[tuple[float, ...], ...]
    run_ids: tuple[str, ...]
    own_id: str
    set_id: str

    @property
    def all(self) -> tuple[Record, ...]:
        """Those that are shown, then those that are ranked."""
        return (*self.shown, *self.ranked)

    @property
    def accuracies_pct(self) -> list[float]:
        """The true accuracies of those that are ranked."""
        return [accuracy_pct(record) for record in self.ranked]

    @property
    def macs(self) -> list[int]:
        """Their MACs."""
        return [record.macs for record in self.ranked]


def accuracy_pct(record: Record) -> float:
    """Best accuracy on valid of a run that finished."""
    best = record.result.best_accuracy_pct
    if best is None:
        raise DataError(
            f"a student that is ranked must have an accuracy, got run {record.run.id} without; leave it out"
        )
    return best


def find_targets(job: Job, sources: Sequence[str], meta_ids: Iterable[str]) -> list[Target]:
    """The targets: all images of each source, or else the classes that the recipe keeps aside and evaluate.targets.

    meta_ids: run ids of the records of the meta-training, which belong to what the results depend on.

    Raises:
        ConfigError: there is no target, two have one name, or a source cannot be used.
        DataError: a target has too few students, or those of several teachers.
    """
    tasks, meta = target_tasks(job, sources), sorted(meta_ids)
    by_task = _by_task(job, tasks)
    return [_target(job, task, by_task[task.id], meta) for task in tasks]


def without_students(job: Job, task: Task, meta_ids: Iterable[str]) -> Target:
    """A target none of whose students is distilled yet, with the recipe's teacher; arguments as `find_targets`."""
    own: dict[str, Any] = {"target": [], "shown": 0}
    return Target(
        task=task,
        teacher=teachers.run_of(job, task).id,
        ranked=(),
        shown=(),
        diverged=0,
        runs_pct=(),
        run_ids=(),
        own_id=content_id(own),
        set_id=content_id({**own, "meta": sorted(meta_ids)}),
    )


def targets_elsewhere(job: Job) -> list[Target]:
    """Those of evaluate.targets, which no meta task is cut from, that can be ranked; of others it is told why not."""
    if not job.config.evaluate.targets:
        return []
    tasks = target_tasks(job, job.config.evaluate.targets)
    by_task, found = _by_task(job, tasks), []
    for task in tasks:
        try:
            found.append(_target(job, task, by_task[task.id], ()))
        except DataError as error:
            job.console.tell(f"Without {task.name}: {error}.")
    return found


def _by_task(job: Job, tasks: Sequence[Task]) -> Mapping[str, list[Record]]:
    """The records of the recipe's students on these tasks."""
    found: dict[str, list[Record]] = defaultdict(list)
    wanted = {task.id for task in tasks}
    for record in job.database.scan():
        if record.run.task in wanted and record.run.teacher is not None and record.run.recipe == job.config.student:
            found[record.run.task].append(record)
    return found


def freeze(job: Job, targets: Sequence[Target], *, is_anew: bool) -> None:
    """Note which records each target's results belong to; unless the job is a dry run.

    Raises:
        DataError: the store's evaluation of a target began with other records, and `is_anew` is False.
    """
    for target in targets:
        name = f"evaluation-{target.task.id}"
        known = _known(job, name)
        if known not in (None, target.set_id) and not is_anew:
            raise DataError(
                f"methods are compared on the same records alone: the evaluation of target {target.task.name} in this store "
                f"began with records {known}, got {target.set_id}; give the recipe that it began with, or begin anew on the "
                "records of today with --anew, which keeps what depends on none that is new"
            )
    if not job.dry_run:
        for target in targets:
            put_latest(job.store, f"evaluation-{target.task.id}", {"records": target.set_id})


def _known(job: Job, name: str) -> str | None:
    try:
        return str(get_latest(job.store, name, records=str)["records"])
    except ObjectNotFoundError:
        return None


def target_tasks(job: Job, sources: Sequence[str], *, refresh: bool = False) -> list[Task]:
    """All images of each source, read anew with `refresh`, or else the classes that the recipe keeps aside and evaluate.targets.

    Raises:
        ConfigError: there is no target, two have one name, or a source cannot be used.
    """
    reader = job.reader
    kept = None if sources else reader.tasks().target
    tasks = [] if kept is None else [kept]
    tasks += [reader.whole_source(source, refresh=refresh) for source in sources or job.config.evaluate.targets]
    if not tasks:
        raise ConfigError(
            f"an evaluation needs a target, got recipe {job.config.name} that keeps no classes aside and names no "
            "evaluate.targets; give images with --data, or set one of them"
        )
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise ConfigError(f"targets must have different names, got {', '.join(names)}; name each source once")
    return tasks


def _target(job: Job, task: Task, records: Sequence[Record], meta_ids: Sequence[str]) -> Target:
    seed, num_shown = job.config.collect.seed, job.config.meta.support_students
    teacher = _teacher(job, task, records)
    runs = [record for record in records if record.run.teacher == teacher]
    first = sorted((record for record in runs if record.run.seed == seed), key=lambda record: record.run.id)
    finished = [record for record in first if record.result.status is Status.FINISHED]
    if len(finished) < MIN_STUDENTS + num_shown:
        raise DataError(
            f"a target needs at least {MIN_STUDENTS + num_shown} finished students to rank, got {len(finished)} of task "
            f"{task.name} with the recipe's student.* and collect.seed={seed}; collect more of them, such as with "
            "collect.target_students"
        )
    shown, ranked = split_support(len(finished), num_shown, task.name)
    students = {record.run.student: [accuracy_pct(record)] for record in finished}
    for record in runs:
        if record.run.seed != seed and record.run.student in students and record.result.status is Status.FINISHED:
            students[record.run.student].append(accuracy_pct(record))
    own = {"target": [r.run.id for r in finished], "shown": num_shown}
    return Target(
        task=task,
        teacher=teacher,
        ranked=tuple(finished[index] for index in ranked.tolist()),
        shown=tuple(finished[index] for index in shown.tolist()),
        diverged=len(first) - len(finished),
        runs_pct=tuple(tuple(sorted(of_student)) for of_student in students.values()),
        run_ids=tuple(sorted(record.run.id for record in runs)),
        own_id=content_id(own),
        set_id=content_id({**own, "meta": meta_ids}),
    )


def _teacher(job: Job, task: Task, records: Sequence[Record]) -> str:
    """The recipe's teacher, or the only one that students of the task were distilled from."""
    planned = teachers.run_of(job, task).id
    found: Mapping[str, None] = dict.fromkeys(record.run.teacher for record in records if record.run.teacher)
    if planned in found or not found:
        return planned
    if len(found) > 1:
        raise DataError(
            f"the students of a target must come from one teacher, got {len(found)} on task {task.name} and none of them "
            f"the recipe's ({', '.join(sorted(found))}); set teacher.* as for one of them"
        )
    return next(iter(found))
