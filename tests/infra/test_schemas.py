"""Every rendered manifest is what the API server takes, and a slip is not."""

from collections.abc import Callable

import jsonschema
import pytest

from tests.infra.kustomize import Resource, operate, render
from tests.infra.overlays import FOLDERS, KUBERAY, of_kind, rendered, site
from tests.infra.schemas import CUSTOM, check, need_crds


def test_what_the_api_server_would_be_asked_is_complete() -> None:
    kinds = {resource["kind"] for folder in FOLDERS for resource in rendered(folder)}
    assert kinds >= {"RayCluster", "RayJob", "Namespace", "NetworkPolicy", "PodDisruptionBudget", "ServiceAccount"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_keep_to_the_schemas(folder: str) -> None:
    for resource in rendered(folder):
        if resource["kind"] in CUSTOM:
            need_crds()
        check(resource)


def test_the_template_of_a_pod_is_a_pod() -> None:
    [cluster] = rendered("overlays/eks/cluster")
    for group in [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]:
        check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": group["template"]["spec"]})


def test_components_that_no_overlay_lists_fit_into_one(rendered_with: Callable[[str, str], list[Resource]]) -> None:
    need_crds()
    for resource in [*rendered_with("overlays/eks/job", "kueue"), *rendered_with("overlays/gke", "monitoring")]:
        check(resource)


SLIPS = [
    ("RayCluster", "/spec/autoscalerOptions/idleTimeoutSecond", 1, "idleTimeoutSecond"),
    ("RayCluster", "/spec/autoscalerOptions/version", "v3", "v3"),
    ("RayCluster", "/spec/headGroupSpec/template/spec/nodeSelektor", {}, "nodeSelektor"),
    ("RayCluster", "/spec/workerGroupSpecs/0/priorty", 1, "priorty"),
    ("RayJob", "/spec/backofLimit", 1, "backofLimit"),
    ("RayJob", "/spec/deletionStrategy/deletionRules/0/policy", "DeleteEverything", "DeleteEverything"),
    ("RayJob", "/spec/rayClusterSpec/enableInTreeAutoscaling", "yes", "'yes'"),
    ("NetworkPolicy", "/spec/policyType", [], "policyType"),
    ("PodDisruptionBudget", "/spec/minAvail", 1, "minAvail"),
]


@pytest.mark.parametrize(("kind", "path", "value", "word"), SLIPS)
def test_a_slip_is_refused(kind: str, path: str, value: object, word: str) -> None:
    if kind in CUSTOM:
        need_crds()
    resource = of_kind(site("eks"), kind)[0]
    check(resource)
    operate(resource, {"op": "add", "path": path, "value": value})
    with pytest.raises(jsonschema.ValidationError, match=word):
        check(resource)


def test_every_folder_of_manifests_is_rendered_by_some_test() -> None:
    folders = {path.parent.relative_to(KUBERAY).as_posix() for path in KUBERAY.rglob("kustomization.yaml")}
    parts = {"base", "cluster", "job", "components/kueue", "components/monitoring"}
    assert folders == set(FOLDERS) | parts
    assert render(KUBERAY / "base")
