"""Blobs in the store, such as weights and predictors, addressed by the SHA-256 of their bytes."""

from collections.abc import Mapping

import torch

from cluster.objects import ObjectStore
from dass.errors import StoreError
from dass.tensors import pack_tensors, sha256, unpack_tensors


def put_blob(store: ObjectStore, data: bytes) -> str:
    """Write bytes at blobs/<sha> and return their SHA-256; equal bytes share one object.

    Raises:
        StoreError: they cannot be written, or the store holds an object of another length afterwards.
    """
    sha = sha256(data)
    store.put_if_absent(_key(sha), data)
    if (size_bytes := store.size(_key(sha))) != len(data):
        raise _damaged(sha, f"{size_bytes} bytes instead of {len(data)}")
    return sha


def get_blob(store: ObjectStore, sha: str) -> bytes:
    """The bytes with this SHA-256.

    Raises:
        ObjectNotFoundError: the store does not hold them.
        StoreError: what it holds has another SHA-256.
    """
    data = store.get(_key(sha))
    if (found := sha256(data)) != sha:
        raise _damaged(sha, f"bytes with the SHA-256 {found}")
    return data


def has_blob(store: ObjectStore, sha: str) -> bool:
    """Whether there is a blob of this SHA-256; whether it is sound, only `get_blob` tells."""
    return store.exists(_key(sha))


def put_weights(store: ObjectStore, state: Mapping[str, torch.Tensor]) -> str:
    """Write a state dict as a blob; errors as in `put_blob`."""
    return put_blob(store, pack_tensors(state))


def get_weights(store: ObjectStore, sha: str) -> dict[str, torch.Tensor]:
    """The state dict of a blob, on the CPU; errors as in `get_blob`."""
    return unpack_tensors(get_blob(store, sha))[0]


def _key(sha: str) -> str:
    return f"blobs/{sha}"


def _damaged(sha: str, received: str) -> StoreError:
    return StoreError(
        f"{_key(sha)} must hold the bytes it is named after, got {received}; "
        "put a copy that is whole in its place, or use another --store, in which they are made anew"
    )
