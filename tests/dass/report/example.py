"""A small but complete page, in numbers that can be checked by hand. The budget and the data are made up."""

import random
from collections.abc import Sequence

from dass.cost import count_macs, count_params
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student
from dass.report import Final, MetaPoint, Observed, PageData, Phase, ScoredPoint, TaskRow

CLASSES = ("cat", "dog", "ship")
RESOLUTION = 32
TEACHER = Student(((32, 32), (64, 64), (128, 128), (256, 256)))
BEST = Student(((16, 32), (64,), (96, 128), (256,)))
RANDOM = Student(((32,), (32, 64), (128,), (128, 256)))
LARGEST = Student(((32, 32), (64, 64), (128,), (256,)))


def record(
    student: Student, accuracy: float | None, *, test: float | None = None, seed: int = 0, epochs: int = 50
) -> Record:
    """A record that ends at `accuracy` on valid; None makes a run that diverged in its fifth epoch."""
    epochs_seen = (1, 5) if accuracy is None else (1, epochs // 2, epochs)
    reached = 20.0 if accuracy is None else accuracy
    curve = tuple(CurvePoint(epoch, 2 / epoch, 1.0, reached * epoch / epochs_seen[-1]) for epoch in epochs_seen)
    return Record(
        run=Run("a" * 32, "b" * 32, student, Recipe(epochs=epochs), seed),
        result=Result(
            status=Status.DIVERGED if accuracy is None else Status.FINISHED,
            curve=curve,
            init_accuracy_pct=33.0,
            best_accuracy_pct=accuracy,
            final_accuracy_pct=accuracy,
            final_loss=1.0,
            test_accuracy_pct=test,
            diverged_epoch=5 if accuracy is None else None,
        ),
        macs=count_macs(student, RESOLUTION, len(CLASSES)),
        params=count_params(student, len(CLASSES)),
        num_classes=len(CLASSES),
        resolution=RESOLUTION,
        provenance=Provenance("2025-01-01T00:00:00Z", 60.0, 1, "lane-0", "cpu", 1, "contiguous", "0", {}),
    )


def final(role: str, student: Student, tests: Sequence[float], predicted: float | None = 80.0) -> Final:
    """A final with one seed per accuracy on test, each one point higher on valid."""
    records = tuple(record(student, test + 1, test=test, seed=seed) for seed, test in enumerate(tests))
    return Final(role, student, predicted, records)


def scored(student: Student, score: float) -> ScoredPoint:
    """The student at its true cost."""
    num_classes = len(CLASSES)
    return ScoredPoint(student, score, count_macs(student, RESOLUTION, num_classes), count_params(student, num_classes))


def many_candidates(num: int) -> tuple[ScoredPoint, ...]:
    """`num` points at made-up costs, ranked, led by `BEST`."""
    rng = random.Random(0)
    points = [
        ScoredPoint(RANDOM, 50 + 20 * rng.random(), rng.randrange(10**8, 10**9), rng.randrange(10**6))
        for _ in range(num - 1)
    ]
    return (scored(BEST, 82.0), *sorted(points, key=lambda point: -point.score))


def empty_page(**parts: object) -> PageData:
    """Before anything was made."""
    return PageData(
        **{  # type: ignore[arg-type]
            "title": "A student for animals",
            "space": "smoke",
            "resolution": RESOLUTION,
            "target": "animals",
            "classes": CLASSES,
            "teacher": None,
            "largest": TEACHER,
            **parts,
        }
    )


def full_page(**parts: object) -> PageData:
    """After everything was made; the recommended student wins clearly."""
    everything: dict[str, object] = {
        "teacher": record(TEACHER, 90.0, test=89.0, epochs=100),
        "max_macs": 150_000_000,
        "candidates": many_candidates(30),
        "finals": (
            final("recommended", BEST, (84.0, 85.0, 86.0), 82.0),
            final("random", RANDOM, (79.0, 80.0, 81.0), 70.0),
            final("largest", LARGEST, (82.0, 81.0, 80.0), None),
        ),
        "observed": tuple(
            Observed(scored(student, score), record(student, actual))
            for student, score, actual in (
                (Student(((8,), (64,), (128,), (256,))), 1.0, 60.0),
                (Student(((16,), (64,), (128,), (256,))), 2.0, 62.0),
                (Student(((24,), (64,), (128,), (256,))), 3.0, 61.0),
                (Student(((32,), (64,), (128,), (256,))), 5.0, 65.0),
            )
        ),
        "tasks": (
            TaskRow("plants", "meta-train", 5, 70.0, 4, 3, 1, (50.0, 60.0, 90.0)),
            TaskRow("animals", "target", 3, None, 2, 0, 0),
        ),
        "meta": (MetaPoint(1, 0.9), MetaPoint(20, 0.5, 0.6), MetaPoint(40, 0.4, 0.8), MetaPoint(60, 0.4, 0.8)),
        "phases": (Phase("collect", 7500.0), Phase("search", 2.5)),
        "provenance": {"code version": "0.1.0"},
        "notes": ("The classes are few.",),
    }
    return empty_page(**{**everything, **parts})
