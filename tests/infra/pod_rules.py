"""What must hold for every pod that the manifests ask for; each rule yields what breaks it.

The facts come from the installed Ray where they can be asked there.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore
import ray
from ray.scripts.scripts import start as ray_start

from tests.infra.kustomize import Resource
from tests.infra.overlays import cluster_specs, environment, of_kind, pods, ray_pods

RAY = Path(ray.__file__).parent
# Seconds that a pod of ours has of a spot notice: of the 30 on Google, the kubelet keeps half for the system's pods.
NOTICE_S = {"eks": 120, "gke": 15}
UNITS = {"Mi": 2**20, "Gi": 2**30}


def waits_fit_together(resources: list[Resource], overlay: str) -> Iterator[str]:
    for pod in ray_pods(resources):
        found, grace_s = environment(pod, resources), pod.spec["terminationGracePeriodSeconds"]
        drain_s = float(found["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        if pod.group == "head":
            head_drain_s = drain_s
            if not 3 < float(found["RAY_JOB_STOP_WAIT_TIME_S"]) < drain_s:
                yield f"the driver must end within the drain, got {found['RAY_JOB_STOP_WAIT_TIME_S']} and {drain_s}"
        elif pod.group.endswith("-spot") and grace_s > NOTICE_S.get(overlay, grace_s):
            yield f"{pod.group}: the grace period must fit a spot notice of {NOTICE_S[overlay]}, got {grace_s}"
        if not 0 < drain_s < grace_s:
            yield f"{pod.group}: a drain must end before the grace period, got {drain_s} and {grace_s}"
        if drain_s > head_drain_s:
            yield f"{pod.group}: the head must outlast the drain of its workers, got {head_drain_s} and {drain_s}"
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


def names_are_known_to_ray(resources: list[Resource], overlay: str) -> Iterator[str]:
    options = {option.removeprefix("--") for parameter in ray_start.params for option in parameter.opts}
    for pod in ray_pods(resources):
        if unknown := {name for name in environment(pod, resources) if not _is_read(name)}:
            yield f"{pod.group}: some library must read the variable, got {unknown}"
        if unknown := pod.start.keys() - options:
            yield f"{pod.group}: `ray start` must know the option, got {unknown}"
    for spec in cluster_specs(resources):
        told = {each["name"] for each in spec.get("autoscalerOptions", {}).get("env", [])}
        if unknown := {name for name in told if not _is_read(name)}:
            yield f"autoscaler: Ray must read the variable, got {unknown}"
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
