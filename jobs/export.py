"""`export`: all records as one Parquet or CSV file for other tools."""

import os
import uuid
from pathlib import Path
from typing import Any

from cluster.documents import get_tasks, list_documents
from cluster.export import write_export
from dass.errors import ConfigError
from jobs.job import Job
from jobs.output import check_place

SUFFIXES = (".parquet", ".csv")


def run(job: Job, output: Path, *, force: bool) -> dict[str, Any]:
    """Write the file in one step: it is there whole, or as it was before."""
    check_output(output, force=force)
    names = {id_: task.name for id_, task in get_tasks(job.store, list_documents(job.store, "task")).items()}
    temporary = output.with_name(f".{output.stem}-{uuid.uuid4().hex[:8]}{output.suffix}")
    num_rows = 0
    try:
        with job.console.phase("export") as bar:
            total = len(job.database.finished_ids())
            for num_rows in write_export(job.database.scan(), names, temporary):
                bar.update(num_rows, total)
        _sync(temporary)
        temporary.replace(output)
    except OSError as error:
        raise ConfigError(
            f"--output must be a path with enough free space that can be written, got {output} "
            f"({error.strerror or error}); free some space or give another path"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    job.console.tell(f"{num_rows} runs written to {output}")
    return {"runs": num_rows, "output": str(output)}


def check_output(output: Path, *, force: bool) -> None:
    """Raise ConfigError, before anything is read, unless such a file may be written there."""
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"--output must end in {' or '.join(SUFFIXES)}, got {output}; choose one of the formats")
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ConfigError(f"--output must be a file in a folder that exists, got {output}; correct the path")
    if output.exists() and not force:
        raise ConfigError(f"--output must not exist yet, got {output}; choose another name, or replace it with --force")
    check_place(output)


def _sync(path: Path) -> None:
    """Wait until the disk has it: a full disk may tell only now."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
