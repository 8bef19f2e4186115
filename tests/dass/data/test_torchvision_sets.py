"""torchvision's sets, written here in their own file formats and read through the source, pixel by pixel."""

import bz2
import csv
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dass.data.pack import Pack, Part
from dass.data.sources import read_source
from dass.errors import DataError
from tests.jobs.command import tree

TRAIN, VALID, TEST, UNASSIGNED = Part
SIDE = 8

Written = dict[tuple[str, Part], list[npt.NDArray[np.uint8]]]
"""The images of each class and part, (8, 8, 3) or (8, 8), as they were written."""


def drawn(classes: Sequence[str], parts: Sequence[Part], *, num: int = 2, is_grey: bool = False) -> Written:
    rng = np.random.default_rng(0)
    shape = (SIDE, SIDE) if is_grey else (SIDE, SIDE, 3)
    return {
        (name, part): [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(num)]
        for name in classes
        for part in parts
    }


def save(image: npt.NDArray[np.uint8], path: Path) -> None:
    """Write without loss, whatever the suffix says: torchvision's sets and Pillow look at the content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, "PPM" if path.suffix == ".ppm" else "PNG")


def found(pack: Pack) -> Written:
    """What a pack holds, in the form of what was written."""
    images: Written = {}
    for image, label, part in zip(pack.images, pack.labels.tolist(), pack.parts.tolist(), strict=True):
        images.setdefault((pack.class_names[label], Part(part)), []).append(image.permute(1, 2, 0).numpy())
    return images


def check(pack: Pack, written: Written) -> None:
    read = found(pack)
    assert read.keys() == written.keys()
    for key, images in written.items():
        expected = sorted(np.broadcast_to(np.atleast_3d(image), (SIDE, SIDE, 3)).tobytes() for image in images)
        assert sorted(image.tobytes() for image in read[key]) == expected, key


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    """The idx format of MNIST: big-endian sizes, then the values."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root: Path, written: Written, name: str, classes: Sequence[str]) -> None:
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for part, prefix in ((TRAIN, "train"), (TEST, "t10k")):
        pairs = [(image, classes.index(c)) for (c, p), images in written.items() if p is part for image in images]
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(np.stack([image for image, _ in pairs])))
        labels = np.array([label for _, label in pairs], dtype=np.uint8)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))


DIGITS = ("0 - zero", "3 - three", "9 - nine")
KMNIST = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")


def test_mnist_is_read_and_classes_without_images_are_left_out(tmp_path: Path) -> None:
    written = drawn(DIGITS, (TRAIN, TEST), is_grey=True)
    all_digits = [f"{i} -" for i in range(10)]
    renamed = {(f"{name[0]} -", part): images for (name, part), images in written.items()}
    write_mnist(tmp_path, renamed, "MNIST", all_digits)
    pack = read_source(f"torchvision:MNIST:{tmp_path}", SIDE)
    assert (pack.class_names, pack.name) == (DIGITS, "MNIST")
    check(pack, written)


def test_kmnist_has_its_own_folder_and_names(tmp_path: Path) -> None:
    written = drawn(KMNIST, (TRAIN, TEST), is_grey=True)
    write_mnist(tmp_path, written, "KMNIST", KMNIST)
    pack = read_source(f"torchvision:KMNIST:{tmp_path}", SIDE)
    assert pack.class_names == KMNIST
    check(pack, written)


def write_usps(root: Path, written: Written) -> None:
    for part, name in ((TRAIN, "usps.bz2"), (TEST, "usps.t.bz2")):
        lines = [
            " ".join(
                [str(int(c) + 1), *(f"{i + 1}:{value / 127.5 - 1:.6f}" for i, value in enumerate(image.flatten()))]
            )
            for (c, p), images in written.items()
            if p is part
            for image in images
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def test_usps_has_digits_as_names(tmp_path: Path) -> None:
    written = {key: [np.repeat(np.repeat(i, 2, 0), 2, 1) for i in images]
               for key, images in drawn("01", (TRAIN, TEST), is_grey=True).items()}  # fmt: skip
    write_usps(tmp_path, written)
    pack = read_source(f"torchvision:USPS:{tmp_path}", 16)
    assert pack.class_names == ("0", "1")
    read = found(pack)
    for key, images in written.items():  # the text of a number is rounded, and torchvision rounds down
        for mine, theirs in zip(images, read[key], strict=True):
            assert np.abs(mine.astype(int) - theirs[..., 1].astype(int)).max() <= 1


def write_eurosat(root: Path, written: Written) -> None:
    for (name, _), images in written.items():
        for index, image in enumerate(images):
            save(image, root / "eurosat" / "2750" / name / f"{name}_{index}.jpg")


def write_caltech101(root: Path, written: Written) -> None:
    (root / "caltech101" / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    for (name, _), images in written.items():
        for index, image in enumerate(images, 1):
            save(image, root / "caltech101" / "101_ObjectCategories" / name / f"image_{index:04d}.jpg")


def write_dtd(root: Path, written: Written) -> None:
    folder = root / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for (name, part), images in written.items():
        names = {TRAIN: "train", VALID: "val", TEST: "test"}
        with (folder / "labels" / f"{names[part]}1.txt").open("a") as file:
            for index, image in enumerate(images):
                save(image, folder / "images" / name / f"{part}_{index}.jpg")
                file.write(f"{name}/{part}_{index}.jpg\n")


def write_food101(root: Path, written: Written) -> None:
    (root / "food-101" / "meta").mkdir(parents=True)
    for part, file in ((TRAIN, "train"), (TEST, "test")):
        listed: dict[str, list[str]] = {}
        for (name, _), images in ((key, images) for key, images in written.items() if key[1] is part):
            listed[name] = [f"{name}/{file}{index}" for index in range(len(images))]
            for path, image in zip(listed[name], images, strict=True):
                save(image, root / "food-101" / "images" / f"{path}.jpg")
        (root / "food-101" / "meta" / f"{file}.json").write_text(json.dumps(listed))


def write_pets(root: Path, written: Written) -> None:
    folder = root / "oxford-iiit-pet"
    (folder / "annotations").mkdir(parents=True)
    classes = sorted({name for name, _ in written})
    for (name, part), images in written.items():
        with (folder / "annotations" / ("trainval.txt" if part is TRAIN else "test.txt")).open("a") as file:
            for index, image in enumerate(images):
                save(image, folder / "images" / f"{name.replace(' ', '_')}_{part}{index}.jpg")
                file.write(f"{name.replace(' ', '_')}_{part}{index} {classes.index(name) + 1} 1 1\n")


def write_aircraft(root: Path, written: Written) -> None:
    folder = root / "fgvc-aircraft-2013b" / "data"
    for number, ((name, part), images) in enumerate(written.items()):
        for index, image in enumerate(images):
            save(image, folder / "images" / f"{number}{index}.jpg")
            files = {TRAIN: "train", VALID: "val", TEST: "test"}
            with (folder / f"images_variant_{files[part]}.txt").open("a") as file:
                file.write(f"{number}{index} {name}\n")
    (folder / "variants.txt").write_text("\n".join(dict.fromkeys(name for name, _ in written)))


def write_gtsrb(root: Path, written: Written) -> None:
    """Without class 1: torchvision numbers the training folders that are there, and test by the real numbers."""
    test = root / "gtsrb" / "GTSRB" / "Final_Test" / "Images"
    rows = []
    for (name, part), images in written.items():
        for index, image in enumerate(images):
            if part is TRAIN:
                save(image, root / "gtsrb" / "GTSRB" / "Training" / f"{int(name):05d}" / f"{index}.ppm")
            else:
                save(image, test / f"{name}{index}.ppm")
                rows.append({"Filename": f"{name}{index}.ppm", "ClassId": name})
    with (root / "gtsrb" / "GT-final_test.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["Filename", "ClassId"], delimiter=";")
        writer.writeheader()
        writer.writerows(rows)


WNIDS = {"tench, Tinca tinca": "n01440764", "crane (1)": "n02012849", "crane (2)": "n03126707"}


def write_imagenet(root: Path, written: Written) -> None:
    words = {wnid: tuple(name.partition(" (")[0].split(", ")) for name, wnid in WNIDS.items()}
    torch.save((words, []), root / "meta.bin")
    for (name, part), images in written.items():
        for index, image in enumerate(images):
            save(image, root / ("train" if part is TRAIN else "val") / WNIDS[name] / f"{index}.JPEG")


def write_country211(root: Path, written: Written) -> None:
    for (name, part), images in written.items():
        for index, image in enumerate(images):
            folder = {TRAIN: "train", VALID: "valid", TEST: "test"}[part]
            save(image, root / "country211" / folder / name / f"{index}.jpg")


ALL_PARTS = (TRAIN, VALID, TEST)
WRITERS: Mapping[str, tuple[Callable[[Path, Written], None], Sequence[str], Sequence[Part]]] = {
    "EuroSAT": (write_eurosat, ("Forest", "River"), (UNASSIGNED,)),
    "Caltech101": (write_caltech101, ("ant", "bass"), (UNASSIGNED,)),
    "DTD": (write_dtd, ("banded", "zigzagged"), ALL_PARTS),
    "Food101": (write_food101, ("apple_pie", "waffles"), (TRAIN, TEST)),
    "OxfordIIITPet": (write_pets, ("Abyssinian", "Yorkshire Terrier"), (TRAIN, TEST)),
    "FGVCAircraft": (write_aircraft, ("707-320", "Yak-42"), ALL_PARTS),
    "GTSRB": (write_gtsrb, ("0", "2"), (TRAIN, TEST)),
    "ImageNet": (write_imagenet, tuple(WNIDS), (TRAIN, VALID)),
    "Country211": (write_country211, ("AD", "ZW"), ALL_PARTS),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_set_of_files_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    write, classes, parts = WRITERS[name]
    written = drawn(classes, parts)
    write(tmp_path, written)
    before = tree(tmp_path)
    pack = read_source(f"torchvision:{name}:{tmp_path}", SIDE)
    assert pack.class_names == tuple(classes)
    check(pack, written)
    assert read_source(f"torchvision:{name}:{tmp_path}", SIDE).id == pack.id
    assert tree(tmp_path) == before


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    write_eurosat(tmp_path, drawn(("Forest", "River"), (UNASSIGNED,)))
    (tmp_path / "eurosat" / "2750" / "River" / "River_1.jpg").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"got 1 of 4 that do not: .*River/River_1\.jpg \(not an image"):
        read_source(f"torchvision:EuroSAT:{tmp_path}", SIDE)


@pytest.mark.parametrize("name", ["MNIST", "USPS"])
def test_a_truncated_file_is_told_and_not_fetched(tmp_path: Path, name: str) -> None:
    if name == "MNIST":
        write_mnist(tmp_path, drawn(KMNIST, (TRAIN, TEST), is_grey=True), "MNIST", KMNIST)
        damaged = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    else:
        write_usps(tmp_path, {("0", p): [np.zeros((16, 16), np.uint8)] for p in (TRAIN, TEST)})
        damaged = tmp_path / "usps.t.bz2"
    damaged.write_bytes(damaged.read_bytes()[:-3])
    before = tree(tmp_path)
    with pytest.raises(DataError, match=f"must be able to open {name} in .*; nothing is downloaded here: fetch it"):
        read_source(f"torchvision:{name}:{tmp_path}", SIDE)
    assert tree(tmp_path) == before


def test_a_label_that_is_missing_is_told(tmp_path: Path) -> None:
    write_mnist(tmp_path, drawn(KMNIST, (TRAIN, TEST), is_grey=True), "MNIST", KMNIST)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(19, np.uint8)))
    with pytest.raises(DataError, match="got 20 images and 19 labels in train of MNIST"):
        read_source(f"torchvision:MNIST:{tmp_path}", SIDE)


def test_files_of_another_hash_are_never_unpickled(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"cos\nsystem\n(S'touch HACKED'\ntR.")
    with pytest.raises(DataError, match=r"open CIFAR10 .* not found or corrupted\.; nothing is downloaded"):
        read_source(f"torchvision:CIFAR10:{tmp_path}", SIDE)


def test_parts_of_different_classes_are_refused(tmp_path: Path) -> None:
    written = drawn(("banded", "zigzagged"), ALL_PARTS)
    del written["zigzagged", TEST]
    write_dtd(tmp_path, written)
    with pytest.raises(DataError, match="must have the same classes, got some without zigzagged"):
        read_source(f"torchvision:DTD:{tmp_path}", SIDE)


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        (
            "torchvision:CIFAR10:{}",
            r"CIFAR10 must lie in .* as cifar-10-batches-py, got none of cifar-10-batches-py; not",
        ),
        ("torchvision:SVHN:{}", r"got none of train_32x32\.mat, test_32x32\.mat; nothing is downloaded here"),
        ("torchvision:SEMEION:{}", r"got none of semeion\.data"),
        ("torchvision:Caltech101:{}", "got none of caltech101/101_ObjectCategories"),
        ("torchvision:CIFAR10:{}/absent", r"must name a folder, got .*absent; correct the path"),
        ("torchvision:Cifar-10:/x", r"must name one of .*, got 'Cifar-10'; did you mean torchvision:CIFAR10:/x\?"),
        ("torchvision:CIFAR10", "needs a folder, got none for CIFAR10; write torchvision:CIFAR10:ROOT"),
        ("torchvision:what:/x", "must name one of .*; choose one of them"),
        ("torchvision", r"did you mean torchvision:NAME:ROOT\?"),
        ("cifar10:/x", r"did you mean torchvision:CIFAR10:/x\?"),
        ("ImageNet", r"did you mean torchvision:ImageNet:PATH\?"),
    ],
)
def test_what_is_not_there_is_told_before_anything_is_touched(tmp_path: Path, spec: str, rule: str) -> None:
    with pytest.raises(DataError, match=rule):
        read_source(spec.format(tmp_path), SIDE)
    assert tree(tmp_path) == {}
