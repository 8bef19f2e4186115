"""Ray's start and end, what the machine offers, and the stamp of a run's surroundings.

The only place below `jobs` that reads or sets environment variables.
"""

import importlib.metadata
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cluster.objects import open_store
from cluster.redact import redacted
from cluster.schema import claim_schema
from cluster.settings import LaneConfig
from dass.errors import ClusterError, ConfigError
from dass.precision import set_convolutions
from dass.version import __version__

NAMESPACE = "dass"
DRIVER_RESOURCE = "dass_driver"  # one for each lane that a node may drive; see infra
STAMPED = ("torch", "numpy", "ray")
CODE_VERSION_ENV = "DASS_CODE_VERSION"  # the commit, where the code is a copy without its history, as in an image

# A local Ray has no API. Ray Train asks one whether a lane's controller lives, and finds that of any other cluster on this
# machine, which does not know it: then it ends the lane. From here it gets no answer, and lets the lane be.
_NO_API = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a submitted job
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # our ledgers hold what Tune would log, once more for each trial
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; unset, every lane without a GPU prints a warning
}


@contextmanager
def session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the time of a `with` block: the cluster of a submitted job (RAY_ADDRESS), else a local one.

    num_cpus: logical CPUs of a local Ray; None takes what the machine has. A Ray that already runs in this process is
    used as it is and left running.

    Raises:
        ClusterError: Ray does not start, or the address cannot be reached.
    """
    os.environ.update({key: value for key, value in _RAY_ENVIRONMENT.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault(
            "RAY_enable_metrics_collection", "0"
        )  # nobody reads them, and Ray would open a port for all
    local = {} if address else {"num_cpus": num_cpus, "include_dashboard": False}
    on_terminate = signal.getsignal(signal.SIGTERM)
    api = _NO_API if not address and not _NO_API.keys() & os.environ.keys() else {}
    os.environ.update(api)  # for the processes that start now, and no others
    try:
        # "local", because Ray would otherwise join whatever cluster somebody has started on this machine
        ray.init(address=address or "local", namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR", **local)
    except (ray.exceptions.RayError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        remedy = (
            "unset RAY_ADDRESS to work on this machine alone, or give the address of a running cluster, and its token where it "
            "wants one"
            if address
            else "see that RAY_TMPDIR, by default /tmp, can be written and has space"
        )
        raise ClusterError(
            f"Ray must start or be reached at {redacted(address or 'a local address')}, got {redacted(str(error))}; {remedy}"
        ) from error
    finally:
        for name in api:
            del os.environ[name]
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # ray.init puts its own in place, which ends without our exit code
    with redirect_stdout(sys.stderr):  # Ray prints warnings of its own, which no result may be mixed with
        try:
            yield
        finally:
            ray.shutdown()


def on_this_node() -> Any:  # noqa: ANN401 - Ray is imported only where it works
    """The scheduling strategy for what must not be lost: the node of the driver."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def driver_place() -> dict[str, float]:
    """What a task that drives a lane takes of a node: it must not be lost, and 100 of them do not fit beside the job's driver.

    Nodes that stay, and have memory for many, offer the resource `dass_driver`. Empty where none does: then the driver's
    own node has room.
    """
    import ray

    return {DRIVER_RESOURCE: 1.0} if DRIVER_RESOURCE in ray.cluster_resources() else {}


def driver_options() -> dict[str, Any]:
    """Ray's options for a task that drives a lane: spread over the nodes with places for it, else on the driver's own."""
    if place := driver_place():
        return {"resources": place, "scheduling_strategy": "SPREAD"}
    return {"scheduling_strategy": on_this_node()}


def cancel_running(tasks: Sequence[Any]) -> None:
    """End those of Ray's tasks that still run.

    One whose result is there is left alone: its owner may still be taking note of that, and Ray ends the owner's process
    when a task is cancelled at that moment.
    """
    import ray

    _, running = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
    for task in running:
        ray.cancel(task, force=True)


def preflight(store_url: str) -> None:
    """Check before the first second is spent that the store can be written.

    Raises:
        StoreError: the store is not writable, or was written by a newer version.
    """
    store = open_store(store_url)
    store.check_writable()
    claim_schema(store)


def check_gpus(gpus_per_lane: float) -> None:
    """Check that this machine has GPUs if lanes ask for them. A cluster (RAY_ADDRESS) is trusted: it may grow.

    Raises:
        ConfigError: there are none.
    """
    if gpus_per_lane > 0 and not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available():
        raise ConfigError(
            f"lanes.gpus must be 0 on a machine without CUDA devices, got {gpus_per_lane:g}; set lanes.gpus=0"
        )


def check_store_url(store_url: str) -> None:
    """Check that all machines of a cluster find the store, and that it outlives a submitted job and its working folder.

    Raises:
        ConfigError: the store is a folder below this process's own.
    """
    is_local = not os.environ.get("RAY_ADDRESS") and _JOB_CONFIG not in os.environ
    if not is_local and "://" not in store_url and not Path(store_url).is_absolute():
        raise ConfigError(
            "--store must be s3://BUCKET/PREFIX or the absolute path of a folder that all machines share where work is done on "
            f"a cluster (RAY_ADDRESS), got {store_url!r}; give one of these"
        )


def check_kept(output: Path) -> None:
    """Check that a file outlives a submitted job, whose working folder is a copy that goes with it.

    Raises:
        ConfigError: the file would be in that copy.
    """
    if _JOB_CONFIG in os.environ and not output.is_absolute():
        raise ConfigError(
            f"--output of a submitted job must be an absolute path, got {output}; give one that outlives the job"
        )


def check_room(settings: LaneConfig) -> None:
    """Check in a session that one lane fits on this machine: Ray would wait for ever for what can never be there.

    A cluster (RAY_ADDRESS) is trusted: it may grow.

    Raises:
        ConfigError: a lane wants more than there is.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    import ray

    room = ray.cluster_resources()
    for name, resource, unit in (("cpus", "CPU", 1.0), ("gpus", "GPU", 1.0), ("memory_gb", "memory", 1e9)):
        wanted, most = getattr(settings, name), room.get(resource, 0.0) / unit
        if wanted > most:
            raise ConfigError(
                f"lanes.{name} must be <= {most:g} on this machine, got {wanted:g}; set lanes.{name}={most:g}"
            )


def check_workers(num: int, gpus: float) -> None:
    """Check before anything is spent that `num` workers, each with one CPU or `gpus` of a GPU, can work at the same time.

    A cluster (RAY_ADDRESS) is trusted: it may grow.

    Raises:
        ConfigError: the number is negative, or this machine has too little.
    """
    if num < 0:
        raise ConfigError(f"--workers must be >= 0, got {num}; give 0 to score in this process")
    if os.environ.get("RAY_ADDRESS"):
        return
    most = int(torch.cuda.device_count() / gpus) if gpus else os.cpu_count() or 1
    if num > most:
        raise ConfigError(
            f"--workers must be <= {most} on this machine ({'GPUs' if gpus else 'CPUs'}), got {num}; give fewer, or the "
            "address of a cluster in RAY_ADDRESS"
        )


def compute_on(threads: int) -> None:
    """Let this process compute as all of a collection do: on so many threads of torch, on a GPU in float32 and not in TF32."""
    torch.set_num_threads(threads)
    set_convolutions("ieee")


@cache
def code_version() -> str:
    """The package's version, with the commit: of the git checkout that the code is, else as CODE_VERSION_ENV tells it."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        told = os.environ.get(CODE_VERSION_ENV)
        return f"{__version__}+{told}" if told else __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - no user input
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{done.stdout.strip()}"


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the libraries that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in STAMPED}


def device_name(device: torch.device) -> str:
    """The model of the GPU, or the CPU's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _cpu_info():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
