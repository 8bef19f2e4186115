"""Where the manifests are, rendered; and the pods in them that Ray and Kubernetes will make."""

import functools
import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.infra.kustomize import Resource, render

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
KUBERAY = INFRA / "kuberay"
OVERLAYS = ("kind", "eks", "gke")
FOLDERS = tuple(f"overlays/{overlay}{part}" for overlay in OVERLAYS for part in ("", "/cluster", "/job"))


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest asks for: `group` is a worker group's name, or head or submitter."""

    group: str
    template: Resource
    start: dict[str, str]  # Ray's start parameters

    @property
    def spec(self) -> Resource:
        return dict(self.template["spec"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.template["metadata"]["labels"])

    @property
    def container(self) -> Resource:
        return dict(self.spec["containers"][0])

    @property
    def resources(self) -> dict[str, float]:
        """The custom resources that Ray is started with, as the shell of KubeRay's command hands them on."""
        return dict(json.loads(*shlex.split(self.start["resources"]))) if "resources" in self.start else {}


@functools.cache
def _rendered(folder: str) -> str:
    return json.dumps(render(KUBERAY / folder))


def rendered(*folders: str) -> list[Resource]:
    """The resources of those folders below infra/kuberay; a copy, to be changed at will."""
    return [resource for folder in folders for resource in json.loads(_rendered(folder))]


def site(overlay: str) -> list[Resource]:
    """All that an overlay can bring into a cluster."""
    return rendered(f"overlays/{overlay}", f"overlays/{overlay}/cluster", f"overlays/{overlay}/job")


def of_kind(resources: list[Resource], kind: str) -> list[Resource]:
    return [resource for resource in resources if resource["kind"] == kind]


def cluster_specs(resources: list[Resource]) -> list[Resource]:
    """The specs of all Ray clusters, those inside jobs included."""
    return [each["spec"] for each in of_kind(resources, "RayCluster")] + [
        each["spec"]["rayClusterSpec"] for each in of_kind(resources, "RayJob")
    ]


def ray_pods(resources: list[Resource]) -> Iterator[Pod]:
    """The heads and workers of all Ray clusters."""
    for spec in cluster_specs(resources):
        yield Pod("head", spec["headGroupSpec"]["template"], spec["headGroupSpec"]["rayStartParams"])
        for group in spec["workerGroupSpecs"]:
            yield Pod(group["groupName"], group["template"], group["rayStartParams"])


def pods(resources: list[Resource]) -> list[Pod]:
    """The same and the submitters of jobs."""
    submitters = [Pod("submitter", job["spec"]["submitterPodTemplate"], {}) for job in of_kind(resources, "RayJob")]
    return [*ray_pods(resources), *submitters]


def environment(pod: Pod, resources: list[Resource]) -> dict[str, Any]:
    """What a pod's first container finds in its environment, without what KubeRay adds."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(resources, "ConfigMap")}
    found: dict[str, Any] = {}
    for source in pod.container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    return found | {each["name"]: each["value"] for each in pod.container.get("env", [])}


def selects(selector: Resource, labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes finds what has these labels; the operators that the manifests use."""
    is_same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return is_same and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))
