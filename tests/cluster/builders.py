"""Runs, records and stores for the tests of the cluster layer, by hand and drawn by hypothesis."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from hypothesis import strategies as st

from cluster.objects import Entry
from dass.errors import ObjectNotFoundError
from dass.records import CurvePoint, Provenance, Recipe, Record, Result, Run, Status, Student

OWN_TEACHER = "e" * 64  # a SHA-256: a user's own weights, no run to wait for
PROVENANCE = Provenance(
    started_at="2025-01-02T03:04:05+00:00",
    seconds=12.5,
    attempt=1,
    lane="lane-0",
    device="cpu",
    threads=1,
    memory_format="contiguous",
    code_version="0.1.0",
    versions={"torch": "2.13.0", "python": "3.11"},
)
POINT = CurvePoint(epoch=5, train_loss=1.5, valid_loss=1.25, valid_accuracy_pct=62.5)


def make_run(
    number: int, *, teacher: str | None = "e" * 64, seed: int = 0, task: str = "task-a", epochs: int = 50
) -> Run:
    """A run whose student is told apart by `number`."""
    return Run(task, teacher, Student(((16, 32), (64, number + 1))), Recipe(epochs=epochs), seed)


def make_record(run: Run, *, attempt: int = 1, incarnation: int = 0, status: Status = Status.FINISHED) -> Record:
    result = Result(status, (POINT,), 10.0, 62.5, 62.5, 1.25, diverged_epoch=3 if status is Status.DIVERGED else None)
    return Record(run, result, 1000, 200, 10, 32, replace(PROVENANCE, attempt=attempt, incarnation=incarnation))


@dataclass
class RemoteMemoryStore:
    """A second ObjectStore, kept in memory, that claims to be remote and can lose objects between LIST and GET."""

    objects: dict[str, bytes] = field(default_factory=dict)
    gone_at_get: dict[str, dict[str, bytes]] = field(default_factory=dict)  # key -> objects that replace it
    is_remote: bool = True
    url: str = "memory"
    reads: list[str] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self.objects.setdefault(key, data) is data

    def get(self, key: str) -> bytes:
        self.reads.append(key)
        if key in self.gone_at_get:
            self.objects.update(self.gone_at_get.pop(key))
            del self.objects[key]
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        return self.objects[key]

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def exists(self, key: str) -> bool:
        return key in self.objects

    def size(self, key: str) -> int:
        if key not in self.objects:
            raise ObjectNotFoundError(key)
        return len(self.objects[key])

    def list(self, prefix: str = "") -> Iterator[str]:
        self.lists.append(prefix)
        return iter(sorted(key for key in self.objects if key.startswith(prefix)))

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        return (Entry(key, len(self.objects[key]), datetime.now(UTC)) for key in self.list(prefix))

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def check_writable(self) -> None:
        pickle.dumps(self.objects)


_text = st.text(max_size=8)
_loss = st.floats(allow_nan=False)  # equal to itself; may be infinite
_accuracy = st.floats(0, 100)
_count = st.integers(0, 2**31 - 1)
_unit = st.floats(0, 1)

students = st.builds(
    Student,
    st.lists(st.lists(st.integers(1, 4096), max_size=4).map(tuple), max_size=4).map(tuple),
    st.sampled_from(["small_resnet", "ofa_resnet"]),
)
recipes = st.builds(
    Recipe,
    loss=st.sampled_from(["kd", "kd_paper", "ce"]),
    temperature=st.floats(0.1, 100),
    alpha=_unit,
    scale_by_t2=st.booleans(),
    label_smoothing=_unit,
    epochs=st.integers(1, 1000),
    batch_size=st.integers(1, 1024),
    lr=st.floats(1e-6, 10),
    momentum=st.floats(0, 0.99),
    weight_decay=_unit,
    init=st.sampled_from(["copy_paste_first", "copy_paste_uniform", "scratch"]),
    crop_padding=st.none() | st.integers(0, 32),
    eval_every=st.integers(1, 100),
)
runs = st.builds(
    Run,
    st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
    st.none() | _text,
    students,
    recipes,
    st.integers(0, 2**63 - 1),
)
points = st.builds(CurvePoint, st.integers(1, 1000), _loss, _loss, _accuracy)
results = st.builds(
    Result,
    st.sampled_from(Status),
    st.lists(points, max_size=3).map(tuple),
    _accuracy,
    st.none() | _accuracy,
    st.none() | _accuracy,
    st.none() | _loss,
    st.none() | _accuracy,
    st.none() | _count,
)
provenances = st.builds(
    Provenance,
    _text,
    st.floats(0, 1e9),
    _count,
    _text,
    _text,
    _count,
    _text,
    _text,
    st.dictionaries(_text, _text, max_size=3),
    _count,
)
records = st.builds(
    Record, runs, results, st.integers(0, 2**62), st.integers(0, 2**62), _count, _count, provenances, st.none() | _text
)
