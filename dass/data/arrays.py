"""Images that lie in memory already, as a pack."""

from collections.abc import Sequence

import torch

from dass.data.listing import Listing, check_listing
from dass.data.pack import Pack, Part
from dass.errors import DataError

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def pack_arrays(
    images: torch.Tensor,
    labels: torch.Tensor | Sequence[int],
    class_names: Sequence[str] | None = None,
    name: str = "images",
) -> Pack:
    """Images uint8 (N, 3, R, R) in RGB with their labels (N,), integers, all unassigned to parts.

    class_names: by label; the numbers 0..C-1 where none are given. NumPy's arrays will do as well.

    Raises:
        DataError: a shape, a type or a label is not as above, or there are fewer than 2 classes or 2 images of one.
    """
    try:
        pixels, numbers = torch.as_tensor(images).cpu(), torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"images must be (N, 3, R, R) and labels (N,) integers, got others ({error}); stack the images, number the labels "
            "0..C-1, and give the classes' names as the third item"
        ) from error
    if numbers.dtype not in INTEGERS or numbers.ndim != 1 or pixels.ndim != 4 or len(numbers) != len(pixels):
        raise DataError(
            "images must be (N, 3, R, R) and labels (N,) integers, got images of shape "
            f"{tuple(pixels.shape)} and labels of shape {tuple(numbers.shape)} and type {numbers.dtype}; convert them first"
        )
    num_classes = int(numbers.max()) + 1 if len(numbers) else 0
    names = tuple(map(str, range(num_classes) if class_names is None else class_names))
    unassigned = torch.full((len(numbers),), int(Part.UNASSIGNED), dtype=torch.uint8)
    pack = Pack(pixels.contiguous(), numbers.long(), unassigned, names, name)
    check_listing(
        Listing(name, names, pack.labels.tolist(), [Part.UNASSIGNED] * len(pack.labels), places=(), images=())
    )
    return pack
