"""One driver at a time for a plan: its sign of life in the store, for drivers on other clusters to see.

    nobody, or a process of this machine that is gone  -> the plan is ours at once
    a sign of life that does not change for a while    -> its driver is dead, the plan is ours
    one that changes                                   -> refused, unless the user takes over

It saves work and money and nothing else: were two drivers at work, every run would still have one record. A driver that
is overtaken finds another name at its next sign of life, and ends.
"""

import os
import socket
import time
import uuid
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.objects import ObjectStore
from cluster.schema import SCHEMA_VERSION, build, decode_json, encode_json
from dass.errors import ClusterError, ObjectNotFoundError, StoreError

FOLDER = "owners/"
MOST_BEAT_S = 600.0  # nobody waits longer than a beat and a half for an owner
_MOST_PID = 2**31
_LOOKS_PER_BEAT = 10
_BEATS_MISSED = 1.5


@dataclass(frozen=True)
class Owner:
    """Who drives a plan, and how often it says so; `beat` counts.

    Raises:
        ValueError: a value is none that a driver can have.
    """

    id: str
    host: str
    pid: int
    since: str
    beat_s: float
    beat: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.beat_s <= MOST_BEAT_S and 0 < self.pid < _MOST_PID and self.beat >= 0):
            raise ValueError(
                f"beat_s must be in (0, {MOST_BEAT_S:g}], pid in (0, {_MOST_PID}) and beat >= 0, got {self.beat_s}, {self.pid} "
                f"and {self.beat}"
            )

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended, because it was a process of this machine; this one drives no plan twice."""
        return self.host == _host() and (self.pid == os.getpid() or not _is_alive(self.pid))

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]}, since {self.since}"


class Ownership:
    """The right of this process to drive a plan; `claim` comes first.

    Args:
        store: where the plan's runs are recorded.
        plan_id: the plan's.
        beat_s: seconds between two signs of life; at most MOST_BEAT_S, whatever is asked for.
    """

    def __init__(self, store: ObjectStore, plan_id: str, beat_s: float) -> None:
        self._store = store
        self._key = f"{FOLDER}{plan_id}.json"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._me = Owner(uuid.uuid4().hex, _host(), os.getpid(), now, min(beat_s, MOST_BEAT_S))
        self._beaten = -float("inf")

    @property
    def id(self) -> str:
        """Of this driver, and of no other."""
        return self._me.id

    def claim(self, *, takeover: bool) -> Generator[Owner, None, None]:
        """Take the plan; yields its owner for as long as it is unknown whether that one lives.

        Raises:
            ClusterError: it lives, and `takeover` is false.
        """
        seen = self._read()
        if seen is not None and not takeover and not seen.is_gone:
            until = time.monotonic() + _BEATS_MISSED * seen.beat_s
            while time.monotonic() < until:
                yield seen
                time.sleep(seen.beat_s / _LOOKS_PER_BEAT)
                now = self._read()
                if now is None:
                    break
                if now != seen:
                    raise ClusterError(
                        f"one job at a time may drive these runs, got a second one beside {now}; wait for it, stop it, or give "
                        "--takeover, which ends it"
                    )
        self._write()

    def keep(self) -> None:
        """Give a sign of life when it is time for one; a store that is down is no reason to stop.

        Raises:
            ClusterError: another job took the plan over.
        """
        if time.monotonic() - self._beaten < self._me.beat_s:
            return
        try:
            there = self._read()
            if there is None or there.id == self._me.id:
                self._write()
                return
        except StoreError:
            return
        raise ClusterError(f"this job must own its runs, got {there} that took them over; what is finished is kept")

    def end(self) -> None:
        """Leave the plan to the next one; where the store is down, our silence will tell."""
        with suppress(StoreError):
            there = self._read()
            if there is not None and there.id == self._me.id:
                self._store.delete(self._key)

    def _read(self) -> Owner | None:
        try:
            data = self._store.get(self._key)
        except ObjectNotFoundError:
            return None
        return build(Owner, decode_json(data, self._key).get("owner", {}), self._key)

    def _write(self) -> None:
        self._me = replace(self._me, beat=self._me.beat + 1)
        self._store.put(self._key, encode_json({"schema": SCHEMA_VERSION, "owner": self._me}))
        self._beaten = time.monotonic()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True


def _host() -> str:
    """This machine's name, and its boot's where the system tells: a container's processes are not another's."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}".strip()
