import math
from pathlib import Path

import duckdb
import pytest
import torch

from cluster.objects import FolderStore
from cluster.scores import ScoreLedger
from dass.errors import StoreError
from dass.spaces import get_space

STUDENTS = get_space("paper5").sample(50, torch.Generator().manual_seed(0))
SCORES = (100 * torch.rand(50, generator=torch.Generator().manual_seed(1))).tolist()


@pytest.fixture
def ledger(tmp_path: Path) -> ScoreLedger:
    return ScoreLedger(FolderStore(tmp_path), "0123")


def test_scores_come_back_bit_for_bit(ledger: ScoreLedger) -> None:
    ledger.put(3, STUDENTS, [*SCORES[:-1], math.nan])
    *found, last = ledger.get(3, STUDENTS) or []
    assert found == SCORES[:-1]
    assert math.isnan(last)


def test_a_batch_is_found_under_its_number_and_students_alone(ledger: ScoreLedger) -> None:
    ledger.put(0, STUDENTS, SCORES)
    ledger.put(0, STUDENTS[:20], SCORES[:20])
    assert ledger.get(0, STUDENTS) == SCORES
    assert ledger.get(0, STUDENTS[:20]) == SCORES[:20]
    assert ledger.get(1, STUDENTS) is None
    assert ledger.get(0, STUDENTS[::-1]) is None
    assert ScoreLedger(ledger.store, "4567").get(0, STUDENTS) is None


def test_it_is_plain_parquet(ledger: ScoreLedger, tmp_path: Path) -> None:
    ledger.put(0, STUDENTS, SCORES)
    rows = duckdb.execute(
        "SELECT student, score FROM read_parquet(?)", [f"{tmp_path}/searches/0123/*.parquet"]
    ).fetchall()
    assert rows == [(student.key, score) for student, score in zip(STUDENTS, SCORES, strict=True)]


@pytest.mark.parametrize("damage", ["truncated", "other rows"])
def test_a_damaged_batch_is_an_error_that_names_it(damage: str, ledger: ScoreLedger) -> None:
    ledger.put(0, STUDENTS, SCORES)
    (key,) = ledger.store.list()
    if damage == "truncated":
        ledger.store.put(key, ledger.store.get(key)[:-10])
    else:
        ledger.put(1, STUDENTS[:5], SCORES[:5])
        other = next(each for each in ledger.store.list() if each != key)
        ledger.store.put(key, ledger.store.get(other))
    with pytest.raises(StoreError, match=rf"^{key} must hold .*; delete the object"):
        ledger.get(0, STUDENTS)
