"""The example of Kueue's objects has room for the job that waits in it, and knows every pod and resource of it."""

from collections import Counter, defaultdict
from collections.abc import Callable

import pytest

from tests.infra.kustomize import Resource, load
from tests.infra.overlays import KUBERAY, of_kind, pods, site
from tests.infra.pod_rules import UNITS

OBJECTS = load(KUBERAY / "components" / "kueue" / "queues.yaml")


def amount(quantity: object) -> float:
    """A quantity of Kubernetes as a number."""
    text = str(quantity)
    if text.endswith("m"):
        return int(text[:-1]) / 1000
    return int(text[:-2]) * UNITS[text[-2:]] if text[-2:] in UNITS else float(text)


def asked(job: Resource) -> dict[str, Counter[str]]:
    """What the pods of the job ask for, by the pool that their nodeSelector names."""
    replicas = {group["groupName"]: group["replicas"] for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for pod in pods([job]):
        wanted = pod.container["resources"]["limits"] | pod.container["resources"]["requests"]
        for name, quantity in wanted.items():
            found[pod.spec["nodeSelector"]["dass/pool"]][name] += amount(quantity) * replicas.get(pod.group, 1)
    return found


@pytest.mark.parametrize("overlay", ["eks", "gke"])
def test_the_job_fits_into_the_queue(overlay: str, rendered_with: Callable[[str, str], list[Resource]]) -> None:
    [job] = of_kind(rendered_with(f"overlays/{overlay}/job", "kueue"), "RayJob")
    [queue], [local] = of_kind(OBJECTS, "ClusterQueue"), of_kind(OBJECTS, "LocalQueue")
    assert local["metadata"]["name"] == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    assert local["metadata"]["namespace"] == job["metadata"]["namespace"]
    assert local["spec"]["clusterQueue"] == queue["metadata"]["name"]
    [namespace] = of_kind(site(overlay), "Namespace")
    chosen = queue["spec"]["namespaceSelector"]["matchLabels"]
    assert chosen == {"kubernetes.io/metadata.name": namespace["metadata"]["name"]}
    pool_of = {
        each["metadata"]["name"]: each["spec"]["nodeLabels"]["dass/pool"] for each in of_kind(OBJECTS, "ResourceFlavor")
    }
    [group] = queue["spec"]["resourceGroups"]
    quotas = {
        pool_of[flavor["name"]]: {each["name"]: amount(each["nominalQuota"]) for each in flavor["resources"]}
        for flavor in group["flavors"]
    }
    wanted = asked(job)
    assert quotas.keys() == wanted.keys()
    for pool, quota in quotas.items():
        assert list(quota) == group["coveredResources"]
        assert wanted[pool].keys() <= quota.keys()
        assert all(wanted[pool][name] <= quota[name] < 1.5 * wanted[pool][name] + 1 for name in quota)
