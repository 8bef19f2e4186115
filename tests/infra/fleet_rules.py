"""What must hold for the groups of a Ray cluster: which is tried when, and where lanes are driven from.

Each rule yields what breaks it.
"""

from collections.abc import Iterator

from cluster.fleet import START_S
from cluster.runtime import DRIVER_RESOURCE
from tests.infra.kustomize import Resource
from tests.infra.overlays import cluster_specs, environment, ray_pods

WAIT = "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
RECOVERY = "RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S"
UNNEEDED = "RAY_AUTOSCALER_PENDING_NODE_IDLE_TIMEOUT_S"
JOB_START = "RAY_JOB_START_TIMEOUT_SECONDS"
BOOT_S = 600  # in which a GPU node starts and pulls the image, which takes about 8 GB
DRIVERS = ("head", "drivers")  # who drives lanes
LANE_GIB = 0.3  # of memory, for driving one


def settings_s(spec: Resource) -> dict[str, float]:
    """What the autoscaler of a Ray cluster is told, in seconds."""
    return {each["name"]: float(each["value"]) for each in spec["autoscalerOptions"].get("env", [])}


def on_demand_is_reached(resources: list[Resource], overlay: str) -> Iterator[str]:
    """While no spot node is to be had: no spot group is trusted again before all of them were waited for."""
    patience_s = [float(environment(pod, resources)[JOB_START]) for pod in ray_pods(resources) if pod.group == "head"]
    for spec in cluster_specs(resources):
        if not spec["enableInTreeAutoscaling"]:
            continue
        told = settings_s(spec)
        if told.keys() != {WAIT, RECOVERY, UNNEEDED}:
            yield f"the autoscaler must be told how long to wait, got {sorted(told)}"
            continue
        spot_s = told[WAIT] * sum(group["groupName"].endswith("-spot") for group in spec["workerGroupSpecs"])
        if not told[RECOVERY] > spot_s:
            yield f"a spot group must come last until on demand was tried, {spot_s} s, got {told[RECOVERY]}"
        if not told[WAIT] > BOOT_S:
            yield f"a node must have time to boot and to pull the image, {BOOT_S} s, got {told[WAIT]}"
        if not 2 * START_S < told[UNNEEDED] < told[WAIT]:
            yield f"a pod may wait unneeded while lanes start, 2 x {START_S} s, got {told[UNNEEDED]}"
        if not min(patience_s) > spot_s:
            yield f"a job that asks for a GPU must outwait the spot groups, {spot_s} s, got {min(patience_s)}"


def drivers_have_a_place(resources: list[Resource], overlay: str) -> Iterator[str]:
    """Drivers of lanes go where the resource is (cluster/runtime.py): nodes that stay, have memory, and train nothing."""
    for pod in ray_pods(resources):
        if unknown := pod.resources.keys() - {DRIVER_RESOURCE}:
            yield f"{pod.group}: somebody must ask for the resource, got {unknown}"
        num = pod.resources.get(DRIVER_RESOURCE, 0)
        if (num > 0) != (pod.group in DRIVERS):
            yield f"{pod.group}: lanes must be driven from {DRIVERS} and from nowhere else, got {num} {DRIVER_RESOURCE}"
        if pod.group not in DRIVERS:
            continue
        if any(each["key"] == "dass/spot" for each in pod.spec.get("tolerations", [])):
            yield f"{pod.group}: drivers must not be on spot"
        if pod.start.get("num-cpus") != "0":
            yield f"{pod.group}: no lane may train beside drivers, got {pod.start.get('num-cpus')} CPUs"
        if num * LANE_GIB > 0.75 * int(pod.container["resources"]["limits"]["memory"].removesuffix("Gi")):
            yield f"{pod.group}: {num} drivers must fit into three quarters of the memory"
    drain_s = {
        environment(pod, resources)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        for pod in ray_pods(resources)
        if pod.group in DRIVERS
    }
    if len(drain_s) > 1:
        yield f"drivers must outlast the drain of workers as the head does, got {drain_s}"
