"""States of runs under way: checkpoints/<run_id>/<token>, one object per lease of a run.

A lane overwrites the object of its own token only, and a new lease goes on from the highest token there is, so a lane
that was overtaken writes where nobody reads. Checkpoints go once the record is durable.
"""

import re
from collections.abc import Collection, Hashable
from dataclasses import dataclass

from cluster.objects import ObjectStore
from cluster.parallel import each
from dass.errors import ConfigError, ObjectNotFoundError, StoreError
from dass.kd.cohort import Position, state_position

FOLDER = "checkpoints/"

_TOKEN = re.compile("[0-9]{1,18}-[0-9]{1,18}")


@dataclass(frozen=True, order=True)
class Token:
    """The name of one lease, unique in a store: the queue's incarnation and a number that the queue counts up."""

    incarnation: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.incarnation}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> "Token":
        """The token whose text this is; ConfigError when it is none."""
        if not is_token(text):
            raise ConfigError(f"a token must read incarnation-attempt such as 3-17, got {text!r}; pass a lease's token")
        left, _, right = text.partition("-")
        return cls(int(left), int(right))


def is_token(text: str) -> bool:
    """Whether this is a token's text; what else lies among checkpoints is none of ours."""
    return _TOKEN.fullmatch(text) is not None


@dataclass(frozen=True)
class Saved:
    """Where a run's last checkpoint lies: the token in its key, and how far the run had come."""

    token: Token
    position: Hashable


def put_checkpoint(store: ObjectStore, run_id: str, token: Token, state: bytes) -> None:
    """Write the state of a run under a lease's token, over an earlier one of the same lease."""
    store.put(_key(run_id, token), state)


def get_checkpoint(store: ObjectStore, run_id: str, token: Token) -> bytes:
    """The state of a run that the lease `token` wrote; ObjectNotFoundError when there is none."""
    return store.get(_key(run_id, token))


def find_saved(store: ObjectStore, run_ids: Collection[str]) -> dict[str, Saved]:
    """For each of the runs that has a usable checkpoint the one of the highest token, with the position it holds.

    A damaged checkpoint is passed over in favour of an older one: it costs steps, never a result.

    Raises:
        StoreError: the store cannot be read.
    """
    tokens: dict[str, list[Token]] = {}
    for key in store.list(FOLDER):
        run_id, _, text = key.removeprefix(FOLDER).partition("/")
        if is_token(text):
            tokens.setdefault(run_id, []).append(Token.parse(text))

    def latest(run_id: str) -> Saved | None:
        for token in sorted(tokens.get(run_id, ()), reverse=True):
            if (position := _position(store, run_id, token)) is not None:
                return Saved(token, position)
        return None

    ids = list(run_ids)
    found = zip(ids, each(store, latest, ids), strict=True)
    return {run_id: saved for run_id, saved in found if saved is not None}


def remove_checkpoints(store: ObjectStore, run_id: str) -> None:
    """Remove all checkpoints of a run."""
    for key in list(store.list(f"{FOLDER}{run_id}/")):
        store.delete(key)


def _position(store: ObjectStore, run_id: str, token: Token) -> Position | None:
    try:
        state = get_checkpoint(store, run_id, token)
    except ObjectNotFoundError:
        return None
    try:  # what the store cannot read now is no damage: passed over, it would cost more than one interval
        saved_id, position = state_position(state)
    except StoreError:
        return None
    return position if saved_id == run_id else None


def _key(run_id: str, token: Token) -> str:
    return f"{FOLDER}{run_id}/{token}"
