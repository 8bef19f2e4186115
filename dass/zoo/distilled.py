"""A student that was distilled in this process."""

from pathlib import Path

from dass.cost import count_macs, count_params
from dass.errors import ConfigError
from dass.kd.alone import Trained
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.networks.files import student_bytes
from dass.records import Task
from dass.report.cards import render_card
from dass.report.wording import count, percent


class Distilled:
    """A distilled student; in a notebook its facts and its learning curve.

    network: in eval mode, on the CPU; images go in as float32 (N, 3, R, R), normalised by `dass.data.augment.normalise`,
        and logits (N, C) come out. run: student, recipe and seed. result: its accuracies and its learning curve.
    classes: in the order of the logits. resolution: R, pixels. predicted_pct: what the predictor said before;
        predicted_epochs: after how many epochs the student would have that, where it is known.
    """

    def __init__(
        self, trained: Trained, task: Task, teacher: Teacher, predicted_pct: float | None, predicted_epochs: int | None
    ) -> None:
        self.run = trained.run
        self.result = trained.result
        self.classes = task.classes
        self.resolution = task.resolution
        self.predicted_pct = predicted_pct
        self.predicted_epochs = predicted_epochs
        self.network = build(self.run.student, task.num_classes)
        self.network.load_state_dict(dict(trained.weights))
        self.network.eval()
        self._accuracy_pct = trained.accuracy_pct
        self._task_name = task.name
        self._teacher = teacher

    def save(self, file: Path | str) -> None:
        """Write the student as `distil --output` does; `dass.networks.files.load_student` reads it.

        Raises:
            ConfigError: the file cannot be written.
        """
        data = student_bytes(self.run.student, self.resolution, self.classes, self.network.state_dict())
        try:
            Path(file).write_bytes(data)
        except OSError as error:
            raise ConfigError(
                f"a student must go to a writable path, got {file} ({error.strerror}); correct the path"
            ) from error

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self._facts())
        return "\n".join([self._title(), *(f"{name.ljust(width)}  {value}" for name, value in self._facts())])

    def _repr_html_(self) -> str:
        """Facts and learning curve."""
        from dass.report import figures  # matplotlib loads only for those who draw

        picture = figures.learning(self.result, self._teacher.accuracy_pct, "wide")
        return render_card(self._title(), (), (), self._facts(), picture)

    def _title(self) -> str:
        return f"A student for {self._task_name}"

    def _facts(self) -> list[tuple[str, str]]:
        student, num_classes = self.run.student, len(self.classes)
        macs, largest = (count_macs(each, self.resolution, num_classes) for each in (student, self._teacher.student))
        after = "" if self.predicted_epochs is None else f" after {self.predicted_epochs} epochs"
        facts = [
            ("student", student.key),
            ("accuracy on test", f"{percent(self.result.test_accuracy_pct)} %"),
            (
                "accuracy on valid",
                f"{percent(self._accuracy_pct)} %, the teacher's {percent(self._teacher.accuracy_pct)} %",
            ),
            ("predicted", f"{percent(self.predicted_pct)} %{after}"),
            ("MACs", f"{count(macs)}, the teacher's {count(largest)}"),
            ("parameters", count(count_params(student, num_classes))),
            ("classes", ", ".join(self.classes)),
            ("trained", f"{self.run.recipe.epochs} epochs, seed {self.run.seed}"),
        ]
        return [(name, value) for name, value in facts if name != "predicted" or self.predicted_pct is not None]
