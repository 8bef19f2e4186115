import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dass.data.pack import Pack, Part
from dass.data.sources import read_source
from dass.data.splits import assign_parts, whole_task
from dass.errors import DataError
from tests.dass.data.test_decode import encoded

TRAIN, VALID, TEST, UNASSIGNED = Part


def png(value: int) -> bytes:
    return encoded(Image.new("L", (3, 5), value))


def write_folder(root: Path, files: Sequence[str]) -> str:
    """A folder of grey images, the i-th of value i; returns its spec."""
    for value, name in enumerate(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return f"imagefolder:{root}"


def write_parquet(path: Path, columns: Mapping[str, Any]) -> str:
    pq.write_table(pa.table(dict(columns)), path, row_group_size=3)
    return f"parquet:{path}"


def values(pack: Pack) -> list[int]:
    return pack.images[:, 0, 0, 0].tolist()


def test_digits_hold_all_images_unassigned_and_unchanged_at_their_own_size() -> None:
    pack = read_source("digits", 8)
    digits = load_digits()
    assert pack.images.shape == (1797, 3, 8, 8)
    assert np.abs(pack.images[:, 1].numpy() - digits.images * 255 / 16).max() <= 0.5
    assert pack.labels.tolist() == digits.target.tolist()
    assert (pack.parts == UNASSIGNED).all()
    assert (pack.class_names, pack.name) == (tuple("0123456789"), "digits")


def test_digits_are_scaled_up_between_their_own_values() -> None:
    small, large = read_source("digits", 8), read_source("digits", 16)
    assert large.resolution == 16
    assert large.images.float().mean() == pytest.approx(small.images.float().mean(), abs=0.5)
    assert read_source("digits", 16).id == large.id


def test_a_folder_of_classes_is_read_in_sorted_order(tmp_path: Path) -> None:
    spec = write_folder(tmp_path, ["b/2.png", "b/1.PNG", "a/x/9.png", "a/x.png", "a/10.png", "b/deep/er/0.png"])
    pack = read_source(spec, 8)
    assert pack.class_names == ("a", "b")
    assert values(pack) == [4, 2, 3, 1, 0, 5]
    assert pack.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (pack.parts == UNASSIGNED).all()
    assert pack.name == tmp_path.name


def test_hidden_files_and_other_files_are_passed_over(tmp_path: Path) -> None:
    spec = write_folder(tmp_path, ["a/1.png", "a/2.png", "b/1.png", "b/2.png", "a/.3.png", "b/.d/4.png", ".git/5.png"])
    (tmp_path / "a" / "labels.txt").write_text("text")
    (tmp_path / "README.md").write_text("text")
    assert values(read_source(spec, 8)) == [0, 1, 2, 3]


@pytest.mark.parametrize("valid", ["valid", "val", "validation"])
def test_part_folders_become_parts(tmp_path: Path, valid: str) -> None:
    files = ["test/a/0.png", "test/b/0.png", f"{valid}/a/0.png", f"{valid}/b/0.png", "train/a/0.png", "train/b/0.png"]
    pack = read_source(write_folder(tmp_path, files), 8)
    assert pack.parts.tolist() == [TRAIN, TRAIN, VALID, VALID, TEST, TEST]
    assert values(pack) == [4, 5, 2, 3, 0, 1]
    assert pack.class_names == ("a", "b")


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_class_that_a_part_lacks_is_told_before_an_image_is_decoded(tmp_path: Path, part: str) -> None:
    files = ["train/a/0.png", "train/b/0.png", "valid/a/0.png", "valid/b/0.png", "test/a/0.png", "test/b/0.png"]
    spec = write_folder(tmp_path, [each for each in files if each != f"{part}/b/0.png"])
    (tmp_path / "train" / "a" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=f"every class needs images in {part}, got none for b"):
        read_source(spec, 8)


def test_a_class_may_be_named_like_a_part(tmp_path: Path) -> None:
    pack = read_source(write_folder(tmp_path, ["bus/1.png", "bus/2.png", "train/1.png", "train/2.png"]), 8)
    assert pack.class_names == ("bus", "train")
    assert (pack.parts == UNASSIGNED).all()


def test_where_a_folder_lies_changes_no_task(tmp_path: Path) -> None:
    files = [f"{name}/{i}.png" for name in "ab" for i in range(5)]
    packs = [read_source(write_folder(tmp_path / place, files), 8) for place in ("one", "two")]
    assert packs[0].id != packs[1].id  # the pack carries the folder's name
    assert len({whole_task(assign_parts(pack), "t").id for pack in packs}) == 1


def test_parquet_rows_keep_their_order_names_and_parts(tmp_path: Path) -> None:
    columns = {
        "image": [png(i) for i in range(6)],
        "label": pa.array([1, 0, 1, 0, 1, 0], pa.int32()),
        "label_name": pa.array(["dog", "cat"] * 3).dictionary_encode(),
        "split": ["train", "train", "val", "valid", "test", "test"],
    }
    pack = read_source(write_parquet(tmp_path / "pets.parquet", columns), 16)
    assert values(pack) == [0, 1, 2, 3, 4, 5]
    assert pack.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert pack.parts.tolist() == [TRAIN, TRAIN, VALID, VALID, TEST, TEST]
    assert (pack.class_names, pack.name, pack.resolution) == (("cat", "dog"), "pets", 16)


@pytest.mark.parametrize("has_metadata", [True, False])
def test_parquet_in_the_layout_of_hugging_face(tmp_path: Path, has_metadata: bool) -> None:
    images = pa.array([{"bytes": png(i), "path": f"{i}.png"} for i in range(4)])
    table = pa.table({"image": images, "label": [7, 2, 7, 2]})
    names = [f"class {i}" for i in range(9)]
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    if has_metadata:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "x.parquet")
    pack = read_source(f"parquet:{tmp_path}/x.parquet", 8)
    assert values(pack) == [0, 1, 2, 3]
    assert pack.labels.tolist() == [1, 0, 1, 0]
    assert pack.class_names == (("class 2", "class 7") if has_metadata else ("2", "7"))


def test_an_image_of_that_layout_without_bytes_is_named(tmp_path: Path) -> None:
    rows = [{"bytes": png(0), "path": None}, None, {"bytes": None, "path": "2.png"}, {"bytes": png(3), "path": None}]
    images = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    with pytest.raises(DataError, match=r"got 2 of 4 that do not: row 1 \(no bytes\), row 2 \(no bytes\)"):
        read_source(write_parquet(tmp_path / "x.parquet", {"image": images, "label": [0, 0, 1, 1]}), 8)


def test_parquet_without_names_and_splits_numbers_its_labels_again(tmp_path: Path) -> None:
    columns = {"image": [png(i) for i in range(6)], "label": [40, 7, 40, 7, 9, 9]}
    pack = read_source(write_parquet(tmp_path / "x.parquet", columns), 8)
    assert pack.labels.tolist() == [2, 0, 2, 0, 1, 1]
    assert pack.class_names == ("7", "9", "40")
    assert (pack.parts == UNASSIGNED).all()


def test_folder_and_parquet_of_the_same_images_give_the_same_task(tmp_path: Path) -> None:
    folder = read_source(write_folder(tmp_path / "f", [f"{name}/{i}.png" for name in "ab" for i in range(5)]), 8)
    columns = {"image": [png(i) for i in range(10)], "label": [0] * 5 + [1] * 5}
    table = read_source(write_parquet(tmp_path / "t.parquet", columns), 8)
    assert torch.equal(folder.images, table.images)
    assert whole_task(assign_parts(folder), "t").id == whole_task(assign_parts(table), "t").id


def test_bad_images_are_named_by_path_and_by_row(tmp_path: Path) -> None:
    spec = write_folder(tmp_path / "f", ["a/1.png", "a/2.png", "b/1.png", "b/2.png"])
    (tmp_path / "f" / "b" / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"got 1 of 4 that do not: .*b/2\.png \(.*\); replace or remove"):
        read_source(spec, 8)
    columns = {"image": [png(0), b"junk", png(2), None], "label": [0, 0, 1, 1]}
    with pytest.raises(DataError, match=r"got 2 of 4 that do not: row 1 \(.*\), row 3 \(no bytes\); "):
        read_source(write_parquet(tmp_path / "x.parquet", columns), 8)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("", "give one of them with --data"),
        ("digit", "did you mean digits?"),
        ("digits:8", "did you mean digits?"),
        ("imagefolder:", "did you mean imagefolder:PATH?"),
        ("folder:/photos", "did you mean imagefolder:/photos?"),
        ("Parquet:/x", "did you mean parquet:/x?"),
        ("/data/pets.parquet", "did you mean parquet:/data/pets.parquet?"),
        ("/", "did you mean imagefolder:/?"),
        ("s3://bucket/x", "give one of them with --data"),
    ],
)
def test_an_unknown_source_names_the_forms_and_the_nearest(spec: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read_source(spec, 8)
    assert f"must be digits, imagefolder:PATH, parquet:PATH or torchvision:NAME:ROOT, got {spec!r}; {hint}" in str(
        caught.value
    )


def test_the_resolution_is_checked_before_the_path() -> None:
    with pytest.raises(DataError, match="multiple of 8, got 30"):
        read_source("imagefolder:/absent", 30)


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ([], "must hold images, got none"),
        (["loose.png"], "must hold images, got none"),
        (["a/1.png", "a/2.png"], r"at least 2 classes, got 1 \(a\)"),
        (["a/1.png", "a/2.png", "b/1.png"], "at least 2 images.* got 1 for b"),
        (["a/1.png", "a/2.png", "b/1.txt"], "got none for b"),
        (["train/a/1.png", "train/a/2.png", "test/a/1.png", "test/b/1.png"], "got none for b"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"], "at least 2 images.* got 1 for a, b"),
        (["valid/a/1.png", "test/a/1.png"], "must hold either classes, or train"),
        (["train/a/1.png", "test/a/1.png", "extra/1.png"], "must hold either classes, or train"),
    ],
)
def test_folders_that_cannot_be_learnt_from_are_refused(tmp_path: Path, files: list[str], rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_source(write_folder(tmp_path, files), 8)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_a_missing_path_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match=r"got .*absent; correct the path"):
        read_source(f"{kind}:{tmp_path}/absent", 8)


IMAGES = [png(i) for i in range(4)]


@pytest.mark.parametrize(
    ("columns", "rule"),
    [
        ({"label": [0, 0, 1, 1]}, r"columns image .* got label \(int64\)"),
        ({"image": IMAGES}, r"and label \(an integer\), got image \(binary\)"),
        ({"image": ["a.png"] * 4, "label": [0, 0, 1, 1]}, r"got image \(string\)"),
        ({"image": [{"path": "a.png"}] * 4, "label": [0, 0, 1, 1]}, r"got image \(struct<path: string>\)"),
        ({"image": IMAGES, "label": ["a", "a", "b", "b"]}, r"label \(string\); rename or convert"),
        ({"image": IMAGES, "label": [0, -1, 1, 1]}, r"label must be an integer >= 0, got -1 in row 1 \(1 of 4 rows\)"),
        ({"image": IMAGES, "label": [0, None, 1, None]}, r"got None in row 1 \(2 of 4 rows\)"),
        ({"image": IMAGES, "label": [0, 0, 1, 1], "split": ["train", "dev", None, "test"]}, "got 'dev' in row 1, None"),
        ({"image": IMAGES, "label": [0, 0, 1, 1], "label_name": ["a", "b", "c", "c"]}, r"got 'a' and \(in row 1\) 'b'"),
        ({"image": IMAGES, "label": [5, 5, 5, 5]}, r"at least 2 classes, got 1 \(5\)"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "must hold images, got none"),
    ],
)
def test_tables_that_cannot_be_learnt_from_are_refused(tmp_path: Path, columns: dict[str, Any], rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_source(write_parquet(tmp_path / "x.parquet", columns), 8)


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    spec = write_parquet(tmp_path / "x.parquet", {"image": IMAGES, "label": [0, 0, 1, 1]})
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[:-20])
    with pytest.raises(DataError, match="must be a complete Parquet file"):
        read_source(spec, 8)
