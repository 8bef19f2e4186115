"""What must hold between the parts of the manifests, beyond any schema; each rule yields what breaks it.

The facts behind them: KubeRay 1.7's own validation (ray-operator/controllers/ray/utils/validation.go), and the installed Ray.
"""

import ast
import math
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore
import ray
import typer
from ray.scripts.scripts import start as ray_start

from dass.errors import DassError
from jobs.__main__ import app, configured
from tests.infra.kustomize import Resource
from tests.infra.overlays import cluster_specs, environment, of_kind, pods, ray_pods

RAY = Path(ray.__file__).parent
NOTICE_S = {
    "eks": 120,
    "gke": 15,
}  # what a pod of ours has of a spot notice; GKE's kubelet keeps half of 30 s for the system
PORT_OPTIONS = re.compile(
    r"(node-manager|object-manager|runtime-env-agent|dashboard-agent-grpc|dashboard-agent-listen|metrics-export)-port"
)
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}

Rule = Callable[[list[Resource], str], Iterator[str]]


def waits_fit_together(resources: list[Resource], overlay: str) -> Iterator[str]:
    for pod in ray_pods(resources):
        found = environment(pod, resources)
        drain_s, grace_s = (
            float(found["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]),
            pod.spec["terminationGracePeriodSeconds"],
        )
        if not 0 < drain_s < grace_s:
            yield f"{pod.group}: a drain must end before the grace period, got {drain_s} and {grace_s}"
        if pod.group == "head" and not 3 < float(found["RAY_JOB_STOP_WAIT_TIME_S"]) < drain_s:
            yield f"the driver must end within the drain, got {found['RAY_JOB_STOP_WAIT_TIME_S']} and {drain_s}"
        if pod.group != "head" and grace_s > NOTICE_S.get(overlay, grace_s):
            yield f"{pod.group}: the grace period must fit a spot notice of {NOTICE_S[overlay]}, got {grace_s}"
        if float(found["RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S"]) > drain_s / 5:
            yield f"{pod.group}: Ray Train must look several times during a drain of {drain_s} s"


def spot_is_for_workers_that_say_so(resources: list[Resource], overlay: str) -> Iterator[str]:
    for pod in pods(resources):
        keys = {each["key"] for each in pod.spec.get("tolerations", [])}
        if ("dass/spot" in keys) != pod.group.endswith("-spot"):
            yield f"{pod.group}: only groups named -spot, and all of them, must tolerate dass/spot"
        if ("nvidia.com/gpu" in keys) != pod.group.startswith("gpu-"):
            yield f"{pod.group}: only groups named gpu-, and all of them, must tolerate nvidia.com/gpu"
        if ("nvidia.com/gpu" in pod.container["resources"]["limits"]) != pod.group.startswith("gpu-"):
            yield f"{pod.group}: only groups named gpu- must have a GPU, and all of them"
        pool = pod.spec.get("nodeSelector", {}).get("dass/pool")
        wanted = {"submitter": "head"}.get(pod.group, pod.group) if overlay != "kind" else None
        if pool != wanted:
            yield f"{pod.group}: the pod must go to the pool {wanted}, got {pool}"


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
            if not any(
                _selects(each["selector"], pod.labels) and each.get("minAvailable", 0) > 100 for each in budgets
            ):
                yield "a disruption budget must keep every head"


def pods_are_restricted(resources: list[Resource], overlay: str) -> Iterator[str]:
    for pod in pods(resources):
        whole = pod.spec.get("securityContext", {})
        if (
            not whole.get("runAsNonRoot")
            or whole.get("runAsUser", 0) == 0
            or whole.get("seccompProfile", {}).get("type") != "RuntimeDefault"
        ):
            yield f"{pod.group}: the pod must run as a numeric user, not root, under the default seccomp profile"
        for container in pod.spec["containers"]:
            yield from _is_contained(pod.group, container.get("securityContext", {}))
        if pod.group not in ("head", "submitter") and pod.spec.get("automountServiceAccountToken", True):
            yield f"{pod.group}: a worker has no business with the Kubernetes API"
    for spec in cluster_specs(resources):
        if spec["enableInTreeAutoscaling"]:
            yield from _is_contained("autoscaler", spec["autoscalerOptions"].get("securityContext", {}))
    for namespace in of_kind(resources, "Namespace"):
        if namespace["metadata"]["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace must enforce the restricted profile"


def _is_contained(name: str, context: dict[str, Any]) -> Iterator[str]:
    is_contained = context.get("allowPrivilegeEscalation") is False and context.get("capabilities", {}).get("drop") == [
        "ALL"
    ]
    if not is_contained or not context.get("readOnlyRootFilesystem"):
        yield f"{name}: a container must drop ALL, escalate nothing and have a read-only root"


def access_goes_without_keys(resources: list[Resource], overlay: str) -> Iterator[str]:
    if of_kind(resources, "Secret"):
        yield "secrets are made by hand, never by a manifest"
    secrets = {spec.get("authOptions", {}).get("secretName") for spec in cluster_specs(resources)}
    if len(secrets) != 1 or any(
        spec.get("authOptions", {}).get("mode") != "token" for spec in cluster_specs(resources)
    ):
        yield f"every Ray cluster must ask for the token of one Secret, got {secrets}"
    for pod in ray_pods(resources):
        found = environment(pod, resources)
        if keys := {name for name in found if "ACCESS_KEY" in name or "TOKEN" in name} - {
            "AWS_WEB_IDENTITY_TOKEN_FILE"
        }:
            yield f"{pod.group}: no key may stand in a manifest, got {keys}"
        if overlay == "kind":
            continue
        if (
            not re.fullmatch(r"arn:aws:iam::\d{12}:role/[\w-]+", found.get("AWS_ROLE_ARN", ""))
            or "AWS_DEFAULT_REGION" not in found
        ):
            yield f"{pod.group}: a role and a region must be named, got {found.get('AWS_ROLE_ARN')}"
        [token] = [
            each["projected"]["sources"][0]["serviceAccountToken"]
            for each in pod.spec["volumes"]
            if each["name"] == "aws-token"
        ]
        [mount] = [each["mountPath"] for each in pod.container["volumeMounts"] if each["name"] == "aws-token"]
        if token["audience"] != "sts.amazonaws.com" or f"{mount}/{token['path']}" != found.get(
            "AWS_WEB_IDENTITY_TOKEN_FILE"
        ):
            yield f"{pod.group}: AWS_WEB_IDENTITY_TOKEN_FILE must be where the token for AWS is mounted"


def volumes_are_there(resources: list[Resource], overlay: str) -> Iterator[str]:
    claims = {each["metadata"]["name"] for each in of_kind(resources, "PersistentVolumeClaim")}
    for pod in pods(resources):
        volumes = {each["name"]: each for each in pod.spec["volumes"]}
        mounts = {each["name"]: each["mountPath"] for each in pod.container["volumeMounts"]}
        if volumes.keys() != mounts.keys():
            yield f"{pod.group}: every volume must be mounted and every mount a volume, got {volumes.keys() ^ mounts.keys()}"
        if mounts.get("tmp") != "/tmp":  # noqa: S108 - the mount in the pod
            yield f"{pod.group}: with a read-only root /tmp must be a volume"
        wanted = {
            each["persistentVolumeClaim"]["claimName"] for each in volumes.values() if "persistentVolumeClaim" in each
        }
        if not wanted <= claims:
            yield f"{pod.group}: a claim must exist, got {wanted - claims}"
        if pod.start and not int(pod.start["object-store-memory"]) <= _bytes(
            volumes["shared-mem"]["emptyDir"]["sizeLimit"]
        ):
            yield f"{pod.group}: Ray's object store must fit into /dev/shm"


def _bytes(size: str) -> int:
    return int(size[:-2]) * UNITS[size[-2:]]


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


def probes_ask_what_answers(resources: list[Resource], overlay: str) -> Iterator[str]:
    for pod in ray_pods(resources):
        for name in ("readinessProbe", "livenessProbe"):
            asked = pod.container.get(name, {}).get("httpGet", {})
            if (
                asked.get("path") not in _public_paths()
                or str(asked.get("port")) != pod.start["dashboard-agent-listen-port"]
            ):
                yield f"{pod.group}: {name} must ask the agent for what needs no token, got {asked}"


@cache
def _public_paths() -> list[str]:
    """The paths that Ray's agent answers without a token, from its source."""
    for node in ast.parse((RAY / "dashboard/http_server_agent.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PUBLIC_EXACT_PATHS":
            return list(ast.literal_eval(node.value))
    raise AssertionError("Ray names its public paths in another way now")


def selectors_find_pods(resources: list[Resource], overlay: str) -> Iterator[str]:
    labels = [pod.labels for pod in pods(resources)]
    for resource in resources:
        for path, selector in _selectors(
            resource["spec"] if resource["kind"] in ("NetworkPolicy", "PodDisruptionBudget", "PodMonitor") else {}
        ):
            if selector and not any(_selects(selector, each) for each in labels):
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


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    is_same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return is_same and all(labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", []))


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


def names_are_known_to_ray(resources: list[Resource], overlay: str) -> Iterator[str]:
    options = {option.removeprefix("--") for parameter in ray_start.params for option in parameter.opts}
    for pod in ray_pods(resources):
        if unknown := {name for name in environment(pod, resources) if not _is_read(name)}:
            yield f"{pod.group}: some library must read the variable, got {unknown}"
        if unknown := pod.start.keys() - options:
            yield f"{pod.group}: `ray start` must know the option, got {unknown}"
    for spec in cluster_specs(resources):
        if spec["rayVersion"] != version("ray"):
            yield f"rayVersion must be that of the lock file, {version('ray')}, got {spec['rayVersion']}"


def _is_read(name: str) -> bool:
    """Whether Ray, or botocore for AWS, speaks of this variable; the NVIDIA runtime is no file here."""
    return name == "NVIDIA_VISIBLE_DEVICES" or name in _variables()


@cache
def _variables() -> frozenset[str]:
    """All words in the sources of Ray and botocore that could be such variables."""
    paths = [*Path(botocore.__file__).parent.glob("*.py"), *RAY.rglob("*.py")]
    texts = (path.read_text(errors="ignore") for path in paths if not {"tests", "thirdparty_files"} & set(path.parts))
    return frozenset(word for text in texts for word in re.findall(r"\b(?:RAY|AWS)_\w+", text))


def one_image_serves_all(resources: list[Resource], overlay: str) -> Iterator[str]:
    images = {pod.container["image"] for pod in pods(resources)}
    if len(images) != 1 or ":" not in next(iter(images)):
        yield f"one image with a tag must serve head, workers and submitter, got {images}"


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
            yield from _store_is_reached(given["store"], overlay, resources)
        except (ValueError, IndexError, DassError, typer.TyperException) as error:
            yield f"the entrypoint must be a command of this version, got {error}"


def _store_is_reached(store: str, overlay: str, resources: list[Resource]) -> Iterator[str]:
    is_right = store.startswith("/store/" if overlay == "kind" else "s3://")
    if not is_right:
        yield f"every node must reach the store, got {store}"


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


RULES: tuple[Rule, ...] = (
    waits_fit_together,
    spot_is_for_workers_that_say_so,
    heads_are_protected,
    pods_are_restricted,
    access_goes_without_keys,
    volumes_are_there,
    ports_are_open_and_no_others,
    probes_ask_what_answers,
    selectors_find_pods,
    references_are_there,
    names_are_known_to_ray,
    one_image_serves_all,
    entrypoints_are_commands,
    kuberay_takes_it,
)


def broken(resources: list[Resource], overlay: str) -> list[str]:
    """What the resources of an overlay break, over all rules."""
    return [message for rule in RULES for message in rule(resources, overlay)]
