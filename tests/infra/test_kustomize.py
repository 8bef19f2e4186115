"""The small renderer against the real one, where that is installed, and against what it does not know."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.kustomize import KustomizeError, Resource, render
from tests.infra.overlays import FOLDERS, KUBERAY

KUBECTL = shutil.which("kubectl")


def by_name(resources: list[Resource]) -> dict[tuple[str, str], Resource]:
    named = {(resource["kind"], resource["metadata"]["name"]): resource for resource in resources}
    assert len(named) == len(resources)
    return named


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_renderer_prints_what_kubectl_prints(folder: str) -> None:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", KUBERAY / folder], capture_output=True, text=True, timeout=60, check=True
    )
    assert by_name(render(KUBERAY / folder)) == by_name(list(yaml.load_all(done.stdout, yaml.CSafeLoader)))


def write(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **config}))
    for name, value in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value))
    return folder


SECRET = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "a"}, "data": {"x": "1"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"namePrefix": "x-"}, r"unknown keys \['namePrefix'\]"),
        ({"kind": "Component"}, "must hold a Kustomization"),
        ({"patches": [{"path": "x.yaml"}]}, "list of operations"),
        ({"patches": [{"target": {"kind": "Secre"}, "patch": "[]"}]}, "must hit something"),
        (
            {"patches": [{"target": {"kind": "Secret"}, "patch": "[{op: replace, path: /data/y, value: 1}]"}]},
            "its place",
        ),
        ({"patches": [{"target": {"kind": "Secret"}, "patch": "[{op: remove, path: /dat/x}]"}]}, "its place"),
        ({"patches": [{"target": {"kind": "Secret"}, "patch": "[{op: move, path: /data/x}]"}]}, "got move"),
        ({"resources": ["a.yaml", "a.yaml"]}, "there twice"),
        ({"images": [{"name": "dass", "newTag": 4186109}]}, "must be text"),
    ],
)
def test_what_is_unknown_or_hits_nothing_is_refused(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    folder = write(tmp_path, {"resources": ["a.yaml"]} | config, a=SECRET)
    with pytest.raises(KustomizeError, match=message):
        render(folder)
