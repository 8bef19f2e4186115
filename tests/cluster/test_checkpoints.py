"""Checkpoints under tokens: which one a new lease goes on from."""

from pathlib import Path

import pytest

from cluster.checkpoints import Token, find_saved, get_checkpoint, put_checkpoint, remove_checkpoints
from cluster.objects import FolderStore
from dass.data.batches import ResidentBatches
from dass.data.sources import read_source
from dass.data.splits import assign_parts, class_splits
from dass.errors import ObjectNotFoundError, StoreError
from dass.kd.cohort import Cohort, Position
from dass.kd.teacher import teacher_run
from dass.records import Recipe, Run
from dass.spaces import get_space
from tests.cluster.stores import WrappedStore

RECIPE = Recipe(loss="ce", init="scratch", epochs=1, batch_size=16, flip=0.0, crop_padding=1)


@pytest.fixture(scope="module")
def states() -> tuple[Run, list[bytes]]:
    """A real run and its state after 2, 4 and 6 steps."""
    pack = assign_parts(read_source("digits", 8), valid_fraction=0.4, test_fraction=0.2)
    task = class_splits(pack, [(0, 1)])[0]
    run = teacher_run(task, get_space("smoke"), RECIPE)
    cohort = Cohort([run], ResidentBatches.of(pack, task), None, yield_every=2)
    found = []
    for progress in cohort.train():
        if not progress.ended:
            found.append(cohort.state(run.id))
    return run, found[:3]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def test_the_highest_token_is_found_with_its_position(store: FolderStore, states: tuple[Run, list[bytes]]) -> None:
    run, (first, second, third) = states
    put_checkpoint(store, run.id, Token(1, 9), first)
    put_checkpoint(store, run.id, Token(2, 1), third)
    put_checkpoint(store, run.id, Token(1, 10), second)
    saved = find_saved(store, [run.id, "f" * 32])
    assert saved.keys() == {run.id}
    assert (saved[run.id].token, saved[run.id].position) == (Token(2, 1), Position(0, 6))
    assert get_checkpoint(store, run.id, Token(2, 1)) == third


def test_a_later_state_of_one_lease_replaces_the_earlier(store: FolderStore, states: tuple[Run, list[bytes]]) -> None:
    run, (first, second, _) = states
    put_checkpoint(store, run.id, Token(1, 1), first)
    put_checkpoint(store, run.id, Token(1, 1), second)
    assert find_saved(store, [run.id])[run.id].position == Position(0, 4)


def test_a_damaged_checkpoint_gives_way_to_an_older_one(store: FolderStore, states: tuple[Run, list[bytes]]) -> None:
    run, (first, second, _) = states
    put_checkpoint(store, run.id, Token(1, 1), first)
    put_checkpoint(store, run.id, Token(1, 2), second[: len(second) // 2])
    assert find_saved(store, [run.id])[run.id].token == Token(1, 1)


class UnreadableStore(WrappedStore):
    """Lists everything and can read nothing, for now."""

    def get(self, key: str) -> bytes:
        raise StoreError(f"the store must answer, cannot get {key}; try again later")


def test_a_checkpoint_that_cannot_be_read_now_is_not_taken_for_damaged(
    store: FolderStore, states: tuple[Run, list[bytes]]
) -> None:
    run, (first, *_) = states
    put_checkpoint(store, run.id, Token(1, 1), first)
    with pytest.raises(StoreError, match="the store must answer"):
        find_saved(UnreadableStore(store), [run.id])


def test_a_state_of_another_run_is_not_taken(store: FolderStore, states: tuple[Run, list[bytes]]) -> None:
    put_checkpoint(store, "e" * 32, Token(1, 1), states[1][0])
    assert find_saved(store, ["e" * 32]) == {}


def test_removing_takes_all_tokens_of_one_run_only(store: FolderStore, states: tuple[Run, list[bytes]]) -> None:
    run, (first, *_) = states
    other = "d" * 32
    for token in (Token(1, 1), Token(3, 2)):
        put_checkpoint(store, run.id, token, first)
    put_checkpoint(store, other, Token(1, 1), first)
    remove_checkpoints(store, run.id)
    assert list(store.list("checkpoints/")) == [f"checkpoints/{other}/1-1"]
    with pytest.raises(ObjectNotFoundError):
        get_checkpoint(store, run.id, Token(1, 1))
