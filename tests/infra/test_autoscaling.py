"""Ray's own autoscaler reads the rendered clusters and decides: which group, in which order, and nothing without work."""

from collections import Counter
from types import SimpleNamespace

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig, InstanceReconcileConfig
from ray.autoscaler.v2.instance_manager.subscribers import cloud_resource_monitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest

from cluster.runtime import DRIVER_RESOURCE
from jobs.recipes import get_recipe
from tests.infra.fleet_rules import RECOVERY, WAIT, settings_s
from tests.infra.kustomize import Resource
from tests.infra.overlays import OVERLAYS, of_kind, rendered

PREFERRED = ["gpu-small-spot", "gpu-large-spot", "gpu-small", "gpu-large"]


def cluster_of(overlay: str) -> Resource:
    [cluster] = of_kind(rendered(f"overlays/{overlay}/cluster"), "RayCluster")
    return cluster


def launched(
    cluster: Resource,
    lanes: list[dict[str, float]],
    availabilities: dict[str, float] | None = None,
    tickets: list[list[dict[str, float]]] | None = None,
) -> dict[str, int]:
    """How many nodes of each group Ray's scheduler starts for lanes of these resources, head aside.

    tickets: wanted all or nothing. availabilities: what Ray's monitor says of groups that failed to start, 0 just now to
    1 long ago.
    """
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    availabilities = availabilities or {}
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(lane) for lane in lanes]),
        gang_resource_requests=[
            GangResourceRequest(requests=[ResourceRequestUtil.make(place) for place in ticket])
            for ticket in tickets or []
        ],
        cloud_resource_availabilities=availabilities,
        recoverable_resource_availabilities=availabilities,
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
    assert not reply.infeasible_gang_resource_requests
    counts: Counter[str] = Counter()
    for launch in reply.to_launch:
        counts[launch.instance_type] += launch.count
    counts.pop("headgroup", None)
    return dict(counts)


def lane(recipe: str) -> dict[str, float]:
    """What a lane of this recipe asks Ray for."""
    lanes = get_recipe(recipe).lanes
    return {"CPU": lanes.cpus} | ({"GPU": lanes.gpus} if lanes.gpus else {})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_without_work_there_is_no_worker(overlay: str) -> None:
    assert launched(cluster_of(overlay), []) == {}


@pytest.mark.parametrize("overlay", ["eks", "gke"])
def test_a_group_that_fails_to_start_makes_way_for_the_next_one(overlay: str) -> None:
    """Spot before on demand, small before large."""
    for number, group in enumerate(PREFERRED):
        failed = dict.fromkeys(PREFERRED[:number], 0.0)
        assert launched(cluster_of(overlay), [lane("tiny10")], failed) == {group: 1}


def tried(cluster: Resource, wait_s: float, recovery_s: float, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The groups that Ray asks for a node, one after another, while none comes: four times."""
    now = 1e9
    monkeypatch.setattr(cloud_resource_monitor, "RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S", recovery_s)
    monkeypatch.setattr(cloud_resource_monitor, "time", SimpleNamespace(time=lambda: now))
    monitor, found = cloud_resource_monitor.CloudResourceMonitor(), []
    for _ in PREFERRED:
        [group] = launched(cluster, [lane("tiny10")], monitor.get_recoverable_resource_availabilities())
        found.append(group)
        now += wait_s
        monitor.allocation_timeout(SimpleNamespace(instance_type=group))
        now += 10  # until the autoscaler looks again
    return found


@pytest.mark.parametrize("overlay", ["eks", "gke"])
def test_without_spot_capacity_on_demand_is_reached(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = cluster_of(overlay)
    told = settings_s(cluster["spec"])
    assert tried(cluster, told[WAIT], told[RECOVERY], monkeypatch) == PREFERRED


def test_with_the_values_of_ray_it_would_not_be(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_s = InstanceReconcileConfig().allocate_status_timeout_s
    recovery_s = cloud_resource_monitor.RAY_AUTOSCALER_AVAILABILITY_RECOVERY_S
    assert tried(cluster_of("eks"), wait_s, recovery_s, monkeypatch) == 2 * PREFERRED[:2]


def test_drivers_beyond_those_of_the_head_bring_a_node_of_their_own() -> None:
    drivers = [{DRIVER_RESOURCE: 1.0}]
    assert launched(cluster_of("eks"), 30 * drivers) == {}
    assert launched(cluster_of("eks"), 31 * drivers) == {"drivers": 1}
    assert launched(cluster_of("gke"), 150 * drivers) == {"drivers": 2}


def test_a_gpu_and_a_place_for_its_driver_are_asked_for_together() -> None:
    ticket = [lane("tiny10"), {DRIVER_RESOURCE: 1.0}]
    assert launched(cluster_of("eks"), [], tickets=[ticket]) == {"gpu-small-spot": 1}
    assert launched(cluster_of("eks"), 30 * [{DRIVER_RESOURCE: 1.0}], tickets=[ticket]) == {
        "gpu-small-spot": 1,
        "drivers": 1,
    }


def test_more_lanes_than_a_group_may_have_go_on_to_the_next_one() -> None:
    assert launched(cluster_of("eks"), 20 * [lane("tiny10")]) == {"gpu-small-spot": 16, "gpu-large-spot": 4}


def test_fit_would_come_before_price_if_groups_offered_different_shapes() -> None:
    """Why the groups of raycluster.yaml are all of one shape to Ray."""
    cluster = cluster_of("eks")
    container = cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    container["resources"] = {"requests": {"cpu": "30"}, "limits": {"memory": "200Gi", "nvidia.com/gpu": "4"}}
    assert launched(cluster, [lane("tiny10")]) == {"gpu-large-spot": 1}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_lanes_without_a_gpu_take_no_gpu(overlay: str) -> None:
    assert launched(cluster_of(overlay), 2 * [lane("digits")]).keys() == {"cpu"}


def test_lanes_that_share_a_gpu_share_a_node() -> None:
    assert launched(cluster_of("gke"), 2 * [{"CPU": 2, "GPU": 0.5}]) == {"gpu-small-spot": 1}
