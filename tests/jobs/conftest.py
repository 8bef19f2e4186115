"""The stores that several tests of verbs work with."""

import shutil
from pathlib import Path

import pytest

from tests.jobs.prepared import prepare


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the smoke recipe is done; not to be written to."""
    return prepare(tmp_path_factory.mktemp("smoke") / "store")


@pytest.fixture
def store(done: Path, tmp_path: Path) -> Path:
    """A copy to write to."""
    return shutil.copytree(done, tmp_path / "store")
