"""A meta-trained predictor that ranks students in this process: what the verb `search` does, without a store."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from dass.data.arrays import pack_arrays
from dass.data.batches import ResidentBatches
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.data.splits import assign_parts, whole_task
from dass.errors import ConfigError, DataError, SchemaTooNewError, SpaceError, StoreError
from dass.kd.alone import train_alone
from dass.kd.own_teacher import own_teacher, read_weights
from dass.kd.teacher import SHORT_TEACHER_RECIPE, Teacher, teacher_run
from dass.meta.calibration import Calibration
from dass.meta.method import MetaMethod, epochs_of
from dass.precision import full_float32
from dass.predictor import load_predictor
from dass.records import Recipe
from dass.search.advice import advise
from dass.search.ranking import Ranking
from dass.search.select import SearchConfig, check_made_for, make_scorer, search
from dass.spaces import SearchSpace, get_space
from dass.threads import one_thread
from dass.zoo.files import read_predictor
from dass.zoo.ranked import RankedStudents

Images = str | Path | tuple[torch.Tensor, Sequence[int]] | tuple[torch.Tensor, Sequence[int], Sequence[str]]
Brought = str | Path | Mapping[str, torch.Tensor] | torch.nn.Module | Teacher
Progress = Callable[[str, int, int], None]
"""Called with what is being done - images, teacher, search - how much of it is done, and how much there is."""


def load(file: Path | str | None = None) -> "Pretrained":
    """The predictor of a file that `meta-train --output` or `calibrate --output` wrote; None: the one of the package.

    Raises:
        ConfigError: there is no such file, or it is no predictor's, or its predictor wants measured students, or what
            lies beside it is no calibration of it.
        PredictorMismatchError: it holds a method that looks at images, or was made for a space that is another by now.
        SchemaTooNewError: a newer version of this package wrote it.
    """
    found = read_predictor(file)
    try:
        method = load_predictor(found.data)
    except SchemaTooNewError:
        raise
    except StoreError as error:
        raise ConfigError(
            f"a predictor must be a file that `meta-train --output` wrote, got {file}: {error}"
        ) from error
    if method.num_support:
        raise ConfigError(
            f"load() needs a predictor that adapts to the teacher alone, got one that adapts to {method.num_support} "
            "measured students too; meta-train one with meta.support_students=0"
        )
    space = get_space(method.spec.space)
    check_made_for(method.spec, space)
    return Pretrained(method, space, found.calibration)


class Pretrained:
    """A predictor with its search space; it knows for which resolution it was made.

    method: any that adapts to a teacher alone. calibration: how far it can be trusted; None where that is unknown.
    """

    def __init__(self, method: MetaMethod, space: SearchSpace, calibration: Calibration | None = None) -> None:
        self.method = method
        self.space = space
        self.calibration = calibration

    @property
    def resolution(self) -> int:
        """Side of the images that it was made for, in pixels."""
        return self.method.spec.resolution

    def __repr__(self) -> str:
        return f"Pretrained(space {self.space.name}, {self.resolution} px)"

    @full_float32()
    def rank(
        self,
        images: Images,
        teacher: Brought | None = None,
        *,
        max_macs: int | None = None,
        max_macs_ratio: float | None = None,
        max_params: int | None = None,
        candidates: int = 3000,
        seed: int = 0,
        valid_fraction: float = 0.2,
        test_fraction: float = 0.2,
        teacher_recipe: Recipe = SHORT_TEACHER_RECIPE,
        device: torch.device | str = "cpu",
        progress: Progress = lambda *_: None,
    ) -> RankedStudents:
        """Students in the budget, by the accuracy predicted for them after distillation from this teacher on these images.

        The ranking is that of the verb `search` under the same settings, on a CPU to the last bit.

        Args:
            images: a source as the verbs take it, such as `imagefolder:photos`; the `Path` of a folder or of a Parquet
                file; or tensors (images, labels) or (images, labels, class names), see `pack_arrays`.
            teacher: of the largest architecture of the space and of the classes of the images: a safetensors file, a
                state dict, a module, or a `Teacher` with its accuracy on valid; None: one is trained here.
            max_macs: budget in multiply-adds per image.
            max_macs_ratio: the same as a share of the teacher's; not both.
            max_params: budget in trainable parameters.
            candidates: students to score.
            seed: of the students drawn; the cut into parts is that of the verbs under `data.seed=0`.
            valid_fraction: share of each class that is cut off where the images have no valid part.
            test_fraction: the same of a test part.
            teacher_recipe: of a teacher that is trained here.
            device: where students are embedded, scored and later distilled.
            progress: called as work goes on.

        Raises:
            ConfigError: an argument is not legal, a teacher's file cannot be read, or the teacher's training diverged.
            DataError: the images cannot be used.
            SpaceError: the teacher does not fit the space or the classes.
            BudgetError: no student is within the budget.
        """
        config = SearchConfig(
            candidates=candidates, seed=seed, max_macs=max_macs, max_macs_ratio=max_macs_ratio, max_params=max_params
        )
        place = _usable(device)
        pack = assign_parts(
            self._read(images, partial(progress, "images")), valid_fraction=valid_fraction, test_fraction=test_fraction
        )
        task = whole_task(pack, pack.name)
        budget = config.feasible_budget(self.space, task.resolution, task.num_classes)
        data = ResidentBatches.of(pack, task, place)
        known = self._teacher(teacher, teacher_recipe, data, partial(progress, "teacher"))
        with one_thread():
            scorer = make_scorer(self.method, self.space, known, data=data, device=place)
        strategy, ranking = config.begin(self.space, budget, task.resolution, task.num_classes), Ranking()
        for batch in search(strategy, scorer, config, task.resolution, task.num_classes):
            ranking.add(batch)
            progress("search", ranking.scored, candidates)
        return RankedStudents(
            ranking,
            budget,
            self.space,
            known,
            data,
            is_selected=self.method.is_selected,
            advice=advise(
                self.calibration,
                scorer,
                self.space,
                known,
                task.num_classes,
                [each.score for each in ranking.ranked],
                epochs=epochs_of(self.method.spec),
            ),
        )

    def _read(self, images: Images, progress: Callable[[int, int], None]) -> Pack:
        """The images as a pack of the predictor's resolution."""
        if isinstance(images, str | Path):
            return read_source(_spec_of(images), self.resolution, progress)
        if not isinstance(images, tuple) or len(images) not in (2, 3):
            raise DataError(
                "images must be a source, a path, or (images, labels) with or without class names, got "
                f"{type(images).__name__}; for example 'imagefolder:photos'"
            )
        pack = pack_arrays(*images)
        if pack.resolution != self.resolution:
            raise DataError(
                f"images must have the predictor's resolution, {self.resolution} px, got {pack.resolution}; resize them first"
            )
        return pack

    def _teacher(
        self, teacher: Brought | None, recipe: Recipe, data: ResidentBatches, progress: Callable[[int, int], None]
    ) -> Teacher:
        """The teacher, checked; trained or measured where it is not yet."""
        if teacher is None:
            trained = train_alone(teacher_run(data.task, self.space, recipe), data, None, progress)
            return Teacher(trained.run.id, trained.run.student, trained.weights, trained.accuracy_pct)
        if isinstance(teacher, Teacher):
            if teacher.student != self.space.largest:
                raise SpaceError(
                    f"a teacher must be the largest network of space {self.space.name}, {self.space.largest.key}, got "
                    f"{teacher.student.key}; give one of that architecture, or leave it out"
                )
            teacher.check(data.task.num_classes)
            return teacher
        state = read_weights(Path(teacher)) if isinstance(teacher, str | Path) else _state_of(teacher)
        return own_teacher(state, self.space.largest, data)


def _spec_of(images: str | Path) -> str:
    """A source as `read_source` takes it."""
    if isinstance(images, str):
        return images
    return f"{'parquet' if images.suffix.lower() == '.parquet' else 'imagefolder'}:{images}"


def _state_of(teacher: Mapping[str, torch.Tensor] | torch.nn.Module) -> Mapping[str, torch.Tensor]:
    state = teacher.state_dict() if isinstance(teacher, torch.nn.Module) else teacher
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ConfigError(
            "a teacher must be a safetensors file, a state dict, a module or a Teacher, got "
            f"{type(teacher).__name__}; give one of these, or leave it out to train one here"
        )
    return state


def _usable(device: torch.device | str) -> torch.device:
    """The device, if torch can compute on it here."""
    try:
        probe = torch.zeros(1, device=device)
        probe.item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"device must be one that torch can use here, got {device!r} ({reason}); use 'cpu'"
        ) from error
    return probe.device
