"""What a source holds, pixels aside: listed first and checked whole, so that no image is decoded in vain."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dass.data.decode import Encoded
from dass.data.pack import Part
from dass.errors import DataError

PART_NAMES: Mapping[str, Part] = {
    "train": Part.TRAIN,
    "valid": Part.VALID,
    "val": Part.VALID,
    "validation": Part.VALID,
    "test": Part.TEST,
}
"""What folders and split columns call the parts."""

_MAX_NAMED = 10


@dataclass(frozen=True)
class Listing:
    """The images of a source in order; every sequence but `class_names` has one entry an image.

    labels: indices into class_names. places: where each image comes from, for messages. images: read once, lazily.
    """

    name: str
    class_names: tuple[str, ...]
    labels: Sequence[int] = field(repr=False)
    parts: Sequence[Part] = field(repr=False)
    places: Sequence[str] = field(repr=False)
    images: Iterable[Encoded] = field(repr=False)


def check_listing(listing: Listing) -> None:
    """Raise DataError unless there are two classes, and images of each to train on and to validate on."""
    names = listing.class_names
    if not listing.labels:
        raise DataError(
            f"a source must hold images, got none in {listing.name}; put them into PATH/class/*.png (or .jpg and "
            "others) of an image folder, or into the rows of a Parquet file"
        )
    if len(names) < 2:
        raise DataError(f"a source must have at least 2 classes, got {len(names)} ({names[0]}); add another class")
    num_learnt = Counter(
        label
        for label, part in zip(listing.labels, listing.parts, strict=True)
        if part in (Part.TRAIN, Part.UNASSIGNED)
    )
    absent = [name for label, name in enumerate(names) if num_learnt[label] == 0]
    if absent:
        raise DataError(
            f"every class needs images to train on, got none for {some(absent)}; add them to train, or remove the "
            "class everywhere"
        )
    single = [name for label, name in enumerate(names) if num_learnt[label] == 1]
    if single and Part.VALID not in listing.parts:
        raise DataError(
            "every class needs at least 2 images, one to train and one to validate on (and a third where test is cut "
            f"off too), got 1 for {some(single)}; add images or remove the class"
        )


def some(items: Sequence[str]) -> str:
    """The first ten items, and how many more there are."""
    more = f" and {len(items) - _MAX_NAMED} more" if len(items) > _MAX_NAMED else ""
    return ", ".join(items[:_MAX_NAMED]) + more
