"""The Dockerfile against what it copies, installs and is run as; it is not built here."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from cluster.runtime import CODE_VERSION_ENV
from tests.infra.overlays import INFRA, ROOT, pods, site

DOCKERFILE = (INFRA / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().splitlines() if "==" in line)


def copied() -> list[str]:
    """What comes from the repository."""
    steps = [step.split()[1:-1] for step in STEPS if step.startswith("COPY ") and "--from=" not in step]
    return [source for sources in steps for source in sources]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignore[0] == "*"
    assert {line.removeprefix("!") for line in ignore if line.startswith("!")} == set(copied())
    assert all((ROOT / source).exists() for source in copied())


def test_every_package_is_copied_and_nothing_of_a_workplace() -> None:
    packages = {each.rstrip("*") for each in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {"pyproject.toml", "requirements.lock", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert set(copied()) == packages | needed


def test_libraries_come_at_the_versions_of_the_lock_file() -> None:
    """All that the project needs, and what that needs, is locked; what only tests need is not asked for."""
    [install] = [step for step in STEPS if "--requirement" in step]
    assert "--constraint requirements.lock" in install
    assert "['project']['dependencies']" in install
    locked = {name.lower().replace("_", "-"): version for name, version in LOCK.items()}
    needed = closure(PROJECT["project"]["dependencies"])
    assert {name: locked.get(name) for name in needed} == needed
    assert not needed.keys() & {"pytest", "moto", "playwright"}


def closure(requirements: list[str]) -> dict[str, str]:
    """Name and version of everything that these requirements install here, extras included.

    Without pip's own tools, which no lock file holds.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(Requirement(each), "") for each in requirements]
    while todo:
        requirement, extra = todo.pop()
        name = requirement.name.lower().replace("_", "-")
        is_wanted = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not is_wanted or name == "setuptools":
            continue
        distribution = importlib.metadata.distribution(name)
        found[name] = distribution.version.partition("+")[0]
        for of in {"", *requirement.extras}:
            if (name, of) not in seen:
                seen.add((name, of))
                todo += [(Requirement(each), of) for each in distribution.requires or []]
    return found


def test_the_image_can_submit_and_serve_jobs() -> None:
    [ray] = [Requirement(each) for each in PROJECT["project"]["dependencies"] if each.startswith("ray")]
    assert "default" in ray.extras
    assert "ray" in {each.name for each in importlib.metadata.entry_points(group="console_scripts")}
    assert "dass" in PROJECT["project"]["scripts"]
    assert STEPS[-1] == 'CMD ["dass", "--help"]'


def test_it_runs_as_the_user_of_the_manifests() -> None:
    [user] = [step.removeprefix("USER ") for step in STEPS if step.startswith("USER ")]
    for overlay in ("kind", "eks", "gke"):
        for pod in pods(site(overlay)):
            context = pod.spec["securityContext"]
            assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert "--gid 1000 dass" in DOCKERFILE
    assert "--uid 1000" in DOCKERFILE


def test_both_stages_are_the_python_that_the_project_is_checked_with() -> None:
    base, *_ = [step for step in STEPS if step.startswith("ARG ")]
    assert re.fullmatch(r"ARG PYTHON=python:3\.11\.\d+-slim-\w+", base)
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"
    assert [step.split()[1] for step in STEPS if step.startswith("FROM ")] == ["${PYTHON}"] * 2


def test_the_image_knows_its_commit() -> None:
    """In the last stage, after all that takes long: a new commit does not make the layers anew."""
    at = STEPS.index(f'ARG {CODE_VERSION_ENV}=""')
    assert STEPS[at + 1] == f"ENV {CODE_VERSION_ENV}=${{{CODE_VERSION_ENV}}}"
    assert not any(step.startswith(("FROM ", "COPY ", "RUN ")) for step in STEPS[at:])
    builds = re.findall(r"docker build .*", (INFRA / "README.md").read_text())
    assert len(builds) == 3
    assert all(f"--build-arg {CODE_VERSION_ENV}=$" in build for build in builds)


def test_everything_is_installed_where_a_login_shell_looks() -> None:
    """KubeRay starts Ray through bash, which may read /etc/profile and lose the image's own PATH."""
    targets = [step.split()[-1] for step in STEPS if step.startswith("COPY --from=")]
    assert targets == ["/usr/local"] * 2
    assert not any(step.startswith("ENV") and " PATH=" in step for step in STEPS)


def test_what_libraries_keep_between_calls_goes_to_tmp() -> None:
    env = dict(re.findall(r"(\w+)=(\S+)", " ".join(step for step in STEPS if step.startswith("ENV "))))
    assert all(Path(env[name]).parent == Path("/tmp") for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "CUDA_CACHE_PATH"))  # noqa: S108


def test_the_driver_is_found_where_gke_mounts_it() -> None:
    """Not where programs look by themselves; on other nodes NVIDIA's toolkit puts it there."""
    assert "ENV LD_LIBRARY_PATH=/usr/local/nvidia/lib64" in STEPS[STEPS.index("FROM ${PYTHON}") :]
