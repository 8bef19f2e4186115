"""What a student costs, in closed form: multiply-adds and trainable parameters (algorithms: section 1.4).

One multiply-add is one MAC. Convolutions and the classifier count; batch norm, ReLU, pooling and the parameter-free
shortcut do not. `num_classes=0` gives the trunk without its classifier.
"""

from collections.abc import Iterable, Iterator, Sequence

from dass.errors import ConfigError, DataError, SpaceError
from dass.records import Student

IMAGE_CHANNELS = 3
KERNEL_AREA = 9  # every convolution is 3 x 3


def check_side(side: int) -> None:
    """Raise DataError unless the image side (pixels) survives the three halvings of the network."""
    if side < 8 or side % 8:
        raise DataError(
            f"the side of an image must be a positive multiple of 8 pixels, got {side}; "
            f"resize the images, for example to {max(8, side // 8 * 8)}"
        )


def stage_convolutions(widths: Sequence[int], entering: int | None) -> Iterator[tuple[int, int]]:
    """The (input, output) channels of each convolution of a stage, in order.

    entering: channels that reach the stage; None for the first stage, which then begins with the stem, because the
    stem is as wide as the first block.
    """
    if entering is None:
        entering = widths[0]
        yield IMAGE_CHANNELS, entering
    for width in widths:
        yield entering, width
        yield width, width
        entering = width


def stage_macs(widths: Sequence[int], entering: int | None, side: int) -> int:
    """MACs of one stage (for `entering` see `stage_convolutions`) whose output maps are `side` x `side`."""
    return KERNEL_AREA * side**2 * sum(inputs * outputs for inputs, outputs in stage_convolutions(widths, entering))


def count_macs(student: Student, resolution: int, num_classes: int) -> int:
    """MACs of one image of `resolution` x `resolution` pixels.

    Raises:
        DataError: the resolution is not a positive multiple of 8.
        SpaceError: the student is of another family.
        ConfigError: `num_classes` is negative.
    """
    check_side(resolution)
    trunk = sum(
        stage_macs(row, entering, resolution >> stage) for stage, (entering, row) in enumerate(_stages(student))
    )
    return trunk + student.widths[-1][-1] * _checked(num_classes)


def count_params(student: Student, num_classes: int) -> int:
    """Trainable parameters: weights, the scale and shift of each batch norm, and the classifier with its bias.

    Raises:
        SpaceError: the student is of another family.
        ConfigError: `num_classes` is negative.
    """
    trunk = sum(
        KERNEL_AREA * inputs * outputs + 2 * outputs
        for entering, row in _stages(student)
        for inputs, outputs in stage_convolutions(row, entering)
    )
    return trunk + (student.widths[-1][-1] + 1) * _checked(num_classes)


def count_shared_macs(students: Iterable[Student], resolution: int) -> int:
    """MACs of one image through all trunks, each block once for those that begin alike; without stems."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    total = 0
    for student in students:
        for stage, (entering, row) in enumerate(_stages(student)):
            inputs = row[0] if entering is None else entering
            for depth, width in enumerate(row, 1):
                prefix = (*student.widths[:stage], row[:depth])
                if prefix not in seen:
                    seen.add(prefix)
                    total += stage_macs((width,), inputs, resolution >> stage)
                inputs = width
    return total


def _stages(student: Student) -> list[tuple[int | None, tuple[int, ...]]]:
    """Each stage's entering channels and its row of widths."""
    if student.family != "small_resnet":
        raise SpaceError(
            f"costs are known for the family small_resnet, got {student.family!r}; count it in its own room"
        )
    return list(zip((None, *(row[-1] for row in student.widths[:-1])), student.widths, strict=True))


def _checked(num_classes: int) -> int:
    if num_classes < 0:
        raise ConfigError(f"num_classes must be >= 0, got {num_classes}; use 0 for a trunk without classifier")
    return num_classes
