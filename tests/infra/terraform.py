"""Terraform's folders, parsed, and what does not fit together in them; providers and accounts are not asked."""

import functools
import re
from collections.abc import Iterator
from typing import Any

import hcl2
from hcl2.utils import SerializationOptions

from tests.infra.overlays import INFRA

TERRAFORM = INFRA / "terraform"
ROOTS = ("aws", "gcp")
FOLDERS = ("store", *ROOTS)
PLAIN = SerializationOptions(with_comments=False, explicit_blocks=False, strip_string_quotes=True)


class Folder:
    """One folder's files as one text, and its blocks."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.blocks: dict[str, Any] = hcl2.loads(text, serialization_options=PLAIN)

    @classmethod
    @functools.cache
    def read(cls, name: str) -> "Folder":
        """The folder as it is; parsed once, so what is read must not be changed."""
        return cls(name, "\n".join(path.read_text() for path in sorted((TERRAFORM / name).glob("*.tf"))))

    def named(self, kind: str) -> dict[str, Any]:
        """Variables, outputs and modules by name."""
        return {name: body for block in self.blocks.get(kind, []) for name, body in block.items()}

    def resources(self, kind: str = "resource") -> dict[str, Any]:
        """Resources, or data sources, as `type.name`."""
        found = self.blocks.get(kind, [])
        return {f"{t}.{name}": body for block in found for t, named in block.items() for name, body in named.items()}

    def default(self, variable: str) -> Any:
        return self.named("variable")[variable]["default"]


def problems(folder: Folder, store: Folder) -> Iterator[str]:
    """What refers to nothing, what nothing refers to, and what says too little."""
    variables = folder.named("variable")
    code = re.sub(r'"(?:description|error_message)"?\s*=.*|#.*', "", folder.text)
    used = set(re.findall(r"\bvar\.(\w+)", code))
    if used != variables.keys():
        yield f"variables must be declared and used, got {sorted(used ^ variables.keys())}"
    for name, body in (variables | folder.named("output")).items():
        if not body.get("description", "").endswith("."):
            yield f"{name}: a sentence must say what it is"
    declared = {*folder.resources(), *(f"data.{name}" for name in folder.resources("data"))}
    for reference in re.findall(r"\b((?:data\.)?(?:aws|google)_\w+\.\w+)\b", code):
        if reference not in declared:
            yield f"{reference} must be declared"
    for name in re.findall(r"\blocal\.(\w+)", code):
        if name not in {key for block in folder.blocks.get("locals", []) for key in block}:
            yield f"local.{name} must be declared"
    outputs = store.named("output")
    for module, name in re.findall(r"\bmodule\.(\w+)\.(\w+)", code):
        if module not in folder.named("module") or name not in outputs:
            yield f"module.{module}.{name} must be declared"
    for body in folder.named("module").values():
        if body.keys() - {"source"} != store.named("variable").keys():
            yield f"the module must be given what it takes, got {sorted(body.keys() ^ store.named('variable').keys())}"
    if folder.name in ROOTS:
        [settings] = folder.blocks["terraform"]
        for name, provider in settings["required_providers"][0].items():
            if not re.fullmatch(r"\d+\.\d+\.\d+", provider.get("version", "")):
                yield f"the provider {name} must be pinned to one version"
