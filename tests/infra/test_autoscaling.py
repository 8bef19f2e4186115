"""Ray's own autoscaler reads the rendered clusters and decides: which group, in which order, and nothing without work."""

from collections import Counter

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from jobs.recipes import get_recipe
from tests.infra.kustomize import Resource
from tests.infra.overlays import OVERLAYS, of_kind, rendered

PREFERRED = ["gpu-small-spot", "gpu-large-spot", "gpu-small", "gpu-large"]


def cluster_of(overlay: str) -> Resource:
    [cluster] = of_kind(rendered(f"overlays/{overlay}/cluster"), "RayCluster")
    return cluster


def launched(cluster: Resource, lanes: list[dict[str, float]], failing: tuple[str, ...] = ()) -> dict[str, int]:
    """How many nodes of each group Ray's scheduler starts for lanes of these resources, head aside.

    failing: groups whose last launch has just failed.
    """
    config = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(cluster), skip_content_hash=True)
    types = config.get_node_type_configs()
    availabilities = {name: 0.0 if name in failing else 1.0 for name in types}
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=types,
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(lane) for lane in lanes]),
        cloud_resource_availabilities=availabilities,
        recoverable_resource_availabilities=availabilities,
    )
    reply = ResourceDemandScheduler().schedule(request)
    assert not reply.infeasible_resource_requests
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
        assert launched(cluster_of(overlay), [lane("tiny10")], tuple(PREFERRED[:number])) == {group: 1}


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
