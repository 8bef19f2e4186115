"""The overlays keep every rule, and every rule catches what it is there for."""

from collections.abc import Callable

import pytest

from tests.infra.kustomize import Resource
from tests.infra.overlays import OVERLAYS, of_kind, site
from tests.infra.rules import broken


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_keep_the_rules(overlay: str) -> None:
    assert broken(site(overlay), overlay) == []


def test_a_job_that_waits_for_kueue_keeps_the_rules(rendered_with: Callable[[str, str], list[Resource]]) -> None:
    others = [each for each in site("eks") if each["kind"] not in ("RayJob", "RayCluster")]
    jobs = rendered_with("overlays/eks/job", "kueue")
    assert broken(others + jobs, "eks") == []
    assert jobs[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "dass"


def test_what_monitors_keeps_the_rules(rendered_with: Callable[[str, str], list[Resource]]) -> None:
    assert broken(rendered_with("overlays/gke", "monitoring") + site("gke")[-2:], "gke") == []


def head(cluster: Resource) -> Resource:
    return dict(cluster["spec"]["headGroupSpec"]["template"]["spec"])


def group(cluster: Resource) -> Resource:
    return dict(cluster["spec"]["workerGroupSpecs"][0])


def worker(cluster: Resource) -> Resource:
    return dict(group(cluster)["template"]["spec"])


# What is changed in the resource of this kind and name, and the word in the complaint.
PLANTED: list[tuple[str, str, Callable[[Resource], object], str]] = [
    ("RayCluster", "dass", lambda r: worker(r)["tolerations"].pop(), "tolerate dass/spot"),
    ("RayCluster", "dass", lambda r: head(r)["nodeSelector"].update({"dass/pool": "gpu-small-spot"}), "pool head"),
    ("RayCluster", "dass", lambda r: r["spec"]["headGroupSpec"]["template"]["spec"].pop("priorityClassName"), "priority class"),
    ("RayCluster", "dass", lambda r: group(r)["template"]["spec"].update(terminationGracePeriodSeconds=600), "spot notice"),
    ("RayCluster", "dass", lambda r: group(r)["template"]["spec"].update(terminationGracePeriodSeconds=20), "before the grace"),
    ("RayCluster", "dass", lambda r: worker(r)["securityContext"].pop("runAsNonRoot"), "not root"),
    ("RayCluster", "dass", lambda r: worker(r)["containers"][0]["securityContext"].pop("capabilities"), "drop ALL"),
    ("RayCluster", "dass", lambda r: r["spec"]["autoscalerOptions"].pop("securityContext"), "autoscaler: a container"),
    ("RayCluster", "dass", lambda r: worker(r)["volumes"].pop(0), "every mount a volume"),
    ("RayCluster", "dass", lambda r: group(r)["rayStartParams"].update({"object-store-memory": "5000000000"}), "/dev/shm"),
    ("RayCluster", "dass", lambda r: group(r)["rayStartParams"].update({"node-manager-port": "6390"}), "one side alone"),
    ("RayCluster", "dass", lambda r: group(r)["rayStartParams"].update({"node-manger-port": "6380"}), "`ray start` must know"),
    ("RayCluster", "dass", lambda r: head(r)["containers"][0]["readinessProbe"]["httpGet"].update(path="/api/version"), "no token"),
    ("RayCluster", "dass", lambda r: r["spec"]["headGroupSpec"]["template"]["spec"].update(serviceAccountName="dass"), "service account"),
    ("RayCluster", "dass", lambda r: r["spec"].update(rayVersion="2.59.0"), "lock file"),
    ("RayCluster", "dass", lambda r: r["spec"]["authOptions"].update(mode="disabled"), "token of one Secret"),
    ("RayCluster", "dass", lambda r: r["spec"]["authOptions"].update(secretName="dass-token"), "token of one Secret"),
    ("RayCluster", "dass", lambda r: worker(r)["containers"][0].update(image="dass:1"), "one image"),
    ("RayCluster", "dass", lambda r: group(r)["rayStartParams"].update({"num-gpus": "1"}), "not in both"),
    ("RayCluster", "dass", lambda r: r["spec"]["autoscalerOptions"].update(version="v1"), "priorities"),
    ("RayCluster", "dass", lambda r: worker(r)["volumes"][-1]["projected"]["sources"][0]["serviceAccountToken"].update(path="t"), "token for AWS"),
    ("RayCluster", "dass", lambda r: group(r)["template"]["spec"].pop("automountServiceAccountToken"), "no business"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs colect --store s3://a"), "is no verb"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs collect --sotre s3://a"), "No such option"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs collect --recipe tiny1 --store s3://a"), "tiny10"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs collect --set lanes.nmu=1 --store s3://a"), "lanes.num"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs collect --recipe tiny10 --store s3://a"), "needs --data"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(entrypoint="python -m jobs collect --store runs"), "reach the store"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(suspend=True), "may be suspended"),
    ("RayJob", "dass-collect", lambda r: r["spec"].update(shutdownAfterJobFinishes=True), "not by both"),
    ("RayJob", "dass-collect", lambda r: r["spec"]["deletionStrategy"]["deletionRules"].pop(0), "no later than its job"),
    ("RayJob", "dass-collect", lambda r: r["spec"]["deletionStrategy"]["deletionRules"].pop(2), "no later than its job"),
    ("RayJob", "dass-collect", lambda r: r["spec"]["submitterPodTemplate"]["metadata"]["labels"].clear(), "must find a pod"),
    ("ConfigMap", "dass-worker", lambda r: r["data"].update(RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="95"), "before the grace"),
    ("ConfigMap", "dass-head", lambda r: r["data"].update(RAY_JOB_STOP_WAIT_TIME_S="3"), "driver must end"),
    ("ConfigMap", "dass-head", lambda r: r["data"].update(RAY_JOB_STOP_WAIT_S="45"), "must read the variable"),
    ("ConfigMap", "dass-head", lambda r: r["data"].update(AWS_SECRET_ACCESS_KEY="x"), "no key"),
    ("ConfigMap", "dass-worker", lambda r: r["data"].pop("AWS_ROLE_ARN"), "a role and a region"),
    ("NetworkPolicy", "ray-nodes", lambda r: r["spec"]["ingress"][0]["ports"].pop(0), "one side alone"),
    ("NetworkPolicy", "submitter", lambda r: r["spec"]["podSelector"]["matchLabels"].update({"app.kubernetes.io/part-of": "das"}), "must find a pod"),
    ("NetworkPolicy", "https", lambda r: r["spec"]["egress"][0]["to"][0]["ipBlock"].pop("except"), "metadata service"),
    ("NetworkPolicy", "default-deny", lambda r: r["spec"]["policyTypes"].pop(), "must be denied"),
    ("PodDisruptionBudget", "dass-head", lambda r: r["spec"]["selector"]["matchLabels"].update({"app.kubernetes.io/component": "haed"}), "keep every head"),
    ("Namespace", "dass", lambda r: r["metadata"]["labels"].clear(), "restricted profile"),
    ("ServiceAccount", "dass-worker", lambda r: r["metadata"].update(name="dass-workers"), "service account"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name", "plant", "word"), PLANTED, ids=[f"{kind}-{word}" for kind, _, _, word in PLANTED]
)
def test_a_planted_mistake_is_found(kind: str, name: str, plant: Callable[[Resource], object], word: str) -> None:
    resources = site("eks")
    [resource] = [each for each in of_kind(resources, kind) if each["metadata"]["name"] == name]
    plant(resource)
    complaints = "\n".join(broken(resources, "eks"))
    assert word in complaints
