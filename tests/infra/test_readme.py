"""infra/README.md is true: its commands, paths, names and messages are those of the code."""

import os
import re
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from dass.cost import count_params
from dass.seeding import generator
from dass.spaces import get_space
from jobs.__main__ import app, configured
from jobs.prices import EXAMPLES
from jobs.recipes import get_recipe
from tests.infra.fleet_rules import RECOVERY, WAIT, settings_s
from tests.infra.kustomize import render
from tests.infra.overlays import INFRA, KUBERAY, ROOT, cluster_specs, of_kind, pods, rendered
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
    assert len(commands("sed ")) == 7


@pytest.mark.parametrize("overlay", ["eks", "gke"])
def test_a_commit_of_digits_alone_is_a_tag(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "infra" / "kuberay")
    [line] = [line for line in commands("sed ") if line.endswith(f"{overlay}/cluster/kustomization.yaml")]
    env = os.environ | {"REPOSITORY": "example.com/dass", "TAG": "4186109"}
    subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, check=True, timeout=10)
    images = {pod.container["image"] for pod in pods(render(tmp_path / f"infra/kuberay/overlays/{overlay}/job"))}
    assert images == {"example.com/dass:4186109"}


def test_components_are_listed_as_it_says(tmp_path: Path) -> None:
    kuberay = tmp_path / "infra" / "kuberay"
    shutil.copytree(KUBERAY, kuberay)
    lines = [line for line in LINES if "components/" in line and not line.startswith("kubectl ")]
    assert len(lines) == 2
    for line in lines:
        subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, timeout=10)
    assert of_kind(render(kuberay / "overlays" / "eks"), "PodMonitor")
    [job] = of_kind(render(kuberay / "overlays" / "eks" / "job"), "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "dass"
    assert "tiny10" in job["spec"]["entrypoint"]


def test_variables_are_set_before_they_are_used() -> None:
    known: set[str] = set()
    for line in LINES:
        known |= set(re.findall(r"(?:export|\s)\s*([A-Z_]+)=", line)) if line.startswith("export ") else set()
        used = set(re.findall(r"\$\{?([A-Z_]+)", line))
        assert used <= known, line
    assert {"MY_ADDRESS", "AWS_REGION", "AWS_DEFAULT_REGION", "PROJECT", "STORE"} <= known


def test_what_was_applied_is_destroyed_with_the_same_values() -> None:
    for root in ("aws", "gcp"):
        given = [
            set(re.findall(r"-var \"?(\w+)=", line)) for line in commands(f"terraform -chdir=infra/terraform/{root} ")
        ]
        applied, destroyed = [each for each in given if each]
        assert applied == destroyed


def test_old_checkpoints_go_from_every_store_that_it_names() -> None:
    stores = {path.removeprefix("/") for path in re.findall(r"--store \$STORE(\S*)", "\n".join(LINES))}
    assert stores == {"", "first"}
    for root in ("aws", "gcp"):
        assert Folder.read(root).default("stores") == ["", "first/"]


def test_what_it_says_of_waiting_is_what_the_manifests_say() -> None:
    for spec in cluster_specs(rendered("overlays/eks/cluster", "overlays/gke/cluster")):
        told = settings_s(spec)
        assert told[WAIT] == 15 * 60
        assert told[RECOVERY] == 3600
        assert 2 * told[WAIT] == 30 * 60
    for words in ("given up after 15 minutes", "comes last for an hour", "asked for after half an hour"):
        assert words in README.replace("\n  ", " ")


def test_the_bounds_of_a_job_are_those_of_the_manifests() -> None:
    [job] = of_kind(rendered("overlays/gke/job"), "RayJob")
    given = shlex.split(job["spec"]["entrypoint"])
    settings = [given[at + 1] for at, word in enumerate(given) if word == "--set"]
    config = configured("tiny10", settings, "parquet:x")
    assert f"`collect.max_cost`, {config.collect.max_cost:g} USD" in README
    assert f"`lanes.checkpoint_s={config.lanes.checkpoint_s:g}`" in README
    assert job["spec"]["activeDeadlineSeconds"] == 7 * 86400
    assert f"with `backoffLimit` {job['spec']['backoffLimit']} four weeks at worst" in README
    assert job["spec"]["backoffLimit"] + 1 == 4


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
    assert set(re.findall(r"--namespace ([\w-]+)", text)) == {"dass", "kuberay", "kube-system", "monitoring"}
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
    *("OOMKilled", "Evicted", "ephemeral-storage", "STOPPED"),
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

    legal = {key for key, *_ in keys(get_recipe("tiny10"))}
    named = set(re.findall(r"`((?:lanes|data|student|collect|prices)\.\w+)[`=]", README))
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


def test_a_budget_counts_a_device_as_the_node_that_it_costs() -> None:
    rows = re.findall(r"^\| (\S+) \(one (\w+)\), an hour \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    dearest: dict[str, tuple[float, float]] = {}
    for _, gpu, on_demand, spot in rows:
        dearest[gpu] = max(dearest.get(gpu, (0.0, 0.0)), (float(on_demand), float(spot)))
    assert {gpu: EXAMPLES[gpu] for gpu in dearest} == dearest
    pools = {root: Folder.read(root).default("pools") for root in ("aws", "gcp")}
    machines = {
        machine
        for of in pools.values()
        for name, pool in of.items()
        if name.startswith("gpu-")
        for machine in pool.get("machines", [pool.get("machine")])
    }
    assert {machine for machine, *_ in rows} == machines


def test_the_disks_of_google_fit_the_quota_that_it_names() -> None:
    gcp = Folder.read("gcp")
    [disk] = gcp.resources()["google_container_node_pool.pool"]["node_config"]
    pools = gcp.default("pools")
    nodes = sum(pools[name]["max"] for name in ("head", "drivers", "gpu-small-spot"))
    assert disk["disk_type"] == "pd-balanced"  # on SSDs, as the pools that GKE makes and removes again
    assert f"`SSD_TOTAL_GB`, {disk['disk_size_gb']} for each node: {disk['disk_size_gb'] * nodes:,} for 16 lanes" in (
        README.replace("\n", " ")
    )
    assert pools["gpu-small-spot"]["max"] == 16
    assert f"{100 * len(gcp.default('zones'))} are needed to make the cluster at all" in README


# What kind's own pods ask for, and KubeRay's operator: CPUs and GiB.
KIND, OPERATOR = (0.95, 0.3), (0.1, 0.5)


def test_kind_fits_into_the_machine_that_it_names() -> None:
    resources = rendered("overlays/kind/job")
    [spec] = cluster_specs(resources)
    num = {group["groupName"]: group["maxReplicas"] for group in spec["workerGroupSpecs"]}
    asked = [KIND, OPERATOR, room(spec["autoscalerOptions"]["resources"]["requests"])]
    for pod in pods(resources):
        asked += num.get(pod.group, 1) * [room(pod.container["resources"]["requests"])]
    assert "Four CPUs, 12 GiB, Docker" in README
    assert num == {"cpu": 2}
    assert sum(cpus for cpus, _ in asked) <= 4
    assert sum(gib for _, gib in asked) <= 12


def room(requests: dict[str, str]) -> tuple[float, float]:
    """CPUs and GiB of memory."""
    cpu, memory = requests["cpu"], requests["memory"]
    cpus = int(cpu.removesuffix("m")) / 1000 if cpu.endswith("m") else float(cpu)
    return cpus, float(memory.removesuffix("Gi"))


def test_the_traffic_of_checkpoints_adds_up() -> None:
    recipe = get_recipe("tiny10")
    space = get_space(recipe.space)
    students = space.sample(2000, generator("students", 0, "costs"), recipe.collect.sampler)
    params = sum(count_params(student, 40) for student in students) / len(students)
    assert params == pytest.approx(2.32e6, rel=0.03)
    state_mb = 2.32 * 4 * 2  # weights and momentum, float32
    cohort_mb = state_mb * recipe.lanes.cohort_size
    assert f"{state_mb:.0f} MB of weights and momentum, {cohort_mb:.0f} MB" in README
    for seconds in (recipe.lanes.checkpoint_s, 900):
        gb = cohort_mb / 1000 * 3600 / seconds
        assert f"{gb:.1f} GB" in README
        assert f"{gb * (0.12 + 0.045):.2f} USD" in README.replace("\n", " ")
