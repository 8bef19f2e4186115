import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dass.data.pack import Pack, Part, check_resolution
from dass.errors import DataError, SchemaTooNewError, StoreError
from dass.tensors import pack_tensors
from tests.dass.data.packs import golden_pack, make_pack


def test_bytes_give_the_same_pack_back() -> None:
    pack = make_pack()
    again = Pack.from_bytes(pack.to_bytes())
    for name in ("images", "labels", "parts"):
        assert torch.equal(getattr(again, name), getattr(pack, name))
        assert getattr(again, name).dtype == getattr(pack, name).dtype
    assert (again.class_names, again.name, again.resolution) == (pack.class_names, "synthetic", 8)


def test_id_is_the_hash_of_the_bytes_on_both_sides() -> None:
    pack = make_pack()
    data = pack.to_bytes()
    assert pack.id == hashlib.sha256(data).hexdigest() == Pack.from_bytes(data).id
    assert Pack.from_bytes(data).to_bytes() == data


def test_a_file_gives_the_same_pack_as_its_bytes(tmp_path: Path) -> None:
    pack, path = make_pack(), tmp_path / "pack"
    path.write_bytes(pack.to_bytes())
    again = Pack.from_file(path)
    assert again.id == pack.id
    assert torch.equal(again.images, pack.images)
    assert again.to_bytes() == pack.to_bytes()
    path.write_bytes(pack.to_bytes()[:-1])
    with pytest.raises(StoreError):
        Pack.from_file(path)


def test_id_is_that_of_the_values_whatever_their_strides() -> None:
    pack = make_pack()
    strided = replace(pack, images=pack.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert not strided.images.is_contiguous()
    assert strided.id == pack.id


@pytest.mark.parametrize("change", ["images", "labels", "parts", "class_names", "name"])
def test_id_changes_with_every_field(change: str) -> None:
    pack = make_pack()
    changed = {
        "images": 255 - pack.images,
        "labels": pack.labels.flip(0),
        "parts": torch.full_like(pack.parts, Part.UNASSIGNED),
        "class_names": ("a", "b", "c"),
        "name": "other",
    }
    assert replace(pack, **{change: changed[change]}).id != pack.id  # type: ignore[arg-type]


def test_golden_id() -> None:
    assert golden_pack().id == "584bc3626711f1ca678bfa9c252417843683057c3cf8b0b4ccc810f821c7f184"


@pytest.mark.parametrize(
    ("change", "value", "rule"),
    [
        ("images", torch.zeros(18, 3, 8, 8), "uint8"),
        ("images", torch.zeros(18, 1, 8, 8, dtype=torch.uint8), r"\(N, 3, R, R\)"),
        ("images", torch.zeros(18, 3, 8, 16, dtype=torch.uint8), r"\(N, 3, R, R\)"),
        ("images", torch.zeros(18, 3, 12, 12, dtype=torch.uint8), "multiple of 8"),
        ("labels", torch.zeros(17, dtype=torch.int64), "one for each image"),
        ("labels", torch.full((18,), 3), r"0\.\.2, got 3\.\.3"),
        ("labels", torch.full((18,), -1), r"got -1\.\.-1"),
        ("parts", torch.full((18,), 4, dtype=torch.uint8), r"parts must lie in 0\.\.3"),
    ],
)
def test_illegal_tensors_are_refused(change: str, value: torch.Tensor, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        replace(make_pack(), **{change: value})  # type: ignore[arg-type]


def test_an_empty_pack_is_refused() -> None:
    nothing = torch.zeros(0, dtype=torch.uint8)
    with pytest.raises(DataError, match="at least one image"):
        Pack(torch.zeros(0, 3, 8, 8, dtype=torch.uint8), nothing.long(), nothing, ("a", "b"), "empty")


@pytest.mark.parametrize("data", [b"", b"no pack", make_pack().to_bytes()[:-1]])
def test_damaged_bytes_are_a_store_error(data: bytes) -> None:
    with pytest.raises(StoreError):
        Pack.from_bytes(data)


def test_bytes_of_something_else_are_a_store_error() -> None:
    with pytest.raises(StoreError, match="version"):
        Pack.from_bytes(pack_tensors({"images": torch.zeros(1)}))
    header = {"version": 1, "name": "x", "class_names": ["a"]}
    with pytest.raises(StoreError, match="bytes of a pack"):
        Pack.from_bytes(pack_tensors({"images": torch.zeros(1)}, header))


def test_a_newer_pack_asks_for_an_upgrade() -> None:
    with pytest.raises(SchemaTooNewError, match="upgrade"):
        Pack.from_bytes(pack_tensors({"images": torch.zeros(1)}, {"version": 2}))


@pytest.mark.parametrize(("resolution", "nearest"), [(0, 8), (-8, 8), (4, 8), (30, 32), (33, 32)])
def test_resolution_must_suit_the_networks(resolution: int, nearest: int) -> None:
    with pytest.raises(DataError, match=f"got {resolution}; set data.resolution, for example to {nearest}"):
        check_resolution(resolution)
