"""The schemas that the API server would apply: KubeRay's CRDs and the core of Kubernetes, closed against unknown fields."""

import functools
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.infra.kustomize import Resource
from tests.infra.overlays import ROOT

CRDS = ROOT.parent / "shared" / "schemas" / "kuberay"
CUSTOM = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
VERSIONS = ("1.33", "1.37")  # of Kubernetes: the oldest that infra/terraform accepts, and the newest with a schema
NO_SCHEMA = {"PodMonitor"}  # of the Prometheus operator


def check(resource: Resource) -> None:
    """Raises ValidationError where the API server would refuse the resource or drop a field of it."""
    kind = resource["kind"]
    if kind in CUSTOM:
        _validator(CRDS / CUSTOM[kind]).validate(resource)
    elif kind not in NO_SCHEMA:
        for version in VERSIONS:
            kubernetes_validate.validate(resource, version, strict=True)


def need_crds() -> None:
    """Skip a test where KubeRay's CRDs are not there."""
    if not CRDS.is_dir():
        pytest.skip(f"KubeRay's CRDs are not at {CRDS}")


@functools.cache
def _validator(path: Path) -> jsonschema.Draft202012Validator:
    crd = yaml.load(path.read_text(), yaml.CSafeLoader)
    [version] = [each for each in crd["spec"]["versions"] if each["name"] == "v1"]
    return jsonschema.Draft202012Validator(_closed(version["schema"]["openAPIV3Schema"]))


def _closed(schema: Any) -> Any:
    """The schema, where an object may have no other properties than those that are named."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_open = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        is_root = "apiVersion" in schema["properties"] and "spec" in schema["properties"]
        if is_root:  # the schema says nothing of metadata but that it is an object
            closed["properties"] |= {"metadata": {"type": "object"}}
        closed["additionalProperties"] = False
    return closed
