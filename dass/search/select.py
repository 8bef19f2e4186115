"""The search itself: a strategy proposes students in the budget, a scorer values them, the best come first."""

from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from dass.cost import count_macs, count_params
from dass.data.batches import BatchSource
from dass.embed import Embedder, MapPrecision, draw_noise, noise_sha
from dass.errors import ConfigError, DataError, PredictorMismatchError
from dass.explained import TeacherView, images_of
from dass.kd.teacher import Teacher
from dass.meta.episodes import ImageFeatures, Measured, MetaTask, Support
from dass.meta.method import AdaptedMethod, MetaMethod, MethodSpec
from dass.records import Record, Status, Student
from dass.search.budget import Budget, check_feasible
from dass.search.ranking import Candidate
from dass.search.rounds import Chunk, Rounds
from dass.search.strategies import Strategy, StrategyName, make_strategy
from dass.spaces.space import Sampler, SearchSpace
from dass.threads import one_thread

MAX_THREADS = 8  # the Python between two convolutions runs on one thread at a time: more threads wait for each other


@dataclass(frozen=True)
class SearchConfig:
    """How candidates are proposed and what they may cost."""

    candidates: int = field(default=3000, metadata={"help": "students to score"})
    strategy: StrategyName = field(default="random", metadata={"help": "who proposes students"})
    sampler: Sampler = field(default="uniform", metadata={"help": "how random students are drawn"})
    seed: int = field(default=0, metadata={"help": "seed of the strategy"})
    max_macs: int | None = field(default=None, metadata={"help": "budget in multiply-adds per image"})
    max_macs_ratio: float | None = field(default=None, metadata={"help": "budget as a share of the teacher's MACs"})
    max_params: int | None = field(default=None, metadata={"help": "budget in trainable parameters"})
    batch: int = field(default=500, metadata={"help": "students asked of the strategy at once"})
    chunk: int = field(
        default=250, metadata={"help": "the most students scored by one call; a part of what fixes a score's last bits"}
    )
    precision: MapPrecision = field(
        default="float32", metadata={"help": "of students' maps; bfloat16 is faster for wide networks alone"}
    )

    def __post_init__(self) -> None:
        for name in ("candidates", "batch", "chunk", "max_macs", "max_params"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"search.{name} must be >= 1, got {value}; set search.{name}")
        if self.max_macs is not None and self.max_macs_ratio is not None:
            raise ConfigError(
                "only one of search.max_macs and search.max_macs_ratio may be set, got "
                f"{self.max_macs} and {self.max_macs_ratio}; drop one with search.max_macs_ratio=none or search.max_macs=none"
            )
        if self.max_macs_ratio is not None and not 0 < self.max_macs_ratio <= 1:
            raise ConfigError(
                f"search.max_macs_ratio must be in (0, 1], got {self.max_macs_ratio}; set a share of the teacher"
            )

    def budget(self, teacher_macs: int) -> Budget:
        """The budget in absolute numbers."""
        ratio = self.max_macs_ratio
        return Budget(self.max_macs if ratio is None else int(ratio * teacher_macs), self.max_params)

    def feasible_budget(self, space: SearchSpace, resolution: int, num_classes: int) -> Budget:
        """The budget for students of `space`, whose largest network the teacher is.

        Raises:
            BudgetError: no student is within it.
        """
        budget = self.budget(count_macs(space.largest, resolution, num_classes))
        check_feasible(budget, space, resolution, num_classes)
        return budget

    def begin(self, space: SearchSpace, budget: Budget, resolution: int, num_classes: int) -> Strategy:
        """The strategy, at its beginning."""
        place = (space, budget, resolution, num_classes)
        return make_strategy(self.strategy, *place, self.seed, sampler=self.sampler)


class Scorer(Protocol):
    """Ranks students for one task: higher is better. What the value means is the scorer's own."""

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,) in the order of `students`, on the CPU; may be called from several threads at once."""

    def to(self, device: torch.device) -> "Scorer":
        """The same scorer, computing on this device."""


class PredictorScorer:
    """A meta-learned method that has looked at the task, as a scorer: predicted accuracy after distillation, percent."""

    def __init__(
        self, adapted: AdaptedMethod, embedder: Embedder, space: SearchSpace, view: TeacherView | None = None
    ) -> None:
        self._adapted = adapted
        self._embedder = embedder
        self._space = space
        self._view = view if adapted.needs_explained else None

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): predicted accuracy in percent."""
        arch = self._space.encode_many(students)
        device, scores = self._embedder.device, torch.empty(len(students))
        explained = None if self._view is None else self._view.score(students).to(device)
        with torch.inference_mode():
            if not self._adapted.needs_maps:
                arch = arch.to(device)
                return self._adapted.score(arch.new_empty(len(students), 0, 0, 0), arch, explained).cpu()
            for indices, maps in self._embedder.stream(students):
                seen = None if explained is None else explained[indices]
                scores[indices] = self._adapted.score(maps, arch[indices].to(device), seen).cpu()
        return scores

    def map_of(self, student: Student) -> torch.Tensor:
        """The student's map, (C, h, w) on the CPU."""
        return self._embedder.maps([student])[0].cpu()

    def to(self, device: torch.device) -> "PredictorScorer":
        """The same scorer, computing on this device."""
        view = None if self._view is None else self._view.to(device)
        return PredictorScorer(self._adapted.to(device), self._embedder.to(device), self._space, view)


class StoredScorer:
    """A meta-learned method that has looked at the task, as a scorer of students whose maps are known already."""

    def __init__(self, adapted: AdaptedMethod, task: MetaTask, students: Sequence[Student]) -> None:
        """students: those of `task`, in its order."""
        self._adapted = adapted
        self._task = task
        self._row_of = {student: row for row, student in enumerate(students)}

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,): predicted accuracy in percent; DataError for a student whose map is not known."""
        if unknown := [student.key for student in students if student not in self._row_of]:
            raise DataError(f"only students whose maps are stored can be scored, got {unknown[0]}; give its teacher")
        rows = torch.tensor([self._row_of[student] for student in students], device=self._task.maps.device)
        with torch.inference_mode():
            return self._adapted.score(*self._task.students(rows).seen).cpu()

    def to(self, device: torch.device) -> "StoredScorer":
        """The same scorer, computing on this device."""
        task = replace(self._task, maps=self._task.maps.to(device))
        return StoredScorer(self._adapted.to(device), task, list(self._row_of))


def make_scorer(
    method: MetaMethod,
    space: SearchSpace,
    teacher: Teacher,
    *,
    images: ImageFeatures | None = None,
    data: BatchSource | None = None,
    measured: Sequence[Record] = (),
    device: torch.device | str = "cpu",
    precision: MapPrecision = "float32",
) -> PredictorScorer:
    """Any meta-learned method as a scorer for a new task: it looks at the task, and adapts if that is its way.

    teacher: of the task, with its accuracy there. images: features of the task's train part, for a method that looks at
    images. data: the task's images, for one that compares what students and teacher see in them. measured: records of
    students distilled from this teacher on the task, `method.num_support` of them; leave them out where you measure how well
    the scorer ranks (`dass.meta.episodes.split_support`). precision: of the maps.

    Raises:
        PredictorMismatchError: the method was made for another space or noise, or wants images, others or more records.
        DataError: a measured run diverged, or is of another teacher.
    """
    check_made_for(method.spec, space)
    noise = draw_noise(method.spec.resolution).to(device)
    embedder = Embedder(teacher.state, teacher.student, noise, method.spec.remap_mode, precision)
    view = _view(method, teacher, data, device, precision) if method.needs_explained else None
    support = Support(
        teacher_arch=space.encode(teacher.student),
        teacher_map=embedder.maps([teacher.student])[0],
        teacher_accuracy_pct=teacher.accuracy_pct,
        images=images,
        students=_measured(space, teacher, measured, embedder, view) if measured else None,
    )
    return PredictorScorer(method.adapt(support), embedder, space, view)


def _view(
    method: MetaMethod, teacher: Teacher, data: BatchSource | None, device: torch.device | str, precision: MapPrecision
) -> TeacherView:
    if data is None:
        raise PredictorMismatchError(
            "a predictor that compares what students and teacher see needs images of the task, got none; give data"
        )
    return TeacherView(teacher, images_of(data).to(device), method.spec.remap_mode, precision)


def check_made_for(spec: MethodSpec, space: SearchSpace) -> None:
    """Raise PredictorMismatchError, naming both values, unless the method was made for this space and for our noise."""
    for name, wanted, made_for in (
        ("space", space.name, spec.space),
        ("num_channels", space.num_channels, spec.num_channels),
        ("arch_dim", space.encoding_dim, spec.arch_dim),
        ("noise", noise_sha(draw_noise(spec.resolution)), spec.noise_sha),
    ):
        if wanted != made_for:
            raise PredictorMismatchError(
                f"a predictor ranks only what it was made for: its {name} is {made_for!r}, got {wanted!r}; use a "
                "predictor meta-trained for that"
            )


def _measured(
    space: SearchSpace, teacher: Teacher, records: Sequence[Record], embedder: Embedder, view: TeacherView | None
) -> Measured:
    for record in records:
        if record.result.best_accuracy_pct is None or record.result.status is not Status.FINISHED:
            raise DataError(
                f"a measured student must have finished, got run {record.run.id}, which {record.result.status}; leave it out"
            )
        if record.run.teacher != teacher.id:
            raise DataError(
                f"a measured student must be distilled from teacher {teacher.id}, got run {record.run.id} of "
                f"{record.run.teacher}; give records of this task"
            )
    students = [record.run.student for record in records]
    targets = torch.tensor([record.result.best_accuracy_pct for record in records], dtype=torch.float32)
    explained = None if view is None else view.score(students)
    return Measured(space.encode_many(students), embedder.maps(students), targets, explained)


def search(
    strategy: Strategy,
    scorer: Scorer,
    config: SearchConfig,
    resolution: int,
    num_classes: int,
    *,
    threads: int | None = None,
) -> Iterator[list[Candidate]]:
    """Yields the candidates of each batch as they are scored, until `config.candidates` are, or none are left.

    threads: how many chunks are scored at the same time, each on one thread; None: one per thread of torch, at most
    MAX_THREADS. The scores do not depend on it. Proposals run ahead by as many chunks where the strategy allows it.
    """
    threads = min(torch.get_num_threads(), MAX_THREADS) if threads is None else threads
    rounds = Rounds(strategy, config.candidates, config.batch, config.chunk)
    running: dict[Future[torch.Tensor], Chunk] = {}
    with one_thread(), _pool(threads) as pool:
        while not rounds.is_done:
            while len(running) <= threads and (chunk := rounds.take()):  # one waits, so that no thread does
                running[pool.submit(scorer.score, chunk)] = chunk
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                for batch in rounds.put(running.pop(future), future.result().tolist()):
                    yield to_candidates(batch.students, batch.in_order, resolution, num_classes)


def to_candidates(
    students: Sequence[Student], scores: Sequence[float], resolution: int, num_classes: int
) -> list[Candidate]:
    """The students with their scores and what they cost."""
    return [
        Candidate(student, score, count_macs(student, resolution, num_classes), count_params(student, num_classes))
        for student, score in zip(students, scores, strict=True)
    ]


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads on each of which torch computes alone; what has not begun when the `with` block ends is dropped."""
    pool = ThreadPoolExecutor(threads, "score", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
