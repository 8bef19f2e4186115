"""A small kustomize: renders what infra/kuberay uses - resources, components, JSON patches by kind and name, namespace,
images, replacements, local-config - and refuses everything else. test_kustomize.py compares it with the real one.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Resource = dict[str, Any]

KEYS = {
    "Kustomization": {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"},
    "Component": {"apiVersion", "kind", "resources", "patches", "replacements"},
}
CLUSTER_SCOPED = {"Namespace", "PriorityClass"}
LOCAL = "config.kubernetes.io/local-config"


class KustomizeError(Exception):
    """A kustomization that cannot be rendered, or that uses what this renderer does not know."""


def render(folder: Path) -> list[Resource]:
    """The resources that `kubectl kustomize FOLDER` prints, in no particular order."""
    return [resource for resource in _built(folder) if LOCAL not in (resource["metadata"].get("annotations") or {})]


def load(path: Path) -> list[Resource]:
    """The documents of a YAML file, without shared parts where it has aliases."""
    return [json.loads(json.dumps(each)) for each in yaml.load_all(path.read_text(), yaml.CSafeLoader) if each]


def _built(folder: Path, component_of: list[Resource] | None = None) -> list[Resource]:
    [config] = load(folder / "kustomization.yaml")
    kind = config.get("kind")
    if kind not in KEYS or (kind == "Component") != (component_of is not None):
        raise KustomizeError(
            f"{folder} must hold a Kustomization where resources name it, else a Component, got {kind}"
        )
    if unknown := config.keys() - KEYS[kind]:
        raise KustomizeError(f"{folder}: unknown keys {sorted(unknown)}; teach them to tests/infra/kustomize.py")
    resources = component_of or []
    for name in config.get("resources", []):
        path = folder / name
        resources += _built(path) if path.is_dir() else load(path)
    for name in config.get("components", []):
        resources = _built(folder / name, resources)
    for patch in config.get("patches", []):
        _patch(resources, patch)
    if "namespace" in config:
        for resource in resources:
            key = "name" if resource["kind"] == "Namespace" else "namespace"
            if resource["kind"] not in CLUSTER_SCOPED or key == "name":
                resource["metadata"][key] = config["namespace"]
    for image in config.get("images", []):
        _set_image(resources, image)
    for replacement in config.get("replacements", []):
        _replace(resources, replacement)
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in resources]
    if len(set(names)) != len(names):
        raise KustomizeError(f"{folder}: a resource is there twice among {sorted(map(str, names))}")
    return resources


def _patch(resources: list[Resource], patch: dict[str, Any]) -> None:
    if patch.keys() != {"target", "patch"} or not patch["target"].keys() <= {"kind", "name"}:
        raise KustomizeError(f"a patch must be a list of operations with a target of kind and name, got {patch}")
    operations = yaml.load(patch["patch"], yaml.CSafeLoader)
    targets = [each for each in resources if _is_selected(each, patch["target"])]
    if not targets:
        raise KustomizeError(f"a patch must hit something, got {patch['target']}")
    for target in targets:
        for operation in json.loads(json.dumps(operations)):
            operate(target, operation)


def _is_selected(resource: Resource, target: dict[str, str]) -> bool:
    found = {"kind": resource["kind"], "name": resource["metadata"]["name"]}
    return all(re.fullmatch(pattern, found[key]) for key, pattern in target.items())


def operate(resource: Resource, operation: dict[str, Any]) -> None:
    """One operation of RFC 6902."""
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
    try:
        place: Any = resource
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place[part]
        key: Any = last
        if isinstance(place, list):
            key = len(place) if last == "-" else int(last)
        match operation["op"]:
            case "add" if isinstance(place, list):
                place.insert(key, operation["value"])
            case "add":
                place[key] = operation["value"]
            case "replace":
                place[key], _ = operation["value"], place[key]
            case "remove":
                del place[key]
            case unknown:
                raise KustomizeError(f"an operation must be add, replace or remove, got {unknown}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise KustomizeError(
            f"{operation['op']} must find its place in {resource['kind']}, got {operation['path']}"
        ) from error


def _containers(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from _containers(value)
    elif isinstance(part, list):
        for value in part:
            yield from _containers(value)


def _set_image(resources: list[Resource], image: dict[str, Any]) -> None:
    if not image.keys() <= {"name", "newName", "newTag"}:
        raise KustomizeError(f"an image may have name, newName and newTag, got {sorted(image)}")
    if not all(isinstance(value, str) for value in image.values()):
        raise KustomizeError(f"name and tag of an image must be text, got {image}; put them in quotes")
    for container in _containers(resources):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}".rstrip(":")


def _replace(resources: list[Resource], replacement: dict[str, Any]) -> None:
    source = replacement["source"]
    [origin] = [each for each in resources if each["kind"] == source["kind"]]
    value = _at(origin, source["fieldPath"].split("."))
    for target in replacement["targets"]:
        for resource in resources:
            if resource["kind"] == target["select"]["kind"]:
                for path in target["fieldPaths"]:
                    *parents, last = path.split(".")
                    place = _at(resource, parents)
                    if last not in place and not target.get("options", {}).get("create"):
                        raise KustomizeError(f"a replacement must find {path} in {resource['kind']}")
                    place[last] = json.loads(json.dumps(value))


def _at(resource: Any, path: list[str]) -> Any:
    for part in path:
        try:
            if selected := re.fullmatch(r"\[(\w+)=(.+)\]", part):
                [resource] = [each for each in resource if each[selected[1]] == selected[2]]
            else:
                resource = resource[part]
        except (KeyError, TypeError, ValueError) as error:
            raise KustomizeError(f"a replacement must find {'.'.join(path)}") from error
    return resource
