"""The overlays keep every rule, and every rule catches what it is there for."""

from collections.abc import Callable

import pytest

from cluster.runtime import DRIVER_RESOURCE
from tests.infra.fleet_rules import JOB_START
from tests.infra.kustomize import Resource, operate
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


GROUP, HEAD = "/spec/workerGroupSpecs/0", "/spec/headGroupSpec/template/spec"
WORKER, START = f"{GROUP}/template/spec", f"{GROUP}/rayStartParams"
DRIVERS, HEAD_START = "/spec/workerGroupSpecs/5", "/spec/headGroupSpec/rayStartParams"
TOLD = "/spec/autoscalerOptions/env"
RULES, PART_OF = "/spec/deletionStrategy/deletionRules", "app.kubernetes.io~1part-of"

# In which resource, what is done to it, and the words in the complaint.
REMOVED = [
    ("RayCluster dass", f"{WORKER}/tolerations/1", "tolerate dass/spot"),
    ("RayCluster dass", f"{HEAD}/priorityClassName", "priority class"),
    ("RayCluster dass", f"{WORKER}/securityContext/runAsNonRoot", "not root"),
    ("RayCluster dass", f"{WORKER}/containers/0/securityContext/capabilities", "drop ALL"),
    ("RayCluster dass", "/spec/autoscalerOptions/securityContext", "autoscaler: a container"),
    ("RayCluster dass", f"{TOLD}/1", "how long to wait"),
    ("RayCluster dass", f"{HEAD_START}/resources", "lanes must be driven from"),
    ("RayCluster dass", f"{DRIVERS}/rayStartParams/resources", "lanes must be driven from"),
    ("RayCluster dass", f"{WORKER}/volumes/0", "every mount a volume"),
    ("RayCluster dass", f"{WORKER}/automountServiceAccountToken", "no business"),
    ("RayJob dass-collect", f"{RULES}/0", "no later than its job"),
    ("RayJob dass-collect", f"{RULES}/2", "no later than its job"),
    ("RayJob dass-collect", f"/spec/submitterPodTemplate/metadata/labels/{PART_OF}", "must find a pod"),
    ("ConfigMap dass-worker", "/data/AWS_ROLE_ARN", "a role and a region"),
    ("NetworkPolicy ray-nodes", "/spec/ingress/0/ports/0", "one side alone"),
    ("NetworkPolicy https", "/spec/egress/0/to/0/ipBlock/except", "metadata service"),
    ("NetworkPolicy default-deny", "/spec/policyTypes/1", "must be denied"),
    ("Namespace dass", "/metadata/labels/pod-security.kubernetes.io~1enforce", "restricted profile"),
]
CHANGED = [
    ("RayCluster dass", f"{HEAD}/nodeSelector/dass~1pool", "gpu-small-spot", "pool head"),
    ("RayCluster dass", f"{WORKER}/terminationGracePeriodSeconds", 600, "spot notice"),
    ("RayCluster dass", f"{WORKER}/terminationGracePeriodSeconds", 20, "before the grace"),
    ("RayCluster dass", f"{START}/object-store-memory", "5000000000", "object store must fit"),
    ("RayCluster dass", f"{START}/node-manager-port", "6390", "one side alone"),
    ("RayCluster dass", f"{START}/node-manger-port", "6380", "`ray start` must know"),
    ("RayCluster dass", f"{HEAD}/containers/0/readinessProbe/httpGet/path", "/api/version", "no token"),
    ("RayCluster dass", f"{HEAD}/serviceAccountName", "dass", "service account"),
    ("RayCluster dass", "/spec/rayVersion", "2.59.0", "lock file"),
    ("RayCluster dass", "/spec/authOptions/mode", "disabled", "token of one Secret"),
    ("RayCluster dass", "/spec/authOptions/secretName", "dass-token", "token of one Secret"),
    ("RayCluster dass", f"{WORKER}/containers/0/image", "dass:1", "one image"),
    ("RayCluster dass", "/spec/autoscalerOptions/version", "v1", "priorities"),
    ("RayCluster dass", f"{TOLD}/0/name", "RAY_AUTOSCALER_ALLOCATE_TIMEOUT_S", "Ray must read the variable"),
    ("RayCluster dass", f"{TOLD}/0/value", "3600", "come last until on demand"),
    ("RayCluster dass", f"{TOLD}/0/value", "300", "time to boot"),
    ("RayCluster dass", f"{TOLD}/1/value", "1800", "come last until on demand"),
    ("RayCluster dass", f"{TOLD}/2/value", "120", "while lanes start"),
    ("RayCluster dass", f"{HEAD_START}/resources", "'{\"drivers\": 30}'", "must ask for the resource"),
    ("RayCluster dass", f"{HEAD_START}/resources", f"'{{\"{DRIVER_RESOURCE}\": 90}}'", "drivers must fit"),
    ("RayCluster dass", f"{START}/resources", f"'{{\"{DRIVER_RESOURCE}\": 1}}'", "from nowhere else"),
    ("RayCluster dass", f"{DRIVERS}/template/spec/tolerations", [{"key": "dass/spot"}], "not be on spot"),
    ("RayCluster dass", f"{DRIVERS}/rayStartParams/num-cpus", "6", "beside drivers"),
    (
        "RayCluster dass",
        f"{DRIVERS}/template/spec/containers/0/envFrom",
        [{"configMapRef": {"name": "dass-worker"}}],
        "outlast the drain of workers",
    ),
    ("RayCluster dass", f"{WORKER}/volumes/3/projected/sources/0/serviceAccountToken/path", "t", "token for AWS"),
    ("RayJob dass-collect", "/spec/entrypoint", "python -m jobs colect --store s3://a", "is no verb"),
    ("RayJob dass-collect", "/spec/entrypoint", "python -m jobs collect --sotre s3://a", "No such option"),
    ("RayJob dass-collect", "/spec/entrypoint", "python -m jobs collect --recipe tiny1 --store s3://a", "tiny10"),
    ("RayJob dass-collect", "/spec/entrypoint", "python -m jobs collect --set lanes.nmu=1 --store s3://a", "lanes.num"),
    (
        "RayJob dass-collect",
        "/spec/entrypoint",
        "python -m jobs collect --recipe tiny10 --store s3://a",
        "needs --data",
    ),
    ("RayJob dass-collect", "/spec/entrypoint", "python -m jobs collect --store runs", "reach the store"),
    (
        "RayJob dass-collect",
        "/spec/entrypoint",
        "python -m jobs collect --recipe digits --store s3://a",
        "have a limit",
    ),
    (
        "RayJob dass-collect",
        "/spec/entrypoint",
        "python -m jobs collect --recipe digits --set prices.market=spot --store s3://a",
        "fell back to on demand",
    ),
    ("RayJob dass-collect", "/spec/suspend", True, "may be suspended"),
    ("RayJob dass-collect", "/spec/shutdownAfterJobFinishes", True, "not by both"),
    ("RayJob dass-collect", f"{RULES}/0/condition/ttlSeconds", 700000, "no later than its job"),
    ("ConfigMap dass-worker", "/data/RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "95", "before the grace"),
    ("ConfigMap dass-head", "/data/RAY_JOB_STOP_WAIT_TIME_S", "3", "driver must end"),
    ("ConfigMap dass-head", f"/data/{JOB_START}", "900", "outwait the spot groups"),
    ("ConfigMap dass-head", "/data/RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "60", "outlast the drain"),
    ("ConfigMap dass-head", "/data/RAY_JOB_STOP_WAIT_S", "45", "must read the variable"),
    ("ConfigMap dass-head", "/data/AWS_SECRET_ACCESS_KEY", "x", "no key"),
    ("NetworkPolicy submitter", f"/spec/podSelector/matchLabels/{PART_OF}", "das", "must find a pod"),
    ("PodDisruptionBudget dass-head", f"/spec/selector/matchLabels/{PART_OF}", "das", "keep every head"),
    ("ServiceAccount dass-worker", "/metadata/name", "dass-workers", "service account"),
]
PLANTED = [(where, {"op": "remove", "path": path}, words) for where, path, words in REMOVED] + [
    (where, {"op": "add", "path": path, "value": value}, words) for where, path, value, words in CHANGED
]


@pytest.mark.parametrize(
    ("where", "operation", "words"), PLANTED, ids=[f"{where}: {words}" for where, _, words in PLANTED]
)
def test_a_planted_mistake_is_found(where: str, operation: dict[str, object], words: str) -> None:
    resources = site("eks")
    kind, name = where.split()
    [resource] = [each for each in of_kind(resources, kind) if each["metadata"]["name"] == name]
    operate(resource, operation)
    assert words in "\n".join(broken(resources, "eks"))


def test_checkpoints_that_cost_more_than_the_gpu_are_found() -> None:
    resources = site("gke")
    [job] = of_kind(resources, "RayJob")
    job["spec"]["entrypoint"] = job["spec"]["entrypoint"].replace("--set lanes.checkpoint_s=900", "")
    assert "must be rare" in "\n".join(broken(resources, "gke"))
