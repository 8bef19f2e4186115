"""A pack: all images of a source at one resolution, addressed by its content."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dass.errors import DataError, SchemaTooNewError, StoreError
from dass.tensors import file_sha256, open_tensors, pack_tensors, packed_sha256, sha256, unpack_tensors

PACK_VERSION = 1
RESOLUTION_STEP = 8  # the networks halve the side of an image three times


class Part(IntEnum):
    """What an image is for; the numbers stand in stored packs and never change."""

    TRAIN = 0
    VALID = 1
    TEST = 2
    UNASSIGNED = 3


def check_resolution(resolution: int) -> None:
    """Raise DataError unless images of this side can go through the networks."""
    if resolution < RESOLUTION_STEP or resolution % RESOLUTION_STEP:
        nearest = max(1, round(resolution / RESOLUTION_STEP)) * RESOLUTION_STEP
        raise DataError(
            f"the resolution must be a positive multiple of {RESOLUTION_STEP}, got {resolution}; "
            f"set data.resolution, for example to {nearest}"
        )


@dataclass(frozen=True, eq=False)
class Pack:
    """Images in RGB with their labels and parts; immutable and on the CPU; its tensors must not be written to.

    images: uint8 (N, 3, R, R). labels: int64 (N,), each the index of a class name. parts: uint8 (N,), values of `Part`.

    Raises:
        DataError: a shape, a type or a value is not as above, or R is not a multiple of 8.
    """

    images: torch.Tensor = field(repr=False)
    labels: torch.Tensor = field(repr=False)
    parts: torch.Tensor = field(repr=False)
    class_names: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        num = len(self.images)
        _check_tensor("images", self.images, torch.uint8, (num, 3, *self.images.shape[-1:] * 2))
        _check_tensor("labels", self.labels, torch.int64, (num,))
        _check_tensor("parts", self.parts, torch.uint8, (num,))
        check_resolution(self.resolution)
        if num == 0:
            raise DataError("a pack must hold at least one image, got none; give a source with images")
        _check_range("labels", self.labels, len(self.class_names))
        _check_range("parts", self.parts, len(Part))

    @property
    def resolution(self) -> int:
        """The side R of the images in pixels."""
        return self.images.shape[-1]

    @cached_property
    def id(self) -> str:
        """The SHA-256 of the pack's bytes, 64 hex digits."""
        return packed_sha256(*self._content())

    def to_bytes(self) -> bytes:
        """The pack as one safetensors file; equal packs give equal bytes."""
        return pack_tensors(*self._content())

    def _content(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        header = {"version": PACK_VERSION, "name": self.name, "class_names": self.class_names}
        return {"images": self.images, "labels": self.labels, "parts": self.parts}, header

    @classmethod
    def from_bytes(cls, data: bytes) -> "Pack":
        """The pack of which these are the bytes; its `id` is their hash.

        Raises:
            SchemaTooNewError: a newer version of this package wrote them.
            StoreError: they are damaged, or not those of a pack.
        """
        return cls._of(*unpack_tensors(data), sha256(data))

    @classmethod
    def from_file(cls, path: Path) -> "Pack":
        """The pack of a file with such bytes, mapped into memory (see `open_tensors`); its `id` is their hash.

        Raises:
            SchemaTooNewError: as `from_bytes`. StoreError: as `from_bytes`.
            OSError: the file cannot be read.
        """
        sha = file_sha256(path)
        return cls._of(*open_tensors(path), sha)

    @classmethod
    def _of(cls, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any], sha: str) -> "Pack":
        _check_header(header)
        try:
            names, name = tuple(header["class_names"]), header["name"]
            if not all(isinstance(text, str) for text in (*names, name)):
                raise TypeError("names that are no texts")
            pack = cls(tensors["images"], tensors["labels"], tensors["parts"], names, name)
        except (KeyError, TypeError, IndexError, DataError) as error:
            raise StoreError(
                f"expected the bytes of a pack, got {error}; delete the object and run `data` again"
            ) from error
        vars(pack)["id"] = sha  # fills the cached property: the bytes need not be read once more
        return pack


def _check_header(header: Mapping[str, Any]) -> None:
    version = header.get("version")
    if isinstance(version, int) and version > PACK_VERSION:
        raise SchemaTooNewError(f"a pack must have a version <= {PACK_VERSION}, got {version}; upgrade this package")
    if version != PACK_VERSION:
        raise StoreError(
            f"expected a pack of version {PACK_VERSION}, got a header with {sorted(header)} and version {version}; "
            "delete the object and run `data` again"
        )


def _check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        rule = "(N, 3, R, R)" if name == "images" else f"({shape[0]},), one for each image"
        raise DataError(
            f"a pack's {name} must be {dtype} of shape {rule}, got {tensor.dtype} of shape {tuple(tensor.shape)}; "
            "convert them first"
        )


def _check_range(name: str, values: torch.Tensor, num: int) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= num:
        raise DataError(f"a pack's {name} must lie in 0..{num - 1}, got {low}..{high}; number them from 0 without gaps")
