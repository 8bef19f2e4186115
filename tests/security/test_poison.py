"""Poisoned objects and files are refused with one line that names them, and reading them changes nothing."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from cluster import objects
from cluster.objects import FolderStore
from cluster.weights import put_blob
from dass.data.batches import ResidentBatches
from dass.data.decode import decode_all
from dass.data.sources import read_source
from dass.errors import ConfigError, DassError, DataError, StoreError
from dass.networks.files import load_student, student_bytes
from dass.predictor import load_predictor
from dass.tensors import pack_tensors, unpack_tensors
from jobs.__main__ import configured
from tests.security.site import (
    STUDENT,
    Kind,
    pack_and_task,
    predictor_file,
    refusal,
    restore,
    run_and_state,
    student_file,
    usable_checkpoints,
    write_store,
)

DEEP = b"[" * 100_000
NESTED = b'{"schema":2,"value":' + b"[" * 500 + b"]" * 500 + b"}"
HUGE = b'{"schema":' + b"9" * 5000 + b"}"
JSON_KINDS = ("marker", "loose record", "task", "plan", "pointer", "trial", "events")
TENSOR_KINDS = ("predictor", "student", "pack", "checkpoint", "checkpoint's position")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture
def kinds(store: FolderStore) -> dict[str, Kind]:
    return write_store(store.root)


def test_every_kind_is_read_before_it_is_poisoned(store: FolderStore, kinds: dict[str, Kind]) -> None:
    for kind in kinds.values():
        kind.read(store)
    assert usable_checkpoints(store) == 1


@pytest.mark.parametrize("name", JSON_KINDS)
@pytest.mark.parametrize(
    "data", [DEEP, NESTED, HUGE, b"\x00", b"[]", b'{"schema":NaN}', b'{"schema":true}', b"\xff\xfe"]
)
def test_json_of_another_kind_or_depth_is_refused(
    data: bytes, name: str, store: FolderStore, kinds: dict[str, Kind]
) -> None:
    store.put(kinds[name].key, data)
    assert kinds[name].key in refusal(store, kinds[name].read)


def test_a_text_that_is_too_large_is_refused_before_it_is_read(
    store: FolderStore, kinds: dict[str, Kind], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in JSON_KINDS:
        with (store.root / kinds[name].key).open("r+b") as file:
            file.truncate(2**40)  # takes no space on the disk
        before = (store.root / kinds[name].key).stat()
        with pytest.raises(StoreError, match=f"{kinds[name].key} must have at most .* got {2**40}"):
            kinds[name].read(store)
        assert (store.root / kinds[name].key).stat() == before
    monkeypatch.setattr(objects, "MAX_TEXT_BYTES", 3)
    with pytest.raises(StoreError, match="at most 3 bytes, got 4"):
        store.put("documents/latest/x.json", b"1234")


def test_an_object_that_does_not_fit_into_memory_is_refused(store: FolderStore, kinds: dict[str, Kind]) -> None:
    with (store.root / kinds["weights"].key).open("r+b") as file:
        file.truncate(2**43)
    with pytest.raises(StoreError, match=f"must fit into memory, got {2**43} bytes"):
        kinds["weights"].read(store)


@pytest.mark.parametrize("name", ["weights", "pack"])
def test_bytes_with_another_hash_are_refused(name: str, store: FolderStore, kinds: dict[str, Kind]) -> None:
    for place in (0, 9, -1):
        data = bytearray(store.get(kinds[name].key))
        data[place] ^= 1
        store.put(kinds[name].key, bytes(data))
        refusal(store, kinds[name].read)
        data[place] ^= 1
        store.put(kinds[name].key, bytes(data))
    kinds[name].read(store)


def tensors_with_header(head: bytes) -> bytes:
    return len(head).to_bytes(8, "little") + head


TENSOR_FILES = {
    "a huge length of its header": (2**63).to_bytes(8, "little") + b"{}",
    "a header of 100 MB that is not there": (10**8).to_bytes(8, "little") + b"{}",
    "a deep header": tensors_with_header(DEEP),
    "a deep header inside": save({"a": torch.zeros(1)}, {"header": "[" * 5000 + "]" * 5000}),
    "a list as its header": save({"a": torch.zeros(1)}, {"header": "[1, 2]"}),
    "a text as its header": save({"a": torch.zeros(1)}, {"header": '"predictor"'}),
    "a shape beyond its bytes": tensors_with_header(
        b'{"images":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}'
    )
    + b"\0" * 4,
    "tensors over each other": tensors_with_header(
        b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}'
    )
    + b"\0" * 3,
    "no tensors": pack_tensors({}),
}


@pytest.mark.parametrize("name", TENSOR_KINDS)
@pytest.mark.parametrize("form", TENSOR_FILES)
def test_tensors_that_do_not_fit_are_refused(form: str, name: str, store: FolderStore, kinds: dict[str, Kind]) -> None:
    store.put(kinds[name].key, TENSOR_FILES[form])
    refusal(store, kinds[name].read)


def with_header(data: bytes, *path: str, value: object) -> bytes:
    """A file of ours with another value in its header."""
    tensors, header = unpack_tensors(data)
    place: Any = header
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    return pack_tensors(tensors, header)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("resolution",), "8"),
        (("resolution",), -8),
        (("classes",), [1, 2]),
        (("classes",), []),
        (("classes",), 5),
        (("student",), None),
        (("student", "widths"), []),
        (("student", "widths"), [[], [], [], []]),
        (("student", "widths"), [["8"], [8], [8], [8]]),
        (("student", "widths"), [[-1], [8], [8], [8]]),
        (("student", "widths"), [[10**9], [10**9], [10**9], [10**9]]),
        (("student", "widths"), [[1.5], [8], [8], [8]]),
        (("student", "family"), "../x"),
    ],
)
def test_a_students_file_with_another_header_is_refused(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(DassError, match="; "):
        load_student(with_header(student_file(), *path, value=value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("predictor",), None),
        (("predictor",), []),
        (("predictor", "version"), "1"),
        (("predictor", "spec"), {}),
        (("predictor", "spec", "hidden_dim"), "4"),
        (("predictor", "spec", "hidden_dim"), 4.0),
        (("predictor", "spec", "num_channels"), 10**30),
        (("predictor", "spec", "arch_dim"), 10**9),
        (("predictor", "spec", "hidden_dim"), 2**40),
        (("predictor", "spec", "rate_init"), "x"),
        (("predictor", "spec", "inputs"), []),
        (("predictor", "spec", "unit"), {}),
    ],
)
def test_a_predictors_file_with_another_header_is_refused(path: tuple[str, ...], value: object) -> None:
    with pytest.raises(StoreError, match=r"; |run meta-training"):
        load_predictor(with_header(predictor_file(), *path, value=value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), "1"),
        (("position",), {"epoch": "1", "batch": 0}),
        (("position",), {"epoch": -1, "batch": 0}),
        (("position",), {"epoch": 10**30, "batch": 0}),
        (("position",), [1, 0]),
        (("seconds",), "soon"),
        (("curve",), [{"epoch": 1}]),
        (("curve",), 3),
        (("run",), "0" * 32),
    ],
)
def test_a_checkpoint_with_another_header_is_refused(path: tuple[str, ...], value: object) -> None:
    run, state = run_and_state()
    with pytest.raises(StoreError, match="; "):
        restore(run, with_header(state, *path, value=value))


def test_weights_that_are_not_finite_are_refused() -> None:
    for load, data in ((load_student, student_file()), (load_predictor, predictor_file())):
        tensors, header = unpack_tensors(data)
        name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
        tensor.view(-1)[0] = float("nan")
        with pytest.raises(DassError, match=f"must be finite, got others in {name}; "):
            load(pack_tensors(tensors, header))


def test_foreign_objects_among_checkpoints_are_passed_over(store: FolderStore, kinds: dict[str, Kind]) -> None:
    run, state = run_and_state()
    for name in ("notes.txt", "9-", "9" * 200, "9" * 30 + "-1"):
        store.put(f"checkpoints/{run.id}/{name}", state)
    assert usable_checkpoints(store) == 1


def test_a_task_that_names_other_images_or_a_path_as_its_pack_is_refused(store: FolderStore) -> None:
    pack, task = pack_and_task()
    for change in ({"train": (10**12,)}, {"test": (-1,)}, {"source_labels": (0, 99)}):
        with pytest.raises(DataError, match=r"of its pack, got .*; delete the task"):
            ResidentBatches.of(pack, replace(task, **change))


BOMB_PNG = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" * 1000)),
        (b"IEND", b""),
    )
)
SCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\nshowpage\n"


def test_a_decompression_bomb_and_a_program_are_no_images() -> None:
    with pytest.raises(DataError, match=r"a \(.*decompression bomb.*\), b \(not an image that Pillow can read\)"):
        decode_all([BOMB_PNG, SCRIPT], ["a", "b"], 8)


@pytest.mark.parametrize("name", ["a" * 5000, "a\x00b", "~nobody-here/x", "/proc/self/mem/x"])
@pytest.mark.parametrize("form", ["imagefolder", "parquet", "torchvision:CIFAR10"])
def test_a_path_that_cannot_be_is_refused(form: str, name: str) -> None:
    with pytest.raises(DataError, match="; "):
        read_source(f"{form}:{name}", 8)


TOML = {
    "deep": "a = " + "[" * 5000,
    "deep tables": "[" + ".".join(["a"] * 5000) + "]",
    "a huge integer": f"[student]\nepochs = {'9' * 5000}",
    "a huge hexadecimal integer": f"[student]\nepochs = 0x{'f' * 5000}",
    "an integer of 65 bits": "[student]\nepochs = 18446744073709551616",
    "not a number": "[student]\nlr = nan",
    "infinity": "[student]\nlr = inf",
    "a float for an integer": "[student]\nepochs = 1e300",
    "a date": "[student]\nepochs = 2020-01-01",
    "a path out of the recipe": 'recipe = "../../etc/passwd"',
    "no text": "\x00",
    "too much": "# " + "x" * 100_000,
    "another type": "student = 3",
}


@pytest.mark.parametrize("form", TOML)
def test_a_recipe_that_is_poisoned_is_refused(form: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(TOML[form])
    with pytest.raises(ConfigError, match=r"; |correct that line"):
        configured(str(file), None)


@pytest.mark.parametrize(
    "setting",
    [
        "student.lr=nan", "student.lr=-inf", f"student.epochs={'9' * 5000}", f"student.epochs=0x{'f' * 5000}",
        "student.epochs=" + "[" * 5000, "a." * 5000 + "b=1", "student.lr=1\nepochs=3", "=1", "data.source=[]",
    ],
    ids=lambda setting: setting[:20],
)  # fmt: skip
def test_a_setting_that_is_poisoned_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="; "):
        configured("smoke", [setting])


def test_a_blob_is_refused_by_whoever_wrote_another_under_its_name(store: FolderStore) -> None:
    sha = put_blob(store, b"weights")
    store.put(f"blobs/{sha}", b"other weights")
    with pytest.raises(StoreError, match="must hold the bytes it is named after"):
        put_blob(store, b"weights")


def test_a_student_is_written_as_it_is_read() -> None:
    loaded = load_student(student_file())
    assert student_bytes(STUDENT, 8, loaded.classes, loaded.network.state_dict()) == student_file()


def test_every_byte_of_a_table_may_be_another(store: FolderStore, kinds: dict[str, Kind]) -> None:
    key, read = kinds["scores"].key, kinds["scores"].read
    data = store.get(key)
    path = store.root / key
    refused = 0
    for place in range(len(data)):
        path.write_bytes(data[:place] + b"\xf4" + data[place + 1 :])
        try:
            read(store)
        except StoreError:
            refused += 1
    assert refused > len(data) // 3
