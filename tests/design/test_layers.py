"""The direction of imports, and what each layer may touch (README, "Dive into the code")."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("dass", "cluster", "jobs")
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

# Third-party libraries that a layer must not import at all, and the rooms that alone may import others.
BANNED = {
    "dass": {"ray", "boto3", "botocore", "cluster", "jobs", "typer", "rich"},
    "cluster": {"jobs", "typer", "rich"},
}
ROOMS = {
    "safetensors": {"dass/tensors.py"},
    "PIL": {"dass/data"},
    "sklearn": {"dass/data"},
    "torchvision": {"dass/data"},
    "pyarrow": {"dass/data", "cluster"},
    "scipy": {"dass/metrics.py"},
    "matplotlib": {"dass/report"},
    "jinja2": {"dass/report"},
    "boto3": {"cluster/s3.py"},
    "botocore": {"cluster/s3.py"},
    "ray": {"cluster"},
    "typer": {"jobs"},
    "rich": {"jobs/console.py"},
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative imports hide the direction"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    roots = {module.split(".")[0] for module in imported(path)}
    assert not roots & BANNED.get(layer, set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_libraries_of_formats_stay_in_their_rooms(path: Path) -> None:
    name = name_of(path)
    for module in imported(path):
        rooms = ROOMS.get(module.split(".")[0])
        assert rooms is None or any(name == room or name.startswith(f"{room}/") for room in rooms), (
            f"{name} imports {module}, which belongs to {sorted(rooms)}"
        )


def _calls(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", [path for path in FILES if "jobs" not in name_of(path)], ids=name_of)
def test_only_jobs_print(path: Path) -> None:
    assert "print" not in _calls(path)
    assert "sys.stdout" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_runtime_reads_the_environment(path: Path) -> None:
    if name_of(path) not in ("cluster/runtime.py", "dass/kernels.py"):  # the second sets what a library reads
        assert "os.environ" not in path.read_text()
        assert "os.getenv" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_read_from_a_store_is_unpickled(path: Path) -> None:
    assert not {module.split(".")[0] for module in imported(path)} & {"pickle", "cloudpickle", "dill", "joblib"}
    assert "torch.load" not in _calls(path)


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path).startswith("dass/")], ids=name_of)
def test_the_global_random_generator_is_never_seeded(path: Path) -> None:
    calls = _calls(path)
    assert not calls & {"torch.manual_seed", "random.seed", "np.random.seed", "numpy.random.seed", "torch.seed"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_small_enough_to_read(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_science_runs_without_ray() -> None:
    """No module of dass needs ray or boto3 even indirectly."""
    import subprocess
    import sys

    modules = [
        name_of(path)[:-3].replace("/", ".").removesuffix(".__init__")
        for path in FILES
        if name_of(path).startswith("dass/")
    ]
    code = "import sys; sys.modules['ray'] = None; sys.modules['boto3'] = None\n" + "\n".join(
        f"import {module}" for module in modules
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def test_every_dependency_names_the_file_that_needs_it() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    start = lines.index("dependencies = [")
    end = lines.index("]", start)
    assert end > start + 5
    assert all(line.split("#", 1)[-1].strip() and "#" in line for line in lines[start + 1 : end])


def test_the_lock_file_installs_anywhere() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(line.count("==") == 1 and "+" not in line and not line.startswith("-") for line in lines)
