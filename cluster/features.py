"""What methods see of a task's students, kept in a store: who has it needs neither the teacher's weights nor images.

A store has it only where somebody put it there, as `ship` does for the records that the package brings along.
"""

from cluster.documents import get_document, put_document
from cluster.objects import ObjectStore
from cluster.schema import damaged
from cluster.weights import get_blob, put_blob
from dass.errors import ObjectNotFoundError
from dass.meta.episodes import MetaTask
from dass.meta.features import pack_task, unpack_task


def put_features(store: ObjectStore, key: str, task: MetaTask) -> None:
    """Keep the features of a task's students under `key`, a hash of all that they were made from."""
    put_document(store, "features", key, {"blob": put_blob(store, pack_task(task))})


def get_features(store: ObjectStore, key: str) -> MetaTask | None:
    """What stands under `key`, on the CPU; None where nothing does.

    Raises:
        StoreError: it is damaged.
    """
    try:
        found = get_document(store, "features", key)
    except ObjectNotFoundError:
        return None
    if not isinstance(found.get("blob"), str):
        raise damaged(f"features {key}", "no blob")
    return unpack_task(get_blob(store, found["blob"]))
