"""Seeds derived from names: what a random stream is for decides it, never the order in which streams are made."""

import hashlib
import json

import torch


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on `parts` alone, the same on every machine and in every version of Python."""
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator seeded by `derive_seed(*parts)`."""
    return torch.Generator().manual_seed(derive_seed(*parts))
