"""A small real store with one object of every kind, and for each kind the code that reads it."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import Token, find_saved, get_checkpoint, put_checkpoint
from cluster.compaction import compact
from cluster.database import RunDatabase, loose_key
from cluster.documents import get_document, get_latest, get_task, put_document, put_latest, put_task
from cluster.events import EventLog, read_events
from cluster.lane_reports import LaneReporter
from cluster.ledger import TrialLedger
from cluster.objects import FolderStore, ObjectStore
from cluster.packs import get_pack, pack_key, put_pack
from cluster.plan import Plan
from cluster.schema import STORE_KEY, check_schema, claim_schema
from cluster.scores import ScoreLedger
from cluster.settings import LaneConfig
from cluster.weights import get_blob, put_blob, put_weights
from dass.baselines.meta_d2a import MetaD2A, MetaD2AConfig, SetPredictor
from dass.baselines.tans import Tans, TansConfig, TansNetwork
from dass.data.pack import Pack
from dass.data.sources import read_source
from dass.data.splits import assign_parts, class_splits
from dass.errors import DassError
from dass.kd.cohort import state_position
from dass.kd.member import Member, Position
from dass.meta.calibration import MIN_STUDENTS, calibrate
from dass.meta.calibration_file import to_document
from dass.meta.episodes import MetaTask
from dass.meta.features import pack_task
from dass.meta.held_out import HeldOut
from dass.meta.novelty import STATISTICS, TeacherSketch
from dass.meta.train import MetaConfig
from dass.meta.tuning import Trial
from dass.networks import build
from dass.networks.files import load_student, student_bytes
from dass.predictor import MetaPredictor, Predictor, PredictorSpec, load_predictor
from dass.records import Recipe, Run, Task
from dass.seeding import generator
from dass.spaces import get_space
from tests.cluster.builders import RemoteMemoryStore, make_record, make_run
from tests.jobs.command import tree

STUDENT = get_space("smoke").smallest
SPEC = PredictorSpec(space="smoke", resolution=8, num_channels=4, arch_dim=3, noise_sha="0", hidden_dim=4)
METHOD_PLACE: dict[str, Any] = {
    "space": "smoke",
    "resolution": 8,
    "num_channels": 4,
    "arch_dim": 3,
    "noise_sha": "0",
    "encoder": "e",
    "num_features": 5,
}
TOKEN = Token(1, 2)
NAME = "0" * 32  # of the searches and tunings here

Reader = Callable[[ObjectStore], object]


@dataclass(frozen=True)
class Kind:
    """One kind of object: where this store has it, and what reads it."""

    key: str
    read: Reader


@cache
def pack_and_task() -> tuple[Pack, Task]:
    """Digits at 8 px, and a task of two of them."""
    pack = assign_parts(read_source("digits", 8))
    return pack, class_splits(pack, [(0, 1)])[0]


@cache
def student_file() -> bytes:
    network = build(STUDENT, 2, generator("student"))
    return student_bytes(STUDENT, 8, ("a", "b"), network.state_dict())


@cache
def meta_d2a_file() -> bytes:
    config = MetaD2AConfig(set_dim=4, num_heads=2, hidden_dim=3)
    return MetaD2A(SetPredictor(config.spec(**METHOD_PLACE), seed=0), 50.0, 10.0).save()


@cache
def tans_file() -> bytes:
    return Tans(TansNetwork(TansConfig(embed_dim=4).spec(**METHOD_PLACE), seed=0)).save()


@cache
def predictor_file() -> bytes:
    model = Predictor(SPEC, seed=0)
    return MetaPredictor(model, {name: torch.ones_like(value) for name, value in model.named_parameters()}).save()


@cache
def features_file() -> bytes:
    arch, maps, accuracies_pct = torch.eye(3), torch.ones(3, 4, 1, 1), torch.arange(3.0)
    return pack_task(MetaTask("x", arch, maps, accuracies_pct, arch[0], maps[0], 50.0, explained=accuracies_pct / 3))


@cache
def calibration_json() -> bytes:
    chance = random.Random(0)

    def numbers(num: int) -> tuple[float, ...]:
        return tuple(chance.uniform(10, 40) for _ in range(num))

    teachers = [TeacherSketch(chance.uniform(20, 50), numbers(len(STATISTICS))) for _ in range(4)]
    found = [
        HeldOut(f"t{number}", f"g{number}", teacher, numbers(MIN_STUDENTS), numbers(MIN_STUDENTS))
        for number, teacher in enumerate(teachers)
    ]
    store = RemoteMemoryStore()
    put_latest(store, NAME, {"calibration": to_document(calibrate(found[:3], elsewhere=found[3:]))})
    (key,) = store.list()
    return store.get(key)


@cache
def lane_report() -> bytes:
    store = RemoteMemoryStore()
    with LaneReporter(store, "lane-0", "queue", torch.device("cpu"), LaneConfig(report_s=60.0)):
        pass
    (key,) = store.list("lanes/")
    return store.get(key)


@cache
def run_and_state() -> tuple[Run, bytes]:
    """A run and a state of it, as a lane saves it."""
    run = Run(pack_and_task()[1].id, None, STUDENT, Recipe(loss="ce", init="scratch"))
    member = Member(run, build(STUDENT, 2, generator("state")), keep_weights=False)
    member.init_accuracy_pct = 50.0
    return run, member.save(Position(1, 0))


def restore(run: Run, state: bytes) -> Position:
    """What a lane does with a state."""
    return Member(run, build(run.student, 2), keep_weights=False).load(state)


def write_store(folder: Path) -> dict[str, Kind]:
    """Fill the store; all of its kinds by name."""
    store = FolderStore(folder)
    claim_schema(store)
    pack, task = pack_and_task()
    put_pack(store, pack)
    put_task(store, task)
    database = RunDatabase(store)
    packed, loose = (make_record(make_run(number, task=task.id)) for number in (1, 2))
    database.add(packed)
    for _ in compact(store, grace_s=0):
        pass
    (packed_key,) = store.list("records/packed/")
    database.add(loose)
    plan = Plan("collect", (packed.run, loose.run))
    put_document(store, "plan", plan.id, plan.to_document())
    put_latest(store, "plan-collect", {"plan": plan.id})
    run, state = run_and_state()
    put_checkpoint(store, run.id, TOKEN, state)
    weights = put_weights(store, build(STUDENT, 2, generator("weights")).state_dict())
    predictor = put_blob(store, predictor_file())
    student = put_blob(store, student_file())
    with EventLog(store, "lane-0") as events:
        events.emit("ended", run=run.id)
    trials, scores = TrialLedger(store, NAME, "trials"), ScoreLedger(store, NAME)
    trials.put(Trial(0, MetaConfig()))
    scores.put(0, [STUDENT], [0.5])
    (trial_key,), (scores_key,) = store.list("tuning/"), store.list("searches/")
    (events_key,) = store.list("events/")
    return {
        "marker": Kind(STORE_KEY, check_schema),
        "loose record": Kind(loose_key(loose.run.id), lambda store: list(RunDatabase(store).scan())),
        "packed record": Kind(packed_key, lambda store: list(RunDatabase(store).scan())),
        "weights": Kind(f"blobs/{weights}", lambda store: get_blob(store, weights)),
        "predictor": Kind(f"blobs/{predictor}", lambda store: load_predictor(store.get(f"blobs/{predictor}"))),
        "student": Kind(f"blobs/{student}", lambda store: load_student(store.get(f"blobs/{student}"))),
        "pack": Kind(pack_key(pack.id), lambda store: get_pack(store, pack.id)),
        "checkpoint": Kind(
            f"checkpoints/{run.id}/{TOKEN}", lambda store: restore(run, get_checkpoint(store, run.id, TOKEN))
        ),
        "checkpoint's position": Kind(
            f"checkpoints/{run.id}/{TOKEN}",
            lambda store: state_position(get_checkpoint(store, run.id, TOKEN)),
        ),
        "task": Kind(f"documents/task/{task.id}.json", lambda store: get_task(store, task.id)),
        "plan": Kind(
            f"documents/plan/{plan.id}.json",
            lambda store: Plan.from_document(get_document(store, "plan", plan.id)),
        ),
        "pointer": Kind(
            "documents/latest/plan-collect.json", lambda store: get_latest(store, "plan-collect", plan=str)
        ),
        "events": Kind(events_key, lambda store: list(read_events(store))),
        "trial": Kind(trial_key, lambda store: TrialLedger(store, NAME, "trials").get(Trial(0, MetaConfig()))),
        "scores": Kind(scores_key, lambda store: ScoreLedger(store, NAME).get(0, [STUDENT])),
    }


def usable_checkpoints(store: ObjectStore) -> int:
    """How many runs a queue would resume."""
    run, _ = run_and_state()
    return len(find_saved(store, [run.id]))


def refusal(store: FolderStore, read: Callable[[FolderStore], object]) -> str:
    """The one line of an error of ours; nothing may have changed."""
    before = tree(store.root)
    with pytest.raises(DassError) as caught:
        read(store)
    assert tree(store.root) == before
    message = str(caught.value)
    assert "; " in message
    assert len(message) < 1000
    return message
