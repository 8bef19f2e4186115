"""torchvision's classification datasets as sources, read where they lie on disk; nothing is ever downloaded or unpacked.

    torchvision:NAME:ROOT    NAME as in torchvision.datasets, ROOT as its classes take it

torchvision checks the MD5 of what it unpickles (CIFAR10 and CIFAR100), so such files are its own or refused.
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dass.data.decode import Encoded
from dass.data.listing import Listing, some
from dass.data.pack import Part
from dass.data.torchvision_import import import_torchvision
from dass.errors import DataError

_Arguments = Mapping[Part, Mapping[str, Any]]

_TRAIN_TEST: _Arguments = {Part.TRAIN: {"split": "train"}, Part.TEST: {"split": "test"}}
_TRAIN_VAL: _Arguments = {Part.TRAIN: {"split": "train"}, Part.VALID: {"split": "val"}}
_ALL_PARTS: _Arguments = {**_TRAIN_VAL, Part.TEST: {"split": "test"}}
_FLAG: _Arguments = {Part.TRAIN: {"train": True}, Part.TEST: {"train": False}}
_WHOLE: _Arguments = {Part.UNASSIGNED: {}}


@dataclass(frozen=True)
class _Set:
    """How a set's class is called for each part, and what must lie in ROOT before it is."""

    parts: _Arguments
    wants: tuple[str, ...]


SETS: Mapping[str, _Set] = {
    "CIFAR10": _Set(_FLAG, ("cifar-10-batches-py",)),
    "CIFAR100": _Set(_FLAG, ("cifar-100-python",)),
    "Caltech101": _Set(_WHOLE, ("caltech101/101_ObjectCategories/BACKGROUND_Google",)),
    "Caltech256": _Set(_WHOLE, ("caltech256/256_ObjectCategories",)),
    "Country211": _Set({**_TRAIN_TEST, Part.VALID: {"split": "valid"}}, ("country211",)),
    "DTD": _Set(_ALL_PARTS, ("dtd/dtd/images", "dtd/dtd/labels")),
    "EuroSAT": _Set(_WHOLE, ("eurosat/2750",)),
    "FGVCAircraft": _Set(_ALL_PARTS, ("fgvc-aircraft-2013b/data/images",)),
    "FashionMNIST": _Set(_FLAG, ("FashionMNIST",)),
    "Flowers102": _Set(_ALL_PARTS, ("flowers-102/jpg", "flowers-102/imagelabels.mat", "flowers-102/setid.mat")),
    "Food101": _Set(_TRAIN_TEST, ("food-101/images", "food-101/meta")),
    "GTSRB": _Set(_TRAIN_TEST, ("gtsrb/GTSRB/Training", "gtsrb/GTSRB/Final_Test/Images", "gtsrb/GT-final_test.csv")),
    "ImageNet": _Set(_TRAIN_VAL, ("meta.bin", "train", "val")),
    "Imagenette": _Set(_TRAIN_VAL, ("imagenette2",)),
    "KMNIST": _Set(_FLAG, ("KMNIST",)),
    "MNIST": _Set(_FLAG, ("MNIST",)),
    "OxfordIIITPet": _Set(
        {Part.TRAIN: {"split": "trainval"}, Part.TEST: {"split": "test"}},
        ("oxford-iiit-pet/images", "oxford-iiit-pet/annotations"),
    ),
    "RenderedSST2": _Set(_ALL_PARTS, ("rendered-sst2",)),
    "SEMEION": _Set({Part.UNASSIGNED: {"download": False}}, ("semeion.data",)),  # its default is to download
    "STL10": _Set(_TRAIN_TEST, ("stl10_binary",)),
    "SUN397": _Set(_WHOLE, ("SUN397/ClassName.txt",)),
    "SVHN": _Set(_TRAIN_TEST, ("train_32x32.mat", "test_32x32.mat")),
    "StanfordCars": _Set(
        _TRAIN_TEST,
        tuple(
            f"stanford_cars/{name}" for name in ("devkit", "cars_train", "cars_test", "cars_test_annos_withlabels.mat")
        ),
    ),
    "USPS": _Set(_FLAG, ("usps.bz2", "usps.t.bz2")),
}


def read_torchvision(path: str) -> Listing:
    """The images of `NAME:ROOT`, files in the order of their paths; classes that have none are left out.

    Raises:
        DataError: the name is unknown, ROOT is no folder, or the set is not there or not whole.
    """
    name, _, place = path.partition(":")
    if name not in SETS or not place:
        raise DataError(_unknown_set(name, place))
    root = Path(os.path.expanduser(place))  # noqa: PTH111 - takes `~nobody` as a name
    _check_place(name, root)
    parts = {part: _open(name, root, part) for part in SETS[name].parts}
    names = _class_names(name, parts.values())
    items = [(part, *item) for part, dataset in parts.items() for item in _items(name, dataset)]
    numbers = {label: number for number, label in enumerate(sorted({label for _, _, label in items}))}
    return Listing(
        name=name,
        class_names=tuple(_distinct({label: _name_of(names, label) for label in numbers})),
        labels=[numbers[label] for _, _, label in items],
        parts=[part for part, _, _ in items],
        places=[
            str(image) if isinstance(image, Path) else f"{part.name.lower()} image {image}" for part, image, _ in items
        ],
        images=_images(items, parts),
    )


def _nearest_set(name: str) -> str | None:
    """The set that was probably meant."""
    known = {legal.lower(): legal for legal in SETS}
    close = difflib.get_close_matches(name.lower().replace("-", ""), known, n=1)
    return known[close[0]] if close else None


def _open(name: str, root: Path, part: Part) -> Any:  # noqa: ANN401 - torchvision's classes share no useful type
    datasets = import_torchvision("datasets")
    try:
        dataset = getattr(datasets, name)(str(root), **SETS[name].parts[part])
        num_images, num_labels = len(dataset), len(_items(name, dataset))
    except Exception as error:  # damaged files make readers raise anything
        reason = f"{type(error).__name__}: {error}".partition(" You can ")[0]  # torchvision's advice is to download
        raise DataError(
            f"torchvision must be able to open {name} in {root}, got {reason}; {_remedy(name, root)}"
        ) from error
    if num_images != num_labels:
        raise DataError(
            f"every image needs a label, got {num_images} images and {num_labels} labels in {part.name.lower()} of {name}; "
            f"{_remedy(name, root)}"
        )
    return dataset


def _items(name: str, dataset: Any) -> list[tuple[Path | int, int]]:  # noqa: ANN401
    """(file, or index in the dataset; label) of each image: files are decoded like all others, by every core.

    Attributes of torchvision 0.28; those with an underscore have no public form.
    """
    files: Iterable[Any] | None = None
    if name in ("Caltech101", "Caltech256"):
        return _caltech_items(name, dataset)
    for attribute in ("samples", "_samples"):
        if hasattr(dataset, attribute):
            return sorted((Path(file), _folder_label(name, file, label)) for file, label in getattr(dataset, attribute))
    for attribute in ("_image_files", "_images"):
        files = getattr(dataset, attribute, files)
    if files is not None:
        return sorted(zip(map(Path, files), dataset._labels, strict=True))
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return list(enumerate(np.asarray(labels).tolist()))


def _folder_label(name: str, file: str, label: int) -> int:
    """The label; GTSRB numbers the training folders that are there, but test by the classes' own numbers."""
    folder = Path(file).parent.name
    return int(folder) if name == "GTSRB" and folder != "Images" else int(label)


def _caltech_items(name: str, dataset: Any) -> list[tuple[Path | int, int]]:  # noqa: ANN401
    folder = Path(dataset.root) / f"{name[-3:]}_ObjectCategories"
    form = "image_{index:04d}.jpg" if name == "Caltech101" else "{number:03d}_{index:04d}.jpg"
    return [
        (folder / dataset.categories[label] / form.format(index=index, number=label + 1), label)
        for label, index in zip(dataset.y, dataset.index, strict=True)
    ]


def _images(items: Sequence[tuple[Part, Path | int, int]], parts: Mapping[Part, Any]) -> Iterator[Encoded]:
    return (image if isinstance(image, Path) else parts[part][image][0] for part, image, _ in items)


def _class_names(name: str, datasets: Iterable[Any]) -> list[str]:
    """The names by label, where the set has them; every part must number the same classes."""
    first, *others = (
        [_text(entry) for entry in getattr(dataset, "classes", getattr(dataset, "categories", ()))]
        for dataset in datasets
    )
    for other in others:
        if other != first:
            different = sorted(set(first) ^ set(other))
            raise DataError(
                f"all parts of {name} must have the same classes, got some without {some(different)}; complete the copy"
            )
    return first


def _text(entry: str | Sequence[str]) -> str:
    return entry if isinstance(entry, str) else ", ".join(entry)  # ImageNet's classes are tuples of synonyms


def _name_of(names: Sequence[str], label: int) -> str:
    return names[label] if label < len(names) else str(label)


def _distinct(names: Mapping[int, str]) -> list[str]:
    """The names in their order; those that several labels share (ImageNet has two cranes) with their label."""
    times = Counter(names.values())
    return [name if times[name] == 1 else f"{name} ({label})" for label, name in names.items()]


def _check_place(name: str, root: Path) -> None:
    if not root.is_dir():
        raise DataError(f"torchvision:{name}:ROOT must name a folder, got {root}; correct the path")
    missing = [want for want in SETS[name].wants if not (root / want).exists()]
    if missing:
        raise DataError(
            f"torchvision's {name} must lie in {root} as {some(SETS[name].wants)}, got none of {some(missing)}; "
            f"{_remedy(name, root)}"
        )


def _remedy(name: str, root: Path) -> str:
    return (
        f"nothing is downloaded here: fetch it yourself, for example with torchvision.datasets.{name}, to {root}, or give "
        "the folder that holds it"
    )


def _unknown_set(name: str, place: str) -> str:
    if name in SETS:
        return f"torchvision:NAME:ROOT needs a folder, got none for {name}; write torchvision:{name}:ROOT"
    meant = _nearest_set(name)
    hint = f"did you mean torchvision:{meant}:{place or 'ROOT'}?" if meant else "choose one of them"
    return f"torchvision:NAME:ROOT must name one of {', '.join(SETS)}, got {name!r}; {hint}"
