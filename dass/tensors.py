"""Named tensors and a small JSON header as one block of bytes (safetensors); the only file that knows the format."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from dass.errors import StoreError


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` in hex, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def pack_tensors(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """Serialise tensors (moved to the CPU, made contiguous) with a JSON-able header; equal input gives equal bytes."""
    metadata = {"header": json.dumps(header or {}, sort_keys=True, allow_nan=False)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(save(plain, metadata=metadata))


def unpack_tensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header that `pack_tensors` was given.

    Raises:
        StoreError: the bytes are truncated or not safetensors.
    """
    try:
        tensors = load(data)
        header_size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + header_size]).get("__metadata__", {})
        return tensors, json.loads(metadata.get("header", "{}"))
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(
            f"expected the bytes of a complete safetensors file, got {len(data)} bytes that do not parse ({error}); "
            "delete the object and run the job that wrote it again"
        ) from error
