"""A small but complete page, in numbers that can be checked by hand. The budget and the data are made up."""

import random
from collections.abc import Sequence

from dass.cost import count_macs, count_params
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student
from dass.report import Final, MetaPoint, Observed, PageData, Phase, RunRow, TaskRow, TuneTrial
from dass.search.ranking import Candidate

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


def scored(student: Student, score: float) -> Candidate:
    """The student at its true cost."""
    num_classes = len(CLASSES)
    return Candidate(student, score, count_macs(student, RESOLUTION, num_classes), count_params(student, num_classes))


def many_candidates(num: int) -> tuple[Candidate, ...]:
    """`num` different students at made-up costs and scores that tend to rise with them, ranked, led by `BEST`."""
    rng = random.Random(0)
    students = (Student(((8 + i % 50,), (8 + i // 50,), (128,), (256,))) for i in range(num - 1))
    found = [scored(BEST, 82.0)]
    for student in students:
        effort = rng.random()
        found.append(
            Candidate(student, 40 + 25 * effort + 10 * rng.random(), int(10 ** (6 + 2 * effort)), rng.randrange(10**6))
        )
    return tuple(sorted(found, key=lambda candidate: -candidate.score))


def many_runs(num: int) -> tuple[RunRow, ...]:
    """`num` runs of five tasks, two students of each diverged; a comma and a quote stand in every task's name."""
    rng = random.Random(1)
    return tuple(
        RunRow(
            task=f'split "{i % 5}", of five',
            student=Student(((rng.randrange(8, 64),), (64,), (rng.randrange(8, 256),) * rng.randrange(1, 6), (256,))),
            macs=rng.randrange(10**6, 10**9),
            params=rng.randrange(10**4, 10**6),
            accuracy_pct=None if i < 10 else 100 * rng.random(),
            status="diverged" if i < 10 else "finished",
            seed=i % 3,
            epochs=50,
            seconds=600 * rng.random(),
        )
        for i in range(num)
    )


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
        "runs": many_runs(20),
        "tuning": (
            TuneTrial(0, {"lr": 0.001}, "stopped", ((20, 0.1), (40, None), (60, 0.3))),
            TuneTrial(1, {"lr": 0.01}, "finished", ((20, 0.2), (40, 0.5)), (0.5, 0.4, 0.3)),
            TuneTrial(2, {"lr": 0.003}, "finished", ((20, 0.3), (40, 0.4)), (0.6, 0.5, 0.4), is_winner=True),
            TuneTrial(3, {"lr": 9.0}, "failed"),
        ),
        "phases": (Phase("collect", 7500.0), Phase("search", 2.5)),
        "provenance": {"code version": "0.1.0"},
        "notes": ("The classes are few.",),
    }
    return empty_page(**{**everything, **parts})
