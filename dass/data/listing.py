"""What a source holds, pixels aside: listed first and checked, so that few images are decoded in vain."""

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
    """Raise DataError unless there are two classes, and images of each in every part that there is, train among them."""
    names = listing.class_names
    if not listing.labels:
        raise DataError(
            f"a source must hold images, got none in {listing.name}; put them into PATH/class/*.png (or .jpg and "
            "others) of an image folder, or into the rows of a Parquet file"
        )
    if len(names) < 2:
        raise DataError(f"a source must have at least 2 classes, got {len(names)} ({names[0]}); add another class")
    num_in = Counter(zip(listing.labels, listing.parts, strict=True))
    num_learnt = [num_in[label, Part.TRAIN] + num_in[label, Part.UNASSIGNED] for label in range(len(names))]
    checked = {"to train on": num_learnt}
    for part in (Part.VALID, Part.TEST):
        if part in listing.parts:
            checked[f"in {part.name.lower()}"] = [num_in[label, part] for label in range(len(names))]
    for where, nums in checked.items():
        if absent := [name for name, num in zip(names, nums, strict=True) if num == 0]:
            raise DataError(
                f"every class needs images {where}, got none for {some(absent)}; add them, or remove the class everywhere"
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
