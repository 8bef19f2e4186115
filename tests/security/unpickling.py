"""`python -m tests.security.unpickling FOLDER`: read pickles in the place of every object of a store, and watch.

Prints one JSON document: what each reader said to each payload, and what was unpickled meanwhile. A process of its own,
because an audit hook cannot be taken off.
"""

import io
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from cluster.objects import FolderStore
from dass.errors import DassError
from tests.jobs.command import tree
from tests.security.site import write_store


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.place,)


def payloads(place: Path) -> dict[str, bytes]:
    """The bomb in every form that libraries around here unpickle, or once did."""
    bomb = Bomb(place)
    files = {name: io.BytesIO() for name in ("torch", "numpy", "parquet")}
    torch.save(bomb, files["torch"])
    np.save(files["numpy"], np.array([bomb], dtype=object), allow_pickle=True)
    extension = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(bomb)}
    schema = pa.schema([pa.field("run_id", pa.string(), metadata=extension)])  # CVE-2023-47248
    pq.write_table(pa.table({"run_id": ["0" * 32]}, schema=schema), files["parquet"])
    return {"pickle": pickle.dumps(bomb), **{name: file.getvalue() for name, file in files.items()}}


def main(folder: Path) -> dict[str, Any]:
    """What happened, by payload and kind."""
    unpickled: list[str] = []
    whole = folder / "whole"
    kinds = write_store(whole)
    for kind in kinds.values():
        kind.read(FolderStore(whole))  # whatever is imported late is there now
    bombs = payloads(folder / "burst")
    sys.addaudithook(lambda event, args: unpickled.append(f"{args}") if event == "pickle.find_class" else None)
    said = {}
    for form, bomb in bombs.items():
        for name, kind in kinds.items():
            store = FolderStore(shutil.copytree(whole, folder / "store", dirs_exist_ok=True))
            store.put(kind.key, bomb)
            before = tree(store.root)
            try:
                kind.read(store)
                said[f"{name}: {form}"] = "nothing"
            except DassError as error:
                said[f"{name}: {form}"] = f"{type(error).__name__}: {error}"
            assert tree(store.root) == before, f"reading {name} changed the store"
            shutil.rmtree(store.root)
    read, has_burst = list(unpickled), (folder / "burst").exists()
    pickle.loads(bombs["pickle"])  # noqa: S301 - the hook and the bomb work
    works = len(unpickled) > len(read) and (folder / "burst").exists()
    return {"said": said, "unpickled": read, "burst": has_burst, "works": works}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]))))
