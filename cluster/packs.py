"""Packed images in the store, addressed by the SHA-256 of their bytes."""

from cluster.objects import ObjectStore
from dass.data.pack import Pack
from dass.errors import StoreError


def pack_key(pack_id: str) -> str:
    """Where a pack lies."""
    return f"data/{pack_id}/pack.safetensors"


def put_pack(store: ObjectStore, pack: Pack) -> str:
    """Write a pack unless it is there; returns its id."""
    store.put_if_absent(pack_key(pack.id), pack.to_bytes())
    return pack.id


def get_pack(store: ObjectStore, pack_id: str) -> Pack:
    """The pack with this id.

    Raises:
        ObjectNotFoundError: the store does not hold it.
        StoreError: its bytes have another hash.
    """
    pack = Pack.from_bytes(store.get(pack_key(pack_id)))
    if pack.id != pack_id:
        raise StoreError(
            f"the pack under {pack_key(pack_id)} must have that hash, got {pack.id}; delete it and run `data` again"
        )
    return pack
