"""Packed images in the store, addressed by the SHA-256 of their bytes."""

import re

from cluster.objects import FolderStore, ObjectStore, folder_error
from dass.data.pack import Pack
from dass.errors import StoreError

_SHA256 = re.compile("[0-9a-f]{64}")


def pack_key(pack_id: str) -> str:
    """Where a pack lies.

    Raises:
        StoreError: this is no SHA-256; an id comes from a stored task, and names files on the machine's own disk too.
    """
    if not _SHA256.fullmatch(pack_id):
        raise StoreError(
            f"a pack's id must be a SHA-256, got {pack_id!r:.80}; delete the task that names it and run `data` again"
        )
    return f"data/{pack_id}/pack.safetensors"


def put_pack(store: ObjectStore, pack: Pack) -> str:
    """Write a pack unless it is there; returns its id."""
    if not store.exists(pack_key(pack.id)):  # asked first, so that a large pack is not serialised for nothing
        store.put_if_absent(pack_key(pack.id), pack.to_bytes())
    return pack.id


def get_pack(store: ObjectStore, pack_id: str) -> Pack:
    """The pack with this id; that of a folder is mapped into memory, not copied.

    Raises:
        ObjectNotFoundError: the store does not hold it.
        StoreError: its bytes have another hash.
    """
    key = pack_key(pack_id)
    if isinstance(store, FolderStore) and store.exists(key):
        path = store.root / key
        try:
            pack = Pack.from_file(path)
        except OSError as error:
            raise folder_error("read", path, error) from error
    else:
        pack = Pack.from_bytes(store.get(key))
    if pack.id != pack_id:
        raise damaged_pack(pack_id, pack.id)
    return pack


def damaged_pack(pack_id: str, received: str) -> StoreError:
    """What to tell the user when the store holds something else under a pack's key."""
    return StoreError(
        f"the pack under {pack_key(pack_id)} must have that hash, got {received}; delete it and run `data` again"
    )
