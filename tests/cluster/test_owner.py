"""Who drives a plan: against a real second process, alive and killed."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import owner
from cluster.objects import FolderStore
from cluster.owner import MOST_BEAT_S, Ownership
from dass.errors import ClusterError, StoreError

BEAT_S = 1.0
OTHER = """
import sys, time
from cluster.objects import open_store
from cluster.owner import Ownership
mine = Ownership(open_store(sys.argv[1]), "plan", float(sys.argv[2]))
list(mine.claim(takeover=False))
print("owner", flush=True)
while True:
    mine.keep()
    time.sleep(0.05)
"""


def claimed(store: FolderStore, *, takeover: bool = False, plan: str = "plan") -> tuple[Ownership, int]:
    """The ownership, and how often it was unknown whether the one before lives."""
    mine = Ownership(store, plan, BEAT_S)
    return mine, sum(1 for _ in mine.claim(takeover=takeover))


def other_process(store: FolderStore) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, store.url, str(BEAT_S)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "owner\n"
    return process


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


def elsewhere(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process is on another machine than those before."""
    monkeypatch.setattr(owner, "_host", lambda: "elsewhere")


def test_a_living_owner_is_not_disturbed(store: FolderStore) -> None:
    with other_process(store) as process:
        try:
            with pytest.raises(
                ClusterError, match=rf"beside process {process.pid} on .*; wait for it, stop it, or give --takeover"
            ):
                claimed(store)
            assert claimed(store, plan="another")[1] == 0
            assert process.poll() is None
        finally:
            process.kill()


def test_an_owner_that_was_killed_on_this_machine_is_followed_at_once(store: FolderStore) -> None:
    with other_process(store) as process:
        process.kill()
    mine, looks = claimed(store)
    assert looks == 0
    mine.end()
    assert list(store.list()) == []


def test_an_owner_that_was_killed_elsewhere_is_followed_when_it_stays_silent(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with other_process(store) as process:
        process.kill()
    elsewhere(store, monkeypatch)
    assert claimed(store)[1] > 5
    assert claimed(store)[1] == 0  # our own plan


def test_an_owner_that_is_overtaken_ends(store: FolderStore) -> None:
    with other_process(store) as process:
        _, looks = claimed(store, takeover=True)
        assert looks == 0
        assert process.wait(timeout=60) == 1
    (key,) = store.list()
    assert json.loads(store.get(key))["owner"]["pid"] != process.pid


def test_the_one_that_is_overtaken_says_by_whom_and_leaves_the_plan_alone(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = claimed(store)
    monkeypatch.setattr(first, "_beaten", -1e9)
    claimed(store, takeover=True)
    with pytest.raises(ClusterError, match="that took them over; what is finished is kept"):
        first.keep()
    first.end()
    assert len(list(store.list())) == 1


def test_a_store_that_is_down_ends_no_owner(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, _ = claimed(store)
    monkeypatch.setattr(mine, "_beaten", -1e9)

    def down(*_: object) -> bytes:
        raise StoreError("the store must answer, got nothing; wait")

    monkeypatch.setattr(FolderStore, "get", down)
    mine.keep()
    mine.end()  # what ended the job is told, and not this


@pytest.mark.parametrize(
    "changes",
    [None, {"beat_s": 1e300}, {"beat_s": math.nan}, {"beat_s": -1.0}, {"pid": 2**40}, {"pid": -1}, {"beat": -1}],
    ids=str,
)
def test_a_damaged_sign_of_life_is_named(changes: dict[str, float] | None, store: FolderStore) -> None:
    mine, _ = claimed(store)
    told = json.loads(store.get("owners/plan.json"))
    mine.end()
    owner = {} if changes is None else {**told["owner"], **changes}
    store.put("owners/plan.json", json.dumps({**told, "owner": owner}).encode())
    with pytest.raises(StoreError, match=r"owners/plan\.json"):
        claimed(store)


def test_rare_signs_of_life_are_given_more_often(store: FolderStore) -> None:
    mine = Ownership(store, "plan", 1e9)
    assert list(mine.claim(takeover=False)) == []
    owner = mine._read()
    assert owner is not None
    assert owner.beat_s == MOST_BEAT_S


def test_signs_of_life_differ(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, _ = claimed(store)
    before = mine._read()
    mine.keep()  # too early for the next one
    assert mine._read() == before
    monkeypatch.setattr(mine, "_beaten", -1e9)
    mine.keep()
    assert before is not None
    assert mine._read() == replace(before, beat=before.beat + 1)
