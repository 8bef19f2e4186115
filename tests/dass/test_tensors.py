import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from dass.errors import StoreError
from dass.tensors import file_sha256, open_tensors, pack_tensors, packed_sha256, sha256, unpack_tensors

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip
TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(7)}
HEADER = {"version": 1, "classes": ["é", "b"], "score": 0.1, "none": None}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    values = 100 * torch.rand(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return values.to(draw(st.sampled_from(DTYPES)))


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=8), tensors(), max_size=4), st.dictionaries(st.text(), json_values))
def test_tensors_and_header_come_back(packed: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    packed.pop("__metadata__", None)
    found, found_header = unpack_tensors(pack_tensors(packed, header))
    assert found_header == header
    assert found.keys() == packed.keys()
    for name, tensor in packed.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found[name], tensor)


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=8), tensors(), max_size=6), st.dictionaries(st.text(), json_values))
def test_the_bytes_are_those_that_the_library_writes(packed: dict[str, torch.Tensor], header: dict[str, Any]) -> None:
    packed.pop("__metadata__", None)
    expected = save(packed, metadata={"header": json.dumps(header, sort_keys=True)})
    assert pack_tensors(packed, header) == expected
    assert packed_sha256(packed, header) == hashlib.sha256(expected).hexdigest()


def test_tensors_of_all_types_lie_in_the_order_of_the_library() -> None:
    packed = {f"{'ba'[i % 2]}{dtype}": torch.ones(i + 1, dtype=dtype) for i, dtype in enumerate(DTYPES)}
    packed |= {f"{name}, again": tensor.clone() for name, tensor in packed.items()}
    assert pack_tensors(packed) == save(packed, metadata={"header": "{}"})


def test_a_file_is_mapped_and_never_written_to(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(pack_tensors(TENSORS, HEADER))
    found, header = open_tensors(path)
    assert header == HEADER
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
    found["b"].zero_()
    path.unlink()
    assert found["b"].sum() == 0
    path.write_bytes(pack_tensors(TENSORS, HEADER))
    assert torch.equal(open_tensors(path)[0]["b"], TENSORS["b"])
    assert file_sha256(path) == packed_sha256(TENSORS, HEADER)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    data = pack_tensors(TENSORS, HEADER)
    for size in (0, 7, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(StoreError, match="delete it and run the job that wrote it again"):
            open_tensors(path)
    with pytest.raises(FileNotFoundError):
        open_tensors(tmp_path / "absent")


def test_not_a_number_in_a_tensor_comes_back_bit_by_bit() -> None:
    values = torch.tensor([math.nan, -math.nan, math.inf, -0.0, 1e-45])
    found = unpack_tensors(pack_tensors({"a": values}))[0]["a"]
    assert torch.equal(found.view(torch.int32), values.view(torch.int32))


def test_the_bytes_are_plain_safetensors() -> None:
    found = load(pack_tensors(TENSORS, HEADER))
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_plain_safetensors_file_is_read_with_an_empty_header() -> None:
    found, header = unpack_tensors(save(TENSORS))
    assert header == {}
    assert torch.equal(found["b"], TENSORS["b"])


def test_equal_input_gives_equal_bytes_whatever_the_order_and_the_memory_layout() -> None:
    turned = {"a": TENSORS["a"].clone(), "b": TENSORS["b"].T.contiguous().T}
    assert not turned["b"].is_contiguous()
    assert pack_tensors(turned, dict(reversed(HEADER.items()))) == pack_tensors(TENSORS, HEADER)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert pack_tensors({"i": images.to(memory_format=torch.channels_last)}) == pack_tensors({"i": images})
    assert pack_tensors(TENSORS) == pack_tensors(TENSORS, {})


def test_learned_tensors_are_packed_by_their_values() -> None:
    learned = torch.nn.Parameter(TENSORS["b"].clone())
    assert pack_tensors({"b": learned}) == pack_tensors({"b": TENSORS["b"]})


def test_other_values_names_and_headers_give_other_bytes() -> None:
    packed = [
        pack_tensors(TENSORS),
        pack_tensors(TENSORS, HEADER),
        pack_tensors({**TENSORS, "a": torch.tensor(8)}),
        pack_tensors({"c": TENSORS["b"], "a": TENSORS["a"]}),
    ]
    assert len({sha256(data) for data in packed}) == len(packed)


def test_what_comes_back_has_its_own_memory() -> None:
    data = pack_tensors(TENSORS)
    unpack_tensors(data)[0]["b"].zero_()
    assert torch.equal(unpack_tensors(data)[0]["b"], torch.arange(6.0).reshape(2, 3))


def test_a_header_that_json_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack_tensors(TENSORS, {"score": math.nan})


def test_every_truncation_is_refused() -> None:
    data = pack_tensors(TENSORS, HEADER)
    for size in range(len(data)):
        with pytest.raises(StoreError, match=f"got {size} bytes that do not parse"):
            unpack_tensors(data[:size])


@pytest.mark.parametrize("data", [b"no safetensors at all", b"\x00" * 64, b"PK\x03\x04" + b"\x00" * 60])
def test_other_files_are_refused_with_a_remedy(data: bytes) -> None:
    with pytest.raises(StoreError, match="delete the object and run the job that wrote it again"):
        unpack_tensors(data)


def test_a_header_that_is_no_json_is_refused() -> None:
    head = json.dumps({"__metadata__": {"header": "{"}}).encode()
    with pytest.raises(StoreError, match="do not parse"):
        unpack_tensors(len(head).to_bytes(8, "little") + head)


def test_sha256_is_the_standard_one_in_hex() -> None:
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256(b"weights") == hashlib.sha256(b"weights").hexdigest()
