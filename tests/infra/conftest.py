"""Rendering an overlay as a user would who adds a component to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.infra.kustomize import Resource, render
from tests.infra.overlays import KUBERAY


@pytest.fixture
def rendered_with(tmp_path: Path) -> Callable[[str, str], list[Resource]]:
    """The resources of an overlay's folder with one more component."""

    def with_component(folder: str, component: str) -> list[Resource]:
        place = tmp_path / component
        place.mkdir()
        config = {
            "kind": "Kustomization",
            "resources": [str(KUBERAY / folder)],
            "components": [str(KUBERAY / "components" / component)],
        }
        (place / "kustomization.yaml").write_text(yaml.safe_dump(config))
        return render(place)

    return with_component
