"""A file that the user wants beside what the store keeps."""

import os
from pathlib import Path

from cluster.runtime import check_kept
from dass.errors import ConfigError


def check_output(output: Path) -> None:
    """Raise ConfigError, before anything is trained, unless a file could be written there."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output must be a file in a folder that exists, got {output}; correct the path")
    check_place(output)


def check_place(output: Path) -> None:
    """Raise ConfigError unless what is written there may be written, and outlives a submitted job."""
    check_kept(output)
    if not os.access(output if output.exists() else output.absolute().parent, os.W_OK):
        raise ConfigError(
            f"--output must be a path that may be written, got {output}; correct the path or its permissions"
        )


def write_output(output: Path, data: bytes) -> None:
    """Write the file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--output must be a writable path, got {output} ({error.strerror})") from error
