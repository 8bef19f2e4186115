"""Named tensors and a small JSON header as one block of bytes (safetensors); the only file that knows the format."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load

from dass.errors import StoreError
from dass.json_text import parse_json
from dass.memory import is_out_of_memory

_TYPES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's name of each type, in the order in which their tensors lie in a file."""

_ALIGNMENT = 8  # bytes; spaces fill up the head


def sha256(data: bytes) -> str:
    """The SHA-256 of `data` in hex, 64 characters."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, read piece by piece.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pack_tensors(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None = None) -> bytes:
    """Serialise tensors (moved to the CPU, made contiguous) with a JSON-able header; equal input gives equal bytes."""
    return b"".join(_pieces(tensors, header))


def packed_sha256(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None = None) -> str:
    """The SHA-256 of what `pack_tensors` gives, without those bytes in memory."""
    digest = hashlib.sha256()
    for piece in _pieces(tensors, header):
        digest.update(piece)
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any] | None) -> Iterator[bytes | memoryview]:
    """The bytes of a file: the head, then each tensor's own memory.

    Written here and not by safetensors.torch.save, which holds all of it twice; the tests compare the two.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(_TYPES)}
    ordered = sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0]))
    head: dict[str, Any] = {"__metadata__": {"header": json.dumps(header or {}, sort_keys=True, allow_nan=False)}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.nbytes
        head[name] = {"dtype": _TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def unpack_tensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header that `pack_tensors` was given.

    Raises:
        StoreError: the bytes are truncated or not safetensors.
    """
    try:
        tensors = load(data)
        header_size = int.from_bytes(data[:8], "little")
        return tensors, _header_in(parse_json(data[8 : 8 + header_size]).get("__metadata__", {}))
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(
            f"expected the bytes of a complete safetensors file, got {len(data)} bytes that do not parse ({error}); "
            "delete the object and run the job that wrote it again"
        ) from error


@contextmanager
def refusing_damage(of: str, remedy: str) -> Iterator[None]:
    """Turns what a saved state that does not fit together brings about into a StoreError; `of` names what it is of."""
    try:
        yield
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):  # says nothing about the state
            raise
        raise StoreError(
            f"expected the complete state of {of}, got one that does not fit together ({error}); {remedy}"
        ) from error


def open_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the header of a file, mapped into memory: what nobody touches is not read.

    The file must not change under its name; it may be removed or replaced by another. Writing to a tensor leaves the
    file as it is.

    Raises:
        StoreError: the file is truncated or not safetensors.
        OSError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            return tensors, _header_in(file.metadata() or {})
    except (SafetensorError, ValueError) as error:
        raise StoreError(
            f"expected a complete safetensors file, got {path} that does not parse ({error}); "
            "delete it and run the job that wrote it again"
        ) from error


def not_finite(tensors: Mapping[str, torch.Tensor]) -> str:
    """The name of the first tensor that holds a NaN or an infinity; empty where none does."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), "")


def _header_in(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object that `pack_tensors` was given; empty for a file that another program wrote."""
    header = parse_json(metadata.get("header", "{}"))
    if not isinstance(header, dict):
        raise ValueError(f"its header is no JSON object but {header!r:.80}")  # noqa: TRY004 - data, not a caller's mistake
    return header
