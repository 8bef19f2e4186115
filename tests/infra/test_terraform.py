"""Terraform's files fit together, and with the manifests; no provider and no account is asked."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoints import FOLDER as CHECKPOINTS
from tests.infra.overlays import environment, of_kind, ray_pods, rendered, site
from tests.infra.terraform import FOLDERS, ROOTS, TERRAFORM, Folder, problems

STORE = Folder.read("store")
OVERLAY_OF = {"aws": "eks", "gcp": "gke"}
# CPUs, GiB of memory and GPUs of the machines in the pools, from their makers' tables.
MACHINES = {
    "m7i.2xlarge": (8, 32, 0),
    "m6i.2xlarge": (8, 32, 0),
    "g5.2xlarge": (8, 32, 1),
    "g6.2xlarge": (8, 32, 1),
    "g6e.2xlarge": (8, 64, 1),
    "n2-standard-8": (8, 32, 0),
    "g2-standard-8": (8, 32, 1),
    "a2-highgpu-1g": (12, 85, 1),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_references_lead_somewhere(name: str) -> None:
    assert list(problems(Folder.read(name), STORE)) == []


@pytest.mark.parametrize(
    ("old", "new", "word"),
    [
        ('variable "prefix"', 'variable "prefx"', "declared and used"),
        ("= aws_ecr_repository.image.", "= aws_ecr_repository.images.", "aws_ecr_repository.images must be"),
        ("module.store.role_arn", "module.store.role", "module.store.role must be"),
        ("local.zones[0]", "local.zone[0]", "local.zone must be"),
        ('version = "6.25.0"', 'version = "~> 6.0"', "pinned"),
        ("  checkpoint_days  =", "  checkpoints_days =", "given what it takes"),
        ('description = "Namespace of infra/kuberay/base."', 'description = ""', "namespace: a sentence"),
    ],
)
def test_a_planted_mistake_is_found(old: str, new: str, word: str) -> None:
    folder = Folder.read("aws")
    assert old in folder.text
    assert word in "\n".join(problems(Folder("aws", folder.text.replace(old, new)), STORE))


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_files_are_formatted() -> None:
    subprocess.run(["terraform", "fmt", "-check", "-diff", "-recursive", TERRAFORM], check=True, timeout=60)


@pytest.mark.parametrize("name", ROOTS)
def test_every_default_passes_its_validation(name: str) -> None:
    checked = 0
    for variable, body in Folder.read(name).named("variable").items():
        for validation in body.get("validation", []):
            if found := re.search(r'can\(regex\("(.*?)", var\.', validation["condition"]):
                pattern = found[1].replace("\\\\", "\\")
                assert re.search(pattern, str(body.get("default", "dass-123456789012"))), variable
                assert not re.search(pattern, "Not/ legal/"), variable
                checked += 1
    assert checked >= 3


@pytest.mark.parametrize("name", ROOTS)
def test_pools_are_the_groups_of_the_manifests(name: str) -> None:
    folder = Folder.read(name)
    pools = folder.default("pools")
    resources = rendered(f"overlays/{OVERLAY_OF[name]}", f"overlays/{OVERLAY_OF[name]}/cluster")
    [cluster] = of_kind(resources, "RayCluster")
    groups = {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
    assert pools.keys() == {"head", *groups}
    for pod in ray_pods(resources):
        pool = pools[pod.group]
        assert pod.spec["nodeSelector"] == {"dass/pool": pod.group}
        assert pool["spot"] == any(each["key"] == "dass/spot" for each in pod.spec.get("tolerations", []))
        for machine in pool.get("machines", [pool.get("machine")]):
            cpus, memory_gib, gpus = MACHINES[machine]
            asked = pod.container["resources"]
            # a node keeps about 1 CPU and an eighth of its memory for itself, and the autoscaler sits beside the head
            assert int(asked["requests"]["cpu"]) + 0.5 < cpus - 1
            assert int(asked["requests"]["memory"].removesuffix("Gi")) + 1 < memory_gib * 7 / 8
            assert int(asked["limits"].get("nvidia.com/gpu", 0)) == gpus
    for group, spec in groups.items():
        assert pools[group]["min"] == spec["minReplicas"] == 0
        assert pools[group]["max"] >= spec["maxReplicas"]
    assert pools["head"]["min"] >= 1
    assert not pools["head"]["spot"]
    for label in ('"dass/pool" = each.key', '["dass/spot"]'):
        assert label in folder.text


def test_the_autoscaler_of_the_nodes_knows_the_disk_of_an_empty_pool() -> None:
    resources = Folder.read("aws").resources()
    tags = resources["aws_eks_node_group.pool"]["tags"]
    told_gib = gib(tags["k8s.io/cluster-autoscaler/node-template/resources/ephemeral-storage"])
    [disk] = resources["aws_launch_template.node"]["block_device_mappings"]
    # the kubelet evicts at a tenth, and the file system and the node itself take some
    assert told_gib <= 0.85 * disk["ebs"][0]["volume_size"]
    for pod in ray_pods(rendered("overlays/eks/cluster")):
        assert gib(pod.container["resources"]["requests"]["ephemeral-storage"]) <= told_gib


def gib(quantity: str) -> int:
    number, unit, _ = quantity.partition("Gi")
    assert unit, quantity
    return int(number)


def test_eks_gets_no_subnet_where_it_takes_none() -> None:
    zones = Folder.read("aws").resources("data")["aws_availability_zones.all"]
    assert set(zones["exclude_zone_ids"]) == {"use1-az3", "usw1-az2", "cac1-az3"}


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
@pytest.mark.parametrize(("available", "used"), [(2, 2), (3, 3), (6, 3)])
def test_a_region_may_have_two_zones(available: int, used: int, tmp_path: Path) -> None:
    [zones] = [block["zones"] for block in Folder.read("aws").blocks["locals"] if "zones" in block]
    names = json.dumps([f"zone-{number}" for number in range(available)])
    expression = zones.removeprefix("${").removesuffix("}").replace("data.aws_availability_zones.all.names", names)
    done = subprocess.run(
        ["terraform", "console"],
        input=f"length({expression})",
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split()[-1] == str(used)


@pytest.mark.parametrize("name", ROOTS)
def test_the_role_trusts_the_service_accounts_of_the_manifests(name: str) -> None:
    folder, base = Folder.read(name), rendered(f"overlays/{OVERLAY_OF[name]}")
    assert folder.default("service_accounts") == [r["metadata"]["name"] for r in of_kind(base, "ServiceAccount")]
    assert folder.default("namespace") == of_kind(base, "Namespace")[0]["metadata"]["name"]


def test_the_role_trusts_nobody_else() -> None:
    trust = STORE.resources()["aws_iam_role.store"]["assume_role_policy"]
    assert "system:serviceaccount:${var.namespace}:${account}" in trust
    assert "StringLike" not in trust
    [pod, *_] = ray_pods(rendered("overlays/eks/cluster"))
    [audience] = STORE.resources()["aws_iam_openid_connect_provider.cluster"]["client_id_list"]
    assert audience == pod.spec["volumes"][-1]["projected"]["sources"][0]["serviceAccountToken"]["audience"]


@pytest.mark.parametrize("name", ROOTS)
def test_the_placeholders_of_an_overlay_are_one_account(name: str) -> None:
    resources = site(OVERLAY_OF[name])
    [job] = of_kind(resources, "RayJob")
    [bucket, prefix] = re.findall(r"--store s3://([^/]+)/(\S+)", job["spec"]["entrypoint"])[0]
    assert prefix == Folder.read(name).default("prefix")
    for pod in ray_pods(resources):
        role = environment(pod, resources)["AWS_ROLE_ARN"]
        assert role.rpartition("/")[2] == STORE.resources()["aws_iam_role.store"]["name"].replace(
            "${var.bucket}", bucket
        )


def settings_of(resource: str) -> Any:
    return STORE.resources()[f"aws_s3_bucket_{resource}.store"]


def test_the_bucket_is_closed_encrypted_and_without_versions() -> None:
    assert settings_of("versioning")["versioning_configuration"] == [{"status": "Disabled"}]
    [rule] = settings_of("server_side_encryption_configuration")["rule"]
    assert rule["apply_server_side_encryption_by_default"] == [{"sse_algorithm": "AES256"}]
    block = settings_of("public_access_block")
    assert all(
        block[f"{verb}_public_{what}"] for verb, what in (("block", "acls"), ("block", "policy"), ("ignore", "acls"))
    )
    assert block["restrict_public_buckets"]
    assert "aws:SecureTransport" in settings_of("policy")["policy"]


def test_uploads_end_and_old_checkpoints_go_but_nothing_else_does() -> None:
    [uploads] = settings_of("lifecycle_configuration")["rule"]
    assert uploads["abort_incomplete_multipart_upload"] == [{"days_after_initiation": 2}]
    assert "expiration" not in uploads
    [repeated] = settings_of("lifecycle_configuration")["dynamic"]
    assert repeated["rule"]["for_each"] == "${toset(var.stores)}"
    [checkpoints] = repeated["rule"]["content"]
    assert checkpoints["filter"] == [{"prefix": f"${{var.prefix}}/${{rule.value}}{CHECKPOINTS}"}]
    assert checkpoints["expiration"] == [{"days": "${var.checkpoint_days}"}]


@pytest.mark.parametrize("name", ROOTS)
def test_checkpoints_outlive_a_job_that_fails_at_its_deadline(name: str) -> None:
    [job] = of_kind(site(OVERLAY_OF[name]), "RayJob")
    least = re.search(r">= (\d+)", Folder.read(name).named("variable")["checkpoint_days"]["validation"][0]["condition"])
    assert least is not None
    assert int(least[1]) * 86400 >= 2 * job["spec"]["activeDeadlineSeconds"]
