"""The faults: each strikes a site once, at a random moment and place, and returns when what was broken is whole again."""

import itertools
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ray._raylet import GcsClient  # type: ignore[attr-defined]  # missing in its stubs
from ray.core.generated import autoscaler_pb2

from cluster.database import LOOSE, RunDatabase
from cluster.packed import PACKED
from tests.chaos import inside
from tests.chaos.credentials import LEEWAY_S, LIFETIME_S
from tests.chaos.site import LEASE_S, Collection, Kind, Site, kill, wait_until
from tests.cluster import faulty_server
from tests.cluster.faulty_server import ALWAYS

ORDER_S = 60.0  # within which a lane obeys
_MB = 2**20


@dataclass
class Struck:
    """What a strike did beyond what the trace tells.

    diverged: runs whose record says so from now on. lost, duplicated: what readers beside it saw.
    """

    diverged: set[str] = field(default_factory=set)
    lost: int = 0
    duplicated: int = 0


@dataclass(frozen=True)
class Strike:
    """All that a fault may use."""

    site: Site
    collection: Collection
    rng: random.Random

    def one_lane(self) -> int:
        """A process that trains."""
        return self.rng.choice(sorted(self.site.trace.training()))

    def one_process(self, title: str) -> int:
        """A process of Ray's with this in its name; there is none for a moment when it has just been killed."""
        if not wait_until(lambda: self.site.workers(title), 60):
            raise TimeoutError(f"a process named {title} must run")
        return self.rng.choice(sorted(self.site.workers(title)))


@dataclass(frozen=True)
class Fault:
    """A fault's name, how it strikes, how often it should at least, and the site and the setting that it needs."""

    name: str
    strike: Callable[[Strike], Struck]
    at_least: int = 20
    kind: Kind = "s3"
    hang_s: float = 1800.0


def _s3(
    faults: Callable[[], list[faulty_server.Fault]], shortest_s: float, longest_s: float
) -> Callable[[Strike], Struck]:
    """The store's server fails for some time."""

    def strike(at: Strike) -> Struck:
        assert at.site.proxy is not None
        at.site.proxy.faults[:] = faults()
        time.sleep(at.rng.uniform(shortest_s, longest_s))
        at.site.proxy.faults.clear()
        return Struck()

    return strike


def _answers(status: int, code: str, method: str = "", chance: float = 0.7) -> list[faulty_server.Fault]:
    return [faulty_server.Answer(method, times=ALWAYS, chance=chance, status=status, code=code)]


def _cuts() -> list[faulty_server.Fault]:
    how = {"times": ALWAYS, "chance": 0.5, "after_bytes": 20}
    return [faulty_server.CutRequest("PUT", **how), faulty_server.CutAnswer("GET", **how)]  # type: ignore[arg-type]


def _credentials_expire(at: Strike) -> Struck:
    """Those in use expire while nobody can get new ones."""
    assert at.site.credentials is not None
    at.site.credentials.is_down = True
    time.sleep(LIFETIME_S + LEEWAY_S + at.rng.uniform(0, 3))
    at.site.credentials.is_down = False
    return Struck()


def _daemon_killed(at: Strike) -> Struck:
    """The gateway or the disk of a real store, with kill -9."""
    ceph = at.site.ceph
    assert ceph is not None
    end, start = at.rng.choice([(ceph.kill_gateway, ceph.start_gateway), (ceph.kill_disk, ceph.start_disk)])
    end()
    time.sleep(at.rng.uniform(0, 5))
    start()
    return Struck()


def _killed(title: str) -> Callable[[Strike], Struck]:
    """One of Ray's processes with this in its name, with kill -9."""

    def strike(at: Strike) -> Struck:
        kill(at.one_process(title))
        return Struck()

    return strike


def _lane_killed(at: Strike) -> Struck:
    kill(at.one_lane())
    return Struck()


def _lane_paused(at: Strike) -> Struck:
    """A lane stands still until others have its runs, and then writes on."""
    lane = at.one_lane()
    kill(lane, signal.SIGSTOP)
    time.sleep(LEASE_S + at.rng.uniform(1.5, 5))
    kill(lane, signal.SIGCONT)
    return Struck()


def _ordered(trouble: inside.Trouble) -> Callable[[Strike], Struck]:
    """A lane gets into trouble by itself."""

    def strike(at: Strike) -> Struck:
        folder = at.site.folder
        outcome = inside.outcome_path(folder, trouble)
        outcome.unlink(missing_ok=True)
        inside.order_path(folder, trouble).touch()
        if not wait_until(outcome.exists, ORDER_S):
            raise TimeoutError(f"a lane must obey the order {trouble!r} within {ORDER_S:g} s")
        struck: list[str] = json.loads(outcome.read_text())
        return Struck(diverged={struck[0]} if trouble == "diverge" else set())

    return strike


def _compaction_killed(at: Strike) -> Struck:
    """With kill -9, when it has read, written or removed so many objects."""
    proxy = at.site.proxy
    assert proxy is not None
    method, path = at.rng.choice([("GET", LOOSE), ("PUT", PACKED), ("DELETE", LOOSE)])
    wanted = 1 if method == "PUT" else at.rng.randint(1, 4)
    seen = len(proxy.requests)
    process = at.site.spawn(at.site.jobs("compact", "--grace", "0.5"), "compact")

    def is_there() -> bool:
        new = itertools.islice(proxy.requests, seen, None)
        return process.poll() is not None or sum(m == method and path in p for m, p in new) >= wanted

    wait_until(is_there, 120, pause_s=0.002)
    process.kill()
    process.wait()
    return Struck()


def _two_compactions(at: Strike) -> Struck:
    """At the same time, and two readers that look whether all that was ever seen is still there, once."""
    both = [at.site.spawn(at.site.jobs("compact", "--grace", "0.5"), "compact") for _ in range(2)]
    struck, ended = Struck(), threading.Event()

    def read() -> None:
        known: set[str] = set()
        while not ended.is_set():
            ids = [record.run.id for record in RunDatabase(at.site.store).scan()]
            struck.lost += len(known - set(ids))
            struck.duplicated += len(ids) - len(set(ids))
            known |= set(ids)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    codes = [process.wait() for process in both]
    ended.set()
    for reader in readers:
        reader.join()
    assert codes == [0, 0], at.site.said("compact")
    return struck


def _driver_killed(at: Strike) -> Struck:
    """With kill -9; submitted again a moment later."""
    at.site.end_drivers()
    time.sleep(at.rng.uniform(0, 3))
    at.site.submit(at.collection)
    return Struck()


def _node_removed(at: Strike) -> Struck:
    """A machine on which a lane trains is gone at once; another one comes a moment later."""
    node = at.site.workers("")[at.one_lane()]
    at.site.remove_node(node)
    time.sleep(at.rng.uniform(0, 3))
    at.site.add_node()
    return Struck()


def _node_drained(at: Strike) -> Struck:
    """A machine on which a lane trains will be gone in some seconds, and says so; another one comes meanwhile."""
    node = at.site.workers("")[at.one_lane()]
    notice_s = at.rng.uniform(6, 10)
    client = GcsClient(address=at.site.cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, why = client.drain_node(node.node_id, reason, "reclaimed", int((time.time() + notice_s) * 1000))
    assert is_accepted, why
    at.site.add_node()
    time.sleep(notice_s)
    at.site.remove_node(node)
    return Struck()


def _gcs_killed(at: Strike) -> Struck:
    """Ray's own control store, with kill -9, and started again from its disk."""
    head = at.site.cluster.head_node
    head.kill_gcs_server()
    time.sleep(at.rng.uniform(1, 6))
    head.start_gcs_server()
    return Struck()


def _submitted_twice(at: Strike) -> Struck:
    """A second driver comes beside the first one, and then one of the two is killed."""
    at.site.submit(at.collection)
    time.sleep(at.rng.uniform(10, 15))
    process = at.rng.choice(at.site.drivers)
    process.kill()
    process.wait()
    return Struck()


def _disk_full(at: Strike) -> Struck:
    """Something else fills the store's disk for a while."""
    assert at.site.disk is not None
    _fill(at.site.disk / "ballast")
    time.sleep(at.rng.uniform(3, 8))
    (at.site.disk / "ballast").unlink()
    return Struck()


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(_MB))
    except OSError:
        return


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("S3 answers 500", _s3(lambda: _answers(500, "InternalError"), 3, 6)),
        Fault("S3 answers 503", _s3(lambda: _answers(503, "SlowDown"), 3, 6)),
        Fault("S3 is slow", _s3(lambda: [faulty_server.Slow(times=ALWAYS, seconds=2)], 5, 8)),
        Fault("S3 cuts bodies", _s3(_cuts, 3, 6)),
        Fault("S3 fails one put in ten", _s3(lambda: _answers(500, "InternalError", "PUT", 0.1), 8, 15)),
        Fault("S3 is down for a minute", _s3(lambda: [faulty_server.Refuse(times=ALWAYS)], 60, 60)),
        Fault("credentials expire", _credentials_expire),
        Fault("store daemon killed", _daemon_killed, kind="ceph"),
        Fault("queue killed", _killed("QueueActor")),
        Fault("lane killed", _lane_killed),
        Fault("training raises", _ordered("raise")),
        Fault("lane paused past its lease", _lane_paused),
        Fault("compaction killed", _compaction_killed),
        Fault("two compactions", _two_compactions),
        Fault("student diverges", _ordered("diverge")),
        Fault("student exhausts memory", _ordered("exhaust")),
        Fault("student hangs", _ordered("hang"), hang_s=8.0),
        Fault("driver killed", _driver_killed, at_least=5),
        Fault("Train controller killed", _killed("TrainController"), at_least=5),
        Fault("node removed", _node_removed, at_least=5),
        Fault("node drained", _node_drained, at_least=5),
        Fault("GCS killed", _gcs_killed, at_least=5),
        Fault("submitted twice", _submitted_twice, at_least=5),
        Fault("disk full", _disk_full, at_least=5, kind="folder"),
    )
}
