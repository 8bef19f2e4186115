"""What must hold between the manifests of an overlay; each rule yields what breaks it.

What KubeRay refuses is told after its own validation, ray-operator/controllers/ray/utils/validation.go of 1.7.
"""

import math
import re
import shlex
from collections.abc import Iterator
from typing import Any

import typer

from dass.errors import DassError
from jobs.__main__ import app, configured
from jobs.config import Config
from tests.infra.kustomize import Resource
from tests.infra.overlays import cluster_specs, of_kind, pods, ray_pods, selects

CHECKPOINT_S = 900  # where each is paid by the GB, infra/README.md has the sum
PORT_OPTIONS = re.compile(
    r"(node-manager|object-manager|runtime-env-agent|dashboard-agent-grpc|dashboard-agent-listen|metrics-export)-port"
)


def heads_are_protected(resources: list[Resource], overlay: str) -> Iterator[str]:
    classes = {each["metadata"]["name"]: each for each in of_kind(resources, "PriorityClass")}
    budgets = [each["spec"] for each in of_kind(resources, "PodDisruptionBudget")]
    for pod in ray_pods(resources):
        if (
            pod.template["metadata"].get("annotations", {}).get("cluster-autoscaler.kubernetes.io/safe-to-evict")
            != "false"
        ):
            yield f"{pod.group}: the autoscaler of the nodes must leave it alone"
        if pod.group == "head":
            if classes.get(pod.spec.get("priorityClassName"), {}).get("value", 0) <= 0:
                yield "the head must have a priority class of its own"
            if not any(selects(each["selector"], pod.labels) and each.get("minAvailable", 0) > 100 for each in budgets):
                yield "a disruption budget must keep every head"


def references_are_there(resources: list[Resource], overlay: str) -> Iterator[str]:
    accounts = {each["metadata"]["name"] for each in of_kind(resources, "ServiceAccount")}
    maps = {each["metadata"]["name"] for each in of_kind(resources, "ConfigMap")}
    for pod in ray_pods(resources):
        if pod.spec["serviceAccountName"] not in accounts:
            yield f"{pod.group}: the service account must exist, got {pod.spec['serviceAccountName']}"
        if not {each["configMapRef"]["name"] for each in pod.container["envFrom"]} <= maps:
            yield f"{pod.group}: its environment must exist"
    namespaces = {
        each["metadata"].get("namespace") for each in resources if each["kind"] not in ("Namespace", "PriorityClass")
    }
    if namespaces != {each["metadata"]["name"] for each in of_kind(resources, "Namespace")}:
        yield f"all must lie in the one namespace, got {namespaces}"


def ports_are_open_and_no_others(resources: list[Resource], overlay: str) -> Iterator[str]:
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(resources, "NetworkPolicy")}
    if policies["default-deny"] != {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}:
        yield "whatever is not allowed must be denied"
    nodes = policies["ray-nodes"]
    allowed = {(each["port"], each.get("endPort", each["port"])) for each in nodes["ingress"][0]["ports"]}
    if nodes["ingress"][0]["ports"] != nodes["egress"][0]["ports"]:
        yield "Ray's nodes must send where they may receive"
    for spec in cluster_specs(resources):
        used = {(6379, 6379), (8265, 8265)}  # of GCS and the dashboard, Ray's defaults
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            params = group["rayStartParams"]
            used |= {(int(value), int(value)) for name, value in params.items() if PORT_OPTIONS.fullmatch(name)}
            used.add((int(params["min-worker-port"]), int(params["max-worker-port"])))
            named = {each["containerPort"] for each in group["template"]["spec"]["containers"][0]["ports"]}
            if not named <= {first for first, _ in used}:
                yield f"a pod must name ports that Ray was told, got {named}"
        if allowed != used:
            yield f"the policy ray-nodes must name the ports of the clusters, got {sorted(allowed ^ used)} on one side alone"
    for name, policy in policies.items():
        for rule in policy.get("egress", []):
            for place in rule["to"]:
                block = place.get("ipBlock", {})
                if block.get("cidr") == "0.0.0.0/0" and block.get("except") != ["169.254.0.0/16"]:
                    yield f"{name}: the metadata service, which hands out the node's role, must stay closed"


def selectors_find_pods(resources: list[Resource], overlay: str) -> Iterator[str]:
    labels = [pod.labels for pod in pods(resources)]
    for resource in resources:
        for path, selector in _selectors(
            resource["spec"] if resource["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor") else {}
        ):
            if selector and not any(selects(selector, each) for each in labels):
                yield f"{resource['kind']} {resource['metadata']['name']}: {path} must find a pod, got {selector}"


def _selectors(part: Any, path: str = "spec") -> Iterator[tuple[str, Any]]:
    """The selectors of our own pods; one beside a namespaceSelector is about others."""
    if isinstance(part, list):
        for each in part:
            yield from _selectors(each, path)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in ("podSelector", "selector") and "namespaceSelector" not in part:
                yield f"{path}.{key}", value
            elif key not in ("podSelector", "namespaceSelector"):
                yield from _selectors(value, f"{path}.{key}")


def entrypoints_are_commands(resources: list[Resource], overlay: str) -> Iterator[str]:
    for job in of_kind(resources, "RayJob"):
        words = shlex.split(job["spec"]["entrypoint"])
        verbs: Any = typer.main.get_command(app)
        try:
            if words[:3] != ["python", "-m", "jobs"] or words[3] not in verbs.commands:
                raise ValueError(f"{words[:4]} is no verb")
            given = verbs.commands[words[3]].make_context(words[3], words[4:]).params
            config = configured(given["recipe"], given["settings"], given["source"])
            if not config.data.source:
                raise ValueError("the recipe needs --data")
            yield from _store_is_reached(given["store"], overlay)
            yield from _is_bounded(config, overlay)
        except (ValueError, IndexError, DassError, typer.TyperException) as error:
            yield f"the entrypoint must be a command of this version, got {error}"


def _store_is_reached(store: str, overlay: str) -> Iterator[str]:
    if not store.startswith("/store/" if overlay == "kind" else "s3://"):
        yield f"every node must reach the store, got {store}"


def _is_bounded(config: Config, overlay: str) -> Iterator[str]:
    if overlay != "kind" and config.collect.max_cost is None:
        yield "a job on rented machines must have a limit, got no collect.max_cost"
    if config.prices.market != "on_demand":
        yield f"a budget must count lanes that fell back to on demand, got prices.market={config.prices.market}"
    if overlay == "gke" and config.lanes.checkpoint_s < CHECKPOINT_S:
        yield f"checkpoints that leave the cloud must be rare, {CHECKPOINT_S} s, got {config.lanes.checkpoint_s}"


def kuberay_takes_it(resources: list[Resource], overlay: str) -> Iterator[str]:
    for spec in cluster_specs(resources):
        groups = spec["workerGroupSpecs"]
        is_v2 = spec["enableInTreeAutoscaling"] and spec.get("autoscalerOptions", {}).get("version") == "v2"
        for group in groups:
            if "priority" in group and not is_v2:
                yield f"{group['groupName']}: only autoscaler v2 knows priorities"
            if group["minReplicas"] > group["maxReplicas"] or ("replicas" in group) == spec["enableInTreeAutoscaling"]:
                yield f"{group['groupName']}: replicas are the autoscaler's, and else must be given"
        if len({group["groupName"] for group in groups}) != len(groups):
            yield "groups must have different names"
        if any(
            pod["template"]["spec"].get("restartPolicy", "Never") != "Never" for pod in [spec["headGroupSpec"], *groups]
        ):
            yield "restartPolicy must be Never under autoscaler v2"
        storage = spec.get("gcsFaultToleranceOptions", {})
        if storage and (storage["backend"] != "rocksdb" or storage.keys() - {"backend", "storage"}):
            yield "RocksDB takes nothing of Redis"
    for job in of_kind(resources, "RayJob"):
        yield from _job_is_taken(job["spec"])


def _job_is_taken(spec: dict[str, Any]) -> Iterator[str]:
    rules = spec.get("deletionStrategy", {}).get("deletionRules", [])
    if bool(rules) == spec.get("shutdownAfterJobFinishes", False):
        yield "a job must go by deletion rules or by shutdownAfterJobFinishes, and not by both"
    if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
        yield "a job that may be suspended must shut down when it finishes"
    waits: dict[str, dict[str, int]] = {}
    for rule in rules:
        condition = dict(rule["condition"])
        wait_s = condition.pop("ttlSeconds", 0)
        [state] = condition.values()
        if rule["policy"] in waits.setdefault(state, {}) or rule["policy"] == "DeleteWorkers":
            yield f"a rule must be there once, and DeleteWorkers not beside an autoscaler, got {rule}"
        waits[state][rule["policy"]] = wait_s
    for state in ("SUCCEEDED", "FAILED", "Failed") if rules else ():
        wait = waits.get(state, {})
        if not wait.get("DeleteCluster", math.inf) <= wait.get("DeleteSelf", math.inf) < math.inf:
            yield f"{state}: the cluster must go, and no later than its job, got {wait}"
    if not 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]:
        yield "a job must be given time to start and an end"
