"""What is broken: a Ray cluster of several raylets, a store in processes of its own, and drivers, all on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
from ray.cluster_utils import Cluster

from cluster import s3
from cluster.objects import ObjectStore, open_store
from tests.chaos import inside
from tests.chaos.credentials import Credentials
from tests.chaos.trace import Trace
from tests.cluster.ceph_server import KEYS as CEPH_KEYS
from tests.cluster.ceph_server import Ceph
from tests.cluster.faulty_server import FaultyServer
from tests.cluster.s3_server import environment, make_bucket, running_server
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
NUM_NODES, NUM_LANES = 3, 2  # one node is to spare
CHECKPOINT_S, LEASE_S, PACE_S = 2.0, 5.0, 0.5
ACTORS = ("QueueActor", "TrainController", "RayTrainWorker", "_drive_lane")  # names of processes that do our work
Kind = Literal["s3", "ceph", "folder"]

_DISK_MB = 64
_QUICK = {  # a lost machine is noticed sooner than by default, so that more of them can be lost in an hour
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


@dataclass(frozen=True)
class Collection:
    """What is collected: so many students on each of four tasks, all with this seed, and what else is set."""

    seed: int
    students: int
    epochs: int
    hang_s: float = 1800.0

    def command(self, store_url: str) -> list[str]:
        """The driver's."""
        settings = {
            "collect.students_per_task": self.students,
            "collect.target_students": self.students,
            "collect.seed": self.seed,
            "student.epochs": self.epochs,
            "teacher.epochs": 2,
            "lanes.num": NUM_LANES,
            "lanes.yield_every": 2,
            "lanes.checkpoint_s": CHECKPOINT_S,
            "lanes.lease_s": LEASE_S,
            "lanes.hang_s": self.hang_s,
            "lanes.max_failures": 10,
        }
        options = [f"--set={name}={value}" for name, value in settings.items()]
        return [*_jobs("collect", "--recipe", "smoke", "--store", store_url, "--json"), *options]


@dataclass
class Site:
    """The running parts; the faults reach for whatever they break."""

    folder: Path
    store_url: str
    cluster: Cluster
    proxy: FaultyServer | None = None
    credentials: Credentials | None = None
    ceph: Ceph | None = None
    disk: Path | None = None
    drivers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    submitted: int = 0

    def __post_init__(self) -> None:
        self.trace = Trace(self.folder)

    @property
    def store(self) -> ObjectStore:
        """The store, as a client beside the collection sees it."""
        return open_store(self.store_url)

    def submit(self, collection: Collection) -> subprocess.Popen[bytes]:
        """Start one more driver."""
        self.submitted += 1
        process = self.spawn(collection.command(self.store_url), f"driver-{self.submitted}")
        self.drivers.append(process)
        return process

    def spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        """Start a process beside the collection; what it says is kept in the site's folder."""
        with (self.folder / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                command, env={**os.environ, "RAY_ADDRESS": self.cluster.address}, stdout=out, stderr=out, cwd=ROOT
            )

    def jobs(self, verb: str, *options: str) -> list[str]:
        """The command of a verb on this store."""
        return _jobs(verb, "--store", self.store_url, *options)

    def said(self, name: str) -> str:
        """What a process that `spawn` started has said."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def workers(self, title: str) -> dict[int, Any]:
        """Processes of Ray's workers whose name holds this text, with the node that each belongs to."""
        found = {}
        for node in self.nodes:
            for raylet in node.all_processes["raylet"]:
                for process in psutil.Process(raylet.process.pid).children():
                    with suppress(psutil.Error):  # it ended meanwhile
                        name = " ".join(process.cmdline())
                        if name.startswith("ray::") and title in name:
                            found[process.pid] = node
        return found

    @property
    def nodes(self) -> list[Any]:
        """The head first."""
        return [self.cluster.head_node, *self.cluster.worker_nodes]

    def add_node(self) -> None:
        """One more machine with a CPU for a lane."""
        self.cluster.add_node(num_cpus=1)

    def remove_node(self, node: Any) -> None:
        """All of its processes are killed at once."""
        self.cluster.remove_node(node, allow_graceful=False)

    def end_drivers(self) -> None:
        """End what still runs; Ray ends what belongs to it."""
        for process in self.drivers:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.drivers.clear()


def _jobs(verb: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "jobs", verb, *options]


@contextmanager
def open_site(folder: Path, kind: Kind) -> Iterator[Site]:
    """A site in an empty folder; this process has the environment of its parts meanwhile."""
    parts: dict[str, Any] = {}
    api_port = free_port()
    with ExitStack() as stack:
        variables = {
            **_QUICK,
            inside.FOLDER: str(folder),
            "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": "tests.chaos.inside.enter",
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{api_port}",  # not that of another cluster here
            "RAY_gcs_storage": "rocksdb",
            "RAY_gcs_storage_path": str(folder / "gcs"),
        }
        (folder / "gcs").mkdir()
        inside.set_pace(folder, PACE_S)
        if kind == "folder":
            parts["disk"] = stack.enter_context(_small_disk(folder / "disk"))
            store_url = str(folder / "disk" / "store")
        elif kind == "ceph":
            (folder / "ceph").mkdir()
            ceph = parts["ceph"] = Ceph(folder / "ceph")
            stack.callback(ceph.stop)
            ceph.start()
            variables |= environment(ceph.endpoint, CEPH_KEYS)
            store_url = f"{make_bucket(ceph.endpoint, CEPH_KEYS)}/some/prefix"
        else:
            server = stack.enter_context(running_server())
            credentials = parts["credentials"] = stack.enter_context(Credentials())
            proxy = parts["proxy"] = stack.enter_context(FaultyServer(server, credentials.is_valid))
            store_url = f"{make_bucket(server)}/some/prefix"
            known = environment(proxy.url)
            variables |= {name: known[name] for name in known if "KEY" not in name} | credentials.environment
        stack.enter_context(_environment(variables))
        cluster = Cluster(
            initialize_head=True,  # with its API, as on every real cluster: what Ray Train cleans up by needs it
            head_node_args={
                "num_cpus": 0,
                "resources": {"dass_driver": 10},
                "include_dashboard": True,
                "dashboard_port": api_port,
            },
        )
        stack.callback(cluster.shutdown)
        site = Site(folder, store_url, cluster, **parts)
        stack.callback(site.end_drivers)
        for _ in range(NUM_NODES):
            site.add_node()
        yield site


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("AWS_", "RAY_"))]:
        del os.environ[name]
    os.environ.update(variables)
    s3.client_of.cache_clear()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        s3.client_of.cache_clear()


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own, which only root can make."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def wait_until(is_so: Callable[[], object], patience_s: float, pause_s: float = 0.1) -> bool:
    """Whether it became so in time."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def kill(pid: int, how: signal.Signals = signal.SIGKILL) -> bool:
    """Send a signal; False when the process has just ended."""
    try:
        os.kill(pid, how)
    except ProcessLookupError:
        return False
    return True
