"""infra/README.md is true: its commands, paths, names and messages are those of the code."""

import re
import shlex
from functools import cache
from typing import Any

import pytest
import typer

from jobs.__main__ import app
from tests.infra.overlays import INFRA, KUBERAY, ROOT, of_kind, rendered
from tests.infra.terraform import Folder

README = (INFRA / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
LINES = [line.partition("   #")[0] for block in BLOCKS for line in block.replace("\\\n", " ").splitlines()]


def commands(start: str) -> list[str]:
    return [line for line in LINES if line.startswith(start)]


def test_every_path_is_there() -> None:
    paths = set(re.findall(r"\binfra/[\w./-]+", README))
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path.rstrip(".")).exists()] == []


@pytest.mark.parametrize("line", [line for line in LINES if "python -m jobs" in line])
def test_our_own_commands_are_taken(line: str) -> None:
    """Parsed by the command line itself, with its options; a shell variable stands for any text."""
    words = shlex.split(line[line.index("python -m jobs") :])[3:]
    verbs: Any = typer.main.get_command(app)
    verbs.commands[words[0]].make_context(words[0], words[1:])


def test_what_is_applied_and_deleted_can_be_rendered() -> None:
    folders = [line.split(" -k ")[1].split()[0] for line in commands("kubectl ") if " -k " in line]
    assert len(folders) > 6
    for folder in folders:
        assert rendered((ROOT / folder).relative_to(KUBERAY).as_posix())


def test_replaced_texts_stand_in_the_files() -> None:
    for line in commands("sed "):
        *_, script, path = shlex.split(line)
        for old in re.findall(r"s\|([^|]+)\|", script):
            assert old in (ROOT / path).read_text(), f"{path} has no {old}"
    assert len(commands("sed ")) == 6


def test_values_given_to_terraform_and_taken_from_it_are_there() -> None:
    for line in (line for line in LINES if "terraform -chdir" in line):
        for name, call in re.findall(r"-chdir=infra/terraform/(\w+) (.*?)(?=\$\(terraform|$)", line):
            folder = Folder.read(name)
            assert set(re.findall(r"-var \"?(\w+)=", call)) <= folder.named("variable").keys()
            if " apply " in f" {call}" or "destroy" in call:
                required = {key for key, body in folder.named("variable").items() if "default" not in body}
                assert required <= set(re.findall(r"-var \"?(\w+)=", call))
            assert set(re.findall(r"output -raw (\w+)", call)) <= folder.named("output").keys()


def test_names_in_the_cluster_are_those_of_the_manifests() -> None:
    resources = rendered("overlays/eks/cluster", "overlays/eks/job")
    [cluster], [job] = of_kind(resources, "RayCluster"), of_kind(resources, "RayJob")
    text = "\n".join(LINES)
    assert f"secret generic {cluster['spec']['authOptions']['secretName']} --from-literal=auth_token=" in text
    assert f"wait raycluster/{cluster['metadata']['name']} " in text
    assert f"service/{cluster['metadata']['name']}-head-svc 8265" in text
    assert f"get rayjob {job['metadata']['name']} " in text
    assert set(re.findall(r"--namespace ([\w-]+)", text)) == {"dass", "kuberay", "kube-system"}
    gate = "GCSFaultToleranceEmbeddedStorage"
    assert cluster["spec"]["gcsFaultToleranceOptions"]["backend"] == "rocksdb"
    assert text.count(gate) == text.count("kuberay/kuberay-operator --version 1.7.0") == 2


@cache
def sources() -> str:
    """All text that the packages can print: adjacent literals joined, as Python joins them."""
    files = [path for layer in ("dass", "cluster", "jobs") for path in sorted((ROOT / layer).rglob("*.py"))]
    return re.sub(r'"\s*\n\s*f?"', "", "\n".join(path.read_text() for path in files))


# What others say: Kubernetes, KubeRay and Ray.
OTHERS = {
    *("Pending", "violates PodSecurity", "RayJobDeletionPolicy", "GCSFaultToleranceEmbeddedStorage", "Unauthenticated"),
    *("OOMKilled", "Evicted", "ephemeral-storage"),
}


def quoted() -> list[str]:
    """What stands in backticks in the first column of the runbook's tables."""
    rows = [line for line in README.partition("## Runbook")[2].splitlines() if line.startswith("| ")]
    return [text for row in rows for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def test_the_runbook_quotes_messages_that_exist() -> None:
    ours = set(quoted()) - OTHERS
    assert len(ours) > 20
    assert [text for text in ours if text not in sources()] == []
    assert set(quoted()) >= OTHERS
    assert "the store must be readable and writable, cannot" in sources()


def test_a_message_that_is_not_ours_would_be_found() -> None:
    assert "a lane must end by itself in" not in sources()


def test_settings_that_the_runbook_names_exist() -> None:
    from jobs.config import keys
    from jobs.recipes import get_recipe

    legal = {key for key, *_ in keys(get_recipe("tiny10"))}
    named = set(re.findall(r"`((?:lanes|data|student|collect)\.\w+)`", README))
    assert len(named) > 6
    assert named <= legal


def test_exit_codes_are_those_of_the_code() -> None:
    from cluster.heartbeat import EXIT_HANG
    from jobs.__main__ import EXIT_BAD_INPUT, EXIT_INTERRUPTED

    assert f"exit code {EXIT_HANG} of a worker" in README
    assert f"driver exit code {EXIT_BAD_INPUT} |" in README
    assert f"driver exit code {EXIT_INTERRUPTED} |" in README


def test_the_example_of_the_costs_adds_up() -> None:
    devices_h = 2000 * 60 / 3600 / 0.9
    hours = devices_h / 16
    assert f"{devices_h:.0f} device-hours x 0.40 = {round(devices_h) * 0.40:.2f}" in README.replace("\n", " ")
    assert f"{hours:.1f} hours x 0.55 = {round(hours, 1) * 0.55 - 1e-9:.2f}" in README.replace("\n", " ")
    assert pytest.approx(0.55, abs=0.01) == 0.40 + 0.10 + 0.045
