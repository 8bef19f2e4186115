"""Named and user datasets as packs: what a source holds is listed and checked first, then decoded.

digits                  the handwritten digits that scikit-learn ships
imagefolder:PATH        PATH/class/*.jpg, or PATH/{train,valid,test}/class/*.jpg
parquet:PATH            one file with the columns image, label, and optionally label_name and split
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from dass.data.decode import Encoded, Progress, decode_all
from dass.data.pack import Pack, Part, check_resolution
from dass.errors import DataError

FORMS = ("digits", "imagefolder:PATH", "parquet:PATH")
PART_NAMES: Mapping[str, Part] = {
    "train": Part.TRAIN,
    "valid": Part.VALID,
    "val": Part.VALID,
    "validation": Part.VALID,
    "test": Part.TEST,
}
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_MAX_NAMED = 10


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
    listing = _READERS[kind](path)
    _check_listing(listing)
    images = decode_all(listing.images, listing.places, resolution, progress)
    labels = torch.tensor(listing.labels, dtype=torch.int64)
    parts = torch.tensor(listing.parts, dtype=torch.uint8)
    return Pack(images, labels, parts, listing.class_names, listing.name)


@dataclass(frozen=True)
class _Listing:
    """What a source holds, pixels aside; all sequences but the names are one entry an image."""

    name: str
    class_names: tuple[str, ...]
    labels: Sequence[int]
    parts: Sequence[Part]
    places: Sequence[str] = field(repr=False)
    images: Iterable[Encoded] = field(repr=False)


def _read_digits(_: str) -> _Listing:
    """1,797 grey images of 8 x 8, values 0..16, all unassigned."""
    from sklearn.datasets import load_digits  # a second of import that no other source needs

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.tolist()
    return _Listing(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        labels=labels,
        parts=[Part.UNASSIGNED] * len(labels),
        places=[f"digit {index}" for index in range(len(labels))],
        images=[Image.fromarray(image) for image in grey],
    )


def _read_imagefolder(path: str) -> _Listing:
    """Classes and files in the order of their names, part by part; hidden files and other suffixes are passed over."""
    root = Path(path).expanduser()
    if not root.is_dir():
        raise DataError(f"imagefolder:PATH must name a folder that can be read, got {root}; correct the path")
    folders = {part_name: _subfolders(root / part_name) for part_name in _part_folders(root)} or {"": _subfolders(root)}
    class_names = sorted({folder.name for part in folders.values() for folder in part})
    files = [
        (file, class_names.index(folder.name), PART_NAMES.get(part_name, Part.UNASSIGNED))
        for part_name, part in folders.items()
        for folder in part
        for file in _image_files(folder)
    ]
    return _Listing(
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
    others = sorted(set(names) - set(found))
    if not found or (others and len(found) == 1):
        return []
    if others or "train" not in found:
        raise DataError(
            f"{root} must hold either class folders, or train and optionally valid and test, got {', '.join(sorted(names))}; "
            "move the classes below the parts, or the other folders away"
        )
    return found


def _subfolders(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _image_files(folder: Path) -> list[Path]:
    """The image files at any depth, sorted by their names, level by level."""
    found = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    visible = [file for file in found if not any(name.startswith(".") for name in file.relative_to(folder).parts)]
    return sorted(visible, key=lambda file: file.relative_to(folder).parts)


def _read_parquet(path: str) -> _Listing:
    """Rows in file order. Labels are renumbered 0..C-1 in their own order, so that a file may hold some classes only."""
    file = _open_parquet(Path(path).expanduser())
    columns = [name for name in ("label", "label_name", "split") if name in file.schema_arrow.names]
    table = file.read(columns=columns).to_pydict()
    labels, splits, names = table["label"], table.get("split"), table.get("label_name")
    _check_rows("label must be an integer >= 0", labels, lambda label: label is not None and label >= 0)
    distinct = sorted(set(labels))
    number = {label: index for index, label in enumerate(distinct)}
    if splits is not None:
        _check_rows(f"split must be one of {', '.join(PART_NAMES)}", splits, PART_NAMES.__contains__)
    return _Listing(
        name=Path(path).stem,
        class_names=tuple(str(label) for label in distinct) if names is None else _names_of(distinct, labels, names),
        labels=[number[label] for label in labels],
        parts=[Part.UNASSIGNED] * len(labels) if splits is None else [PART_NAMES[split] for split in splits],
        places=[f"row {row}" for row in range(len(labels))],
        images=_images_of(file),
    )


def _open_parquet(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(f"parquet:PATH must name a file that can be read, got {path}; correct the path")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"parquet:PATH must name a complete Parquet file, got {path} ({error}); write it again"
        ) from error
    types = {field.name: field.type for field in file.schema_arrow}
    image, label = types.get("image"), types.get("label")
    is_binary = image is not None and (pa.types.is_binary(image) or pa.types.is_large_binary(image))
    if not is_binary or label is None or not pa.types.is_integer(label):
        raise DataError(
            f"{path} must have the columns image (binary: an encoded image) and label (an integer), got "
            f"{', '.join(f'{name} ({type_})' for name, type_ in types.items()) or 'no column'}; rename or convert them"
        )
    return file


def _images_of(file: pq.ParquetFile) -> Iterator[Encoded]:
    for batch in file.iter_batches(batch_size=1024, columns=["image"]):
        yield from batch.column(0).to_pylist()


def _names_of(distinct: Sequence[int], labels: Sequence[int], names: Sequence[str | None]) -> tuple[str, ...]:
    known: dict[int, str | None] = {}
    for row, (label, name) in enumerate(zip(labels, names, strict=True)):
        if known.setdefault(label, name) != name:
            raise DataError(
                f"a label must have one label_name, got {known[label]!r} and {name!r} (row {row}) for label {label}; "
                "correct the names, or leave the column out"
            )
    return tuple(str(label) if known[label] is None else str(known[label]) for label in distinct)


def _check_rows(rule: str, values: Sequence[Any], is_legal: Callable[[Any], bool]) -> None:
    bad = [f"{value!r} in row {row}" for row, value in enumerate(values) if not is_legal(value)]
    if bad:
        raise DataError(f"{rule}, got {_some(bad)} ({len(bad)} of {len(values)} rows); correct or drop those rows")


def _check_listing(listing: _Listing) -> None:
    """Two classes, two images a class, and every class among the images to learn from."""
    if not listing.labels:
        raise DataError(
            f"a source must hold images, got none in {listing.name}; an image folder needs PATH/class/*.png (or "
            f"{', '.join(sorted(SUFFIXES - {'.png'}))})"
        )
    names = listing.class_names
    if len(names) < 2:
        raise DataError(f"a source must have at least 2 classes, got {len(names)} ({names[0]}); add another class")
    learnt = Counter(
        label for label, part in zip(listing.labels, listing.parts, strict=True) if part not in (Part.VALID, Part.TEST)
    )
    absent = [name for label, name in enumerate(names) if not learnt[label]]
    if absent:
        raise DataError(
            f"every class needs images to train on, got none for {_some(absent)}; add them to train, or remove the class "
            "everywhere"
        )
    if Part.VALID in listing.parts:
        return
    small = [name for label, name in enumerate(names) if learnt[label] < 2]
    if small:
        raise DataError(
            f"every class needs at least 2 images, one to train and one to validate on, got 1 for {_some(small)}; add images "
            "or remove the class"
        )


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return ", ".join(items[:_MAX_NAMED]) + more


def _unknown_spec(spec: str) -> str:
    """The legal forms, and the one that was probably meant."""
    kind, _, path = spec.partition(":")
    if Path(spec).suffix.lower() == ".parquet" and not path:
        meant = f"parquet:{spec}"
    elif spec and not path and Path(spec).is_dir():
        meant = f"imagefolder:{spec}"
    else:
        close = difflib.get_close_matches(kind.lower(), _READERS, n=1, cutoff=0.5)
        meant = next((form for form in FORMS if close and form.startswith(close[0])), "")
    hint = f"did you mean {meant}?" if meant else "set data.source"
    return f"a source must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {spec!r}; {hint}"


_READERS: Mapping[str, Callable[[str], _Listing]] = {
    "digits": _read_digits,
    "imagefolder": _read_imagefolder,
    "parquet": _read_parquet,
}
