"""Every rendered manifest is what the API server takes, and a slip is not."""

from collections.abc import Callable
from operator import setitem

import jsonschema
import pytest

from tests.infra.kustomize import Resource, render
from tests.infra.overlays import FOLDERS, KUBERAY, rendered
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


SLIPS: list[tuple[str, str, Callable[[Resource], object]]] = [
    ("RayCluster", "idleTimeoutSecond", lambda spec: setitem(spec["autoscalerOptions"], "idleTimeoutSecond", 1)),
    ("RayCluster", "v3", lambda spec: setitem(spec["autoscalerOptions"], "version", "v3")),
    ("RayCluster", "nodeSelektor", lambda spec: setitem(spec["headGroupSpec"]["template"]["spec"], "nodeSelektor", {})),
    ("RayCluster", "priorty", lambda spec: setitem(spec["workerGroupSpecs"][0], "priorty", 1)),
    ("RayJob", "backofLimit", lambda spec: setitem(spec, "backofLimit", 1)),
    ("RayJob", "DeleteEverything", lambda spec: setitem(spec["deletionStrategy"]["deletionRules"][0], "policy", "DeleteEverything")),
    ("RayJob", "'yes'", lambda spec: setitem(spec["rayClusterSpec"], "enableInTreeAutoscaling", "yes")),
    ("NetworkPolicy", "policyType", lambda spec: setitem(spec, "policyType", [])),
    ("PodDisruptionBudget", "minAvail", lambda spec: setitem(spec, "minAvail", 1)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "word", "slip"), SLIPS, ids=[f"{kind}-{word}" for kind, word, _ in SLIPS])
def test_a_slip_is_refused(kind: str, word: str, slip: Callable[[Resource], object]) -> None:
    if kind in CUSTOM:
        need_crds()
    resource = next(each for folder in FOLDERS[3:6] for each in rendered(folder) if each["kind"] == kind)
    check(resource)
    slip(resource["spec"])
    with pytest.raises(jsonschema.ValidationError, match=word):
        check(resource)


def test_every_folder_of_manifests_is_rendered_by_some_test() -> None:
    folders = {path.parent.relative_to(KUBERAY).as_posix() for path in KUBERAY.rglob("kustomization.yaml")}
    parts = {"base", "cluster", "job", "components/kueue", "components/monitoring"}
    assert folders == set(FOLDERS) | parts
    assert render(KUBERAY / "base")
