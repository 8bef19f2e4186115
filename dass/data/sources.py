"""Named and user datasets as packs.

digits              the handwritten digits that scikit-learn ships
imagefolder:PATH    PATH/class/*.jpg, or PATH/{train,valid,test}/class/*.jpg
parquet:PATH        one file with the columns image, label, and optionally label_name and split
torchvision:NAME:ROOT    one of torchvision's datasets that lies in ROOT (torchvision_sets.py)
"""

import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

from dass.data.decode import Encoded, Progress, decode_all
from dass.data.listing import PART_NAMES, Listing, check_listing, some
from dass.data.pack import Pack, Part, check_resolution
from dass.data.torchvision_sets import SETS, read_torchvision
from dass.errors import DataError
from dass.json_text import parse_json

FORMS = ("digits", "imagefolder:PATH", "parquet:PATH", "torchvision:NAME:ROOT")
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_source(spec: str, resolution: int, progress: Progress | None = None) -> Pack:
    """All images of a source, resized to `resolution`; parts that it does not name stay unassigned.

    Everything but the pixels is checked before the first image is decoded.

    Raises:
        DataError: the spec, the resolution, or what lies at the path cannot be used; the message names the remedy.
    """
    kind, _, path = spec.partition(":")
    if kind not in _READERS or (kind == "digits") != (path == ""):
        raise DataError(_unknown_spec(spec))
    check_resolution(resolution)
    try:
        listing = _READERS[kind](path)
    except OSError as error:
        raise DataError(f"a source must be readable, got {spec!r:.200} ({error.strerror}); correct the path") from error
    check_listing(listing)
    images = decode_all(listing.images, listing.places, resolution, progress)
    labels = torch.tensor(listing.labels, dtype=torch.int64)
    parts = torch.tensor(listing.parts, dtype=torch.uint8)
    return Pack(images, labels, parts, listing.class_names, listing.name)


def _read_digits(_: str) -> Listing:
    """1,797 grey images of 8 x 8, values 0..16, all unassigned."""
    from sklearn.datasets import load_digits  # a second of import that no other source needs

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return Listing(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        labels=digits.target.tolist(),
        parts=[Part.UNASSIGNED] * len(grey),
        places=[f"digit {index}" for index in range(len(grey))],
        images=[Image.fromarray(image) for image in grey],
    )


def _read_imagefolder(path: str) -> Listing:
    """Parts, classes and files in the order of their names; hidden files and other suffixes are passed over."""
    root = Path(os.path.expanduser(path))  # noqa: PTH111 - takes `~nobody` as a name
    if not root.is_dir():
        raise DataError(f"imagefolder:PATH must name a folder, got {root}; correct the path")
    folders = {name: _subfolders(root / name) for name in _part_folders(root)} or {"": _subfolders(root)}
    class_names = sorted({folder.name for classes in folders.values() for folder in classes})
    number = {name: label for label, name in enumerate(class_names)}
    files = [
        (file, number[folder.name], PART_NAMES.get(part, Part.UNASSIGNED))
        for part, classes in folders.items()
        for folder in classes
        for file in _image_files(folder)
    ]
    return Listing(
        name=root.resolve().name,
        class_names=tuple(class_names),
        labels=[label for _, label, _ in files],
        parts=[part for _, _, part in files],
        places=[str(file) for file, _, _ in files],
        images=[file for file, _, _ in files],
    )


def _part_folders(root: Path) -> list[str]:
    """The part folders of `root` in the order train, valid, test; none where its folders are classes.

    A single folder named like a part, such as `train` beside `bus` and `tram`, is a class.
    """
    names = [folder.name for folder in _subfolders(root)]
    found = [name for name in PART_NAMES if name in names]
    has_others = len(found) < len(names)
    if not found or (has_others and len(found) == 1):
        return []
    if has_others or "train" not in found:
        raise DataError(
            f"an image folder must hold either classes, or train and optionally valid and test, got {some(names)} in "
            f"{root}; name the parts so, and move everything else away"
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """The image files at any depth, sorted by their names, level by level."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    visible = [file for file in found if not any(name.startswith(".") for name in file.relative_to(folder).parts)]
    return sorted(visible, key=lambda file: file.relative_to(folder).parts)


def _read_parquet(path: str) -> Listing:
    """Rows in file order. Labels are renumbered 0..C-1 in their own order, so a file may hold only some of them.

    Files that Hugging Face's datasets writes are read as they are: images as structs, class names in the schema.
    """
    place = Path(os.path.expanduser(path))  # noqa: PTH111 - takes `~nobody` as a name
    file = _open_parquet(place)
    columns = [name for name in ("label", "label_name", "split") if name in file.schema_arrow.names]
    with _parquet_errors(place):
        table = file.read(columns=columns).to_pydict()
    labels = table["label"]
    _check_rows("label must be an integer >= 0", labels, lambda label: label is not None and label >= 0)
    splits = table.get("split", ["train"] * len(labels))
    _check_rows(f"split must be one of {', '.join(PART_NAMES)}", splits, PART_NAMES.__contains__)
    names = _names_of(labels, table.get("label_name") or _names_in_schema(file.schema_arrow, labels))
    number = {label: index for index, label in enumerate(names)}
    return Listing(
        name=place.stem,
        class_names=tuple(names.values()),
        labels=[number[label] for label in labels],
        parts=[PART_NAMES[split] if "split" in table else Part.UNASSIGNED for split in splits],
        places=[f"row {row}" for row in range(len(labels))],
        images=_images_of(file, place),
    )


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(f"parquet:PATH must name a file, got {path}; correct the path")
    with _parquet_errors(path):
        file = pq.ParquetFile(path)
    types = {column.name: column.type for column in file.schema_arrow}
    image, label = types.get("image", pa.null()), types.get("label", pa.null())
    if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        image = image.field("bytes").type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image)) or not pa.types.is_integer(label):
        raise DataError(
            f"{path} must have the columns image (binary: an encoded image; or a struct with bytes) and label (an integer), got "
            f"{some([f'{name} ({type_})' for name, type_ in types.items()])}; rename or convert them"
        )
    return file


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last where Arrow quotes damaged bytes
        raise DataError(f"{path} must be a complete Parquet file, got: {error}; write the file again") from error


def _images_of(file: pq.ParquetFile, path: Path) -> Iterator[Encoded]:
    with _parquet_errors(path):
        for batch in file.iter_batches(batch_size=1024, columns=["image"]):
            column = batch.column(0)
            yield from (pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column).to_pylist()


def _names_in_schema(schema: pa.Schema, labels: Sequence[int]) -> Sequence[Any]:
    """The name of each label as Hugging Face's datasets notes it; the labels themselves where there is none."""
    try:
        names = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
        return [str(names[label]) for label in labels]
    except (KeyError, IndexError, TypeError, ValueError):
        return labels


def _names_of(labels: Sequence[int], names: Sequence[Any]) -> dict[int, str]:
    """The name of each label that occurs, in the order of the labels."""
    known: dict[int, Any] = {}
    for row, (label, name) in enumerate(zip(labels, names, strict=True)):
        if known.setdefault(label, name) != name:
            raise DataError(
                f"a label must have one label_name, got {known[label]!r} and (in row {row}) {name!r} for label "
                f"{label}; correct the names, or leave the column out"
            )
    return {label: str(label if known[label] is None else known[label]) for label in sorted(known)}


def _check_rows(rule: str, values: Sequence[Any], is_legal: Callable[[Any], bool]) -> None:
    """Raise DataError, with each illegal value once and the first row that has it, unless all are legal."""
    bad = [(value, row) for row, value in enumerate(values) if not is_legal(value)]
    if bad:
        first_rows = dict(reversed(bad))
        named = [f"{value!r} in row {row}" for value, row in sorted(first_rows.items(), key=lambda item: item[1])]
        raise DataError(f"{rule}, got {some(named)} ({len(bad)} of {len(values)} rows); correct or drop those rows")


def _unknown_spec(spec: str) -> str:
    """The legal forms, and the one that was probably meant."""
    kind, _, path = spec.partition(":")
    if Path(spec).suffix.lower() == ".parquet" and not path:
        meant = f"parquet:{spec}"
    elif spec and not path and os.path.isdir(spec):  # noqa: PTH112 - takes any text as a name
        meant = f"imagefolder:{spec}"
    else:
        forms = {form.partition(":")[0]: form for form in FORMS}
        forms |= {name.lower(): f"torchvision:{name}:PATH" for name in SETS}  # a set's name alone
        close = difflib.get_close_matches(kind.lower(), forms, n=1, cutoff=0.6)
        meant = forms[close[0]].replace("PATH", path or "PATH") if close else ""
    hint = f"did you mean {meant}?" if meant else "give one of them with --data"
    return f"a source must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {spec!r}; {hint}"


_READERS: Mapping[str, Callable[[str], Listing]] = {
    "digits": _read_digits,
    "imagefolder": _read_imagefolder,
    "parquet": _read_parquet,
    "torchvision": read_torchvision,
}
