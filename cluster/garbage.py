"""What in a store nothing refers to: found by looking at everything that does, and removed only when asked.

What counts as a reference errs on the safe side: an id anywhere in the JSON of documents/ and tuning/, or in its key,
keeps the blob or the pack of that name, and so does a record that names its weights. Objects younger than `min_age` are
never garbage, whatever refers to them: a blob is written before the record that names it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cluster.checkpoints import FOLDER as CHECKPOINTS
from cluster.checkpoints import Token, is_token
from cluster.database import RunDatabase
from cluster.documents import get_document, list_documents
from cluster.objects import Entry, ObjectStore
from cluster.parallel import each
from cluster.plan import Plan
from cluster.queue import CLAIMS
from cluster.schema import damaged
from dass.json_text import parse_json

MIN_AGE = timedelta(days=1)

_ID = re.compile("[0-9a-f]{32,}")
_DOCUMENTS = ("documents/", "tuning/")
_PREDICTOR = "documents/latest/predictor.json"
_CLAIMS_KEPT = 3
_ONE_WRITER = 0  # the incarnation in the tokens of work that has no queue: meta-training and its tuning


@dataclass(frozen=True)
class Garbage:
    """An object that nothing refers to, and why that is known."""

    key: str
    size_bytes: int
    reason: str


def find_garbage(store: ObjectStore, min_age: timedelta = MIN_AGE, now: datetime | None = None) -> list[Garbage]:
    """All garbage that is at least `min_age` old at `now` (default: the present), sorted by key; changes nothing.

    Raises:
        StoreError: a record or a document is damaged, so that what it refers to is not known.
    """
    old_before = (now or datetime.now(UTC)) - min_age
    entries = {
        folder: list(store.entries(folder)) for folder in ("blobs/", "data/", CHECKPOINTS, CLAIMS)
    }  # first: what is written from now on is no garbage
    database = RunDatabase(store)
    finished: set[str] = set()
    named: set[str] = set()
    for record in database.scan():
        finished.add(record.run.id)
        named.update(filter(None, (record.weights,)))
    named.update(_names(store))
    found = [
        *_unnamed(entries["blobs/"], named, "no record and no document names it"),
        *_unnamed(entries["data/"], named, "no task is cut from it"),
        *_old_checkpoints(store, entries[CHECKPOINTS], finished),
        *_old_claims(entries[CLAIMS]),
    ]
    modified_at = {entry.key: entry.modified_at for some in entries.values() for entry in some}
    return sorted((g for g in found if modified_at[g.key] <= old_before), key=lambda garbage: garbage.key)


def remove(store: ObjectStore, garbage: Sequence[Garbage]) -> Iterator[int]:
    """Remove the objects; how many are gone, after each. Safe to run again."""
    for done, _ in enumerate(each(store, store.delete, [piece.key for piece in garbage]), 1):
        yield done


def _names(store: ObjectStore) -> Iterator[str]:
    """Every id in the keys and the texts of all documents."""
    keys = [key for folder in _DOCUMENTS for key in store.list(folder)]
    for key, data in zip(keys, each(store, store.get, keys), strict=True):
        try:
            text = data.decode()
            parse_json(text)
        except ValueError as error:
            raise damaged(key, f"{len(data)} bytes that are not JSON") from error
        yield from _ID.findall(f"{key} {text}")


def _unnamed(entries: Iterable[Entry], named: set[str], reason: str) -> Iterator[Garbage]:
    for entry in entries:
        if entry.key.split("/")[1] not in named:
            yield Garbage(entry.key, entry.size_bytes, reason)


def _old_checkpoints(store: ObjectStore, entries: Iterable[Entry], finished: set[str]) -> Iterator[Garbage]:
    """Checkpoints that nobody will go on from."""
    by_run: dict[str, list[tuple[Token, Entry]]] = defaultdict(list)
    for entry in entries:
        run_id, _, text = entry.key.removeprefix(CHECKPOINTS).partition("/")
        if is_token(text):
            by_run[run_id].append((Token.parse(text), entry))
    planned = {run.id for plan in _plans(store) for run in plan.runs} if by_run.keys() - finished else set()
    predictor_at = max((entry.modified_at for entry in store.entries(_PREDICTOR)), default=None)
    for run_id, tokens in by_run.items():
        highest = max(token for token, _ in tokens)
        for token, entry in tokens:
            if (reason := _why_old(run_id, token, highest, entry, finished, planned, predictor_at)) is not None:
                yield Garbage(entry.key, entry.size_bytes, reason)


def _why_old(
    run_id: str,
    token: Token,
    highest: Token,
    entry: Entry,
    finished: set[str],
    planned: set[str],
    predictor_at: datetime | None,
) -> str | None:
    if run_id in finished:
        return "its run has a record"
    if token < highest:
        return "a later lease has one"
    if run_id in planned:
        return None
    if token.incarnation != _ONE_WRITER:
        return "no plan names its run"
    is_superseded = predictor_at is not None and entry.modified_at < predictor_at
    return "a newer predictor is there" if is_superseded else None


def _plans(store: ObjectStore) -> Iterator[Plan]:
    for plan_id in list_documents(store, "plan"):
        yield Plan.from_document(get_document(store, "plan", plan_id))


def _old_claims(entries: Iterable[Entry]) -> Iterator[Garbage]:
    claims = sorted(
        (entry for entry in entries if entry.key.removeprefix(CLAIMS).isdecimal()),
        key=lambda entry: int(entry.key.removeprefix(CLAIMS)),
    )
    for entry in claims[:-_CLAIMS_KEPT]:
        yield Garbage(entry.key, entry.size_bytes, "newer queues came after it")
