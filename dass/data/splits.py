"""From a pack to tasks: missing parts are cut, classes are chosen, and the result gets an identity of its own."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from dass.data.listing import some
from dass.data.pack import Pack, Part
from dass.errors import ConfigError, DataError
from dass.records import Task
from dass.seeding import generator

TASK_ID_VERSION = 1
TINY10_GROUPS = 5
TINY10_DISJOINT_GROUPS = 10
SMALL_TASKS = (1.0, 0.4, 0.2)  # of `tiny25`, on a quarter, a quarter and half of a group: the share of their images


def task_id(*parts: tuple[torch.Tensor, torch.Tensor]) -> str:
    """The identity of a task, 32 hex digits: a hash of the pixels, labels and order of its train, valid and test parts.

    Each part is (images uint8 (N, 3, R, R), labels int64 (N,) in 0..C-1). Names, and images that the task does not use,
    are not in it.
    """
    shapes = [list(images.shape) for images, _ in parts]
    digest = hashlib.sha256(json.dumps({"task": TASK_ID_VERSION, "shapes": shapes}).encode())
    for images, labels in parts:
        digest.update(images.contiguous().numpy().data)
        digest.update(labels.numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def assign_parts(pack: Pack, seed: int = 0, valid_fraction: float = 0.2, test_fraction: float = 0.2) -> Pack:
    """The pack with train, valid and test parts, every class in each; parts that it has already are kept.

    A missing part is cut out of the train and the unassigned images of each class by itself: a fraction of their
    number, rounded, but at least one image, and at least one is left. What nobody takes is train.

    Raises:
        ConfigError: a fraction is not in (0, 1), or their sum is not below 1.
        DataError: a class has too few images, or is absent from a part that the pack has.
    """
    check_fractions(valid_fraction, test_fraction)
    wanted = {Part.TEST: test_fraction, Part.VALID: valid_fraction}
    missing = {part: fraction for part, fraction in wanted.items() if not bool((pack.parts == part).any())}
    parts = torch.where(pack.parts == Part.UNASSIGNED, int(Part.TRAIN), pack.parts)
    for label, name in enumerate(pack.class_names):
        pool = torch.nonzero((pack.labels == label) & (parts == Part.TRAIN)).flatten()
        _check_pool(name, len(pool), missing)
        order = pool[torch.randperm(len(pool), generator=generator("parts", seed, label))]
        *cuts, _ = torch.split(order, _cut_sizes(len(pool), list(missing.values())))
        for part, indices in zip(missing, cuts, strict=True):
            parts[indices] = int(part)
    for part in (Part.VALID, Part.TEST):
        _check_every_class(pack, torch.nonzero(parts == part).flatten(), part)
    return replace(pack, parts=parts)


def whole_task(pack: Pack, name: str) -> Task:
    """All classes of the pack as one task; see `class_splits` for the errors."""
    return class_splits(pack, [range(len(pack.class_names))], [name])[0]


def class_splits(pack: Pack, groups: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> list[Task]:
    """One task for each group of the pack's labels, with the pack's parts; class k of a task is the k-th of its group.

    names: the tasks' names; the pack's name and a number where none are given.

    Raises:
        DataError: a group is not of two or more different labels of the pack; its images are unassigned; or a class has
            no image in train or valid.
    """
    if names is not None and len(names) != len(groups):
        raise DataError(f"every group needs one name, got {len(groups)} groups and {len(names)} names; name each group")
    names = names or [f"{pack.name}-{index}" for index in range(len(groups))]
    return [_class_split(pack, name, tuple(group)) for name, group in zip(names, groups, strict=True)]


def tiny10(pack: Pack, seed: int = 0) -> list[Task]:
    """The ten Tiny-ImageNet splits: five groups of consecutive classes, each split in halves that change roles.

    The images of a group that are not test (whether train or valid in the pack) are shuffled and cut in two. Task 2i
    trains on the first half and validates on the second, task 2i + 1 the other way round; both are tested on the pack's
    test images of the group. 40 classes a group with 200 classes; any multiple of 5 classes will do.

    Raises:
        DataError: the number of classes is not divisible by 5, or the shuffle left a class out of a half.
    """
    tasks = []
    for index, group in enumerate(_consecutive_groups(pack, TINY10_GROUPS)):
        pool, test = _learnt_and_tested(pack, group)
        order = pool[torch.randperm(len(pool), generator=generator("tiny10", seed, index))]
        first, second = (half.sort().values for half in order.tensor_split(2))
        tasks.append(_make_task(pack, f"tiny10-{2 * index}", group, first, second, test))
        tasks.append(_make_task(pack, f"tiny10-{2 * index + 1}", group, second, first, test))
    return tasks


def tiny10_disjoint(pack: Pack, seed: int = 0) -> list[Task]:
    """Ten tasks of consecutive classes that share none; a tenth of each class that is not test (at least one) is valid.

    Raises:
        DataError: the number of classes is not divisible by 10, or a class has fewer than 2 images that are not test.
    """
    tasks = []
    for index, group in enumerate(_consecutive_groups(pack, TINY10_DISJOINT_GROUPS)):
        pool, test = _learnt_and_tested(pack, group)
        is_valid = torch.zeros(len(pool), dtype=torch.bool)
        for label in group:
            own = torch.nonzero(pack.labels[pool] == label).flatten()
            order = torch.randperm(len(own), generator=generator("tiny10_disjoint", seed, label))
            is_valid[own[order[: max(1, round(len(own) / 10))]]] = True
        tasks.append(_make_task(pack, f"tiny10_disjoint-{index}", group, pool[~is_valid], pool[is_valid], test))
    return tasks


def tiny25(pack: Pack, seed: int = 0) -> list[Task]:
    """The splits of `tiny10`, each two followed by three small tasks of the same group, as small as what users bring.

    Of a group's classes, shuffled, the first quarter with all images, the second with 40 % of them, the others with 20 %;
    each class is cut in halves to train and to validate on. With 200 classes of 250 images: 10 classes and 1,250 images
    to train on, 10 and 500, 20 and 500. The five tasks of a group have images in common, and none with another group.

    Raises:
        DataError: as in `tiny10`, or a group has fewer than 8 classes, or a class too few images for both halves.
    """
    splits = tiny10(pack, seed)
    least = 8 * TINY10_GROUPS  # two in each quarter
    if len(pack.class_names) < least:
        raise DataError(
            f"tiny25 needs {least} or more classes, got {len(pack.class_names)} in {pack.name}; "
            "use a source with more of them, or data.split='tiny10'"
        )
    tasks = []
    for index, group in enumerate(_consecutive_groups(pack, TINY10_GROUPS)):
        tasks += splits[2 * index : 2 * index + 2]
        rng = generator("tiny25", seed, index)
        classes = [group[place] for place in torch.randperm(len(group), generator=rng).tolist()]
        quarter = len(group) // 4
        for number, (chosen, share) in enumerate(
            zip((classes[:quarter], classes[quarter : 2 * quarter], classes[2 * quarter :]), SMALL_TASKS, strict=True)
        ):
            name = f"tiny25-{len(SMALL_TASKS) * index + number}"
            tasks.append(_small_task(pack, name, sorted(chosen), share, rng))
    return tasks


def _small_task(pack: Pack, name: str, group: Sequence[int], share: float, rng: torch.Generator) -> Task:
    """A task of these classes that takes a share of each one's images, in halves; tested on all its test images."""
    pool, test = _learnt_and_tested(pack, group)
    first, second = [], []
    for label in group:
        own = pool[pack.labels[pool] == label]
        half = round(len(own) * share / 2)
        order = own[torch.randperm(len(own), generator=rng)]
        first.append(order[:half])
        second.append(order[half : 2 * half])
    return _make_task(pack, name, group, torch.cat(first).sort().values, torch.cat(second).sort().values, test)


def _class_split(pack: Pack, name: str, group: tuple[int, ...]) -> Task:
    num_classes = len(pack.class_names)
    if len(set(group)) != len(group) or not all(0 <= label < num_classes for label in group):
        raise DataError(
            f"the labels of a group must be different and lie in 0..{num_classes - 1}, got {list(group)} for {name}; "
            "choose labels of the pack"
        )
    is_member = torch.isin(pack.labels, torch.tensor(group, dtype=torch.int64))
    if bool((is_member & (pack.parts == Part.UNASSIGNED)).any()):
        raise DataError(
            f"the images of a task must be train, valid or test, got unassigned ones for {name}; "
            "call assign_parts first"
        )
    train, valid, test = (
        torch.nonzero(is_member & (pack.parts == part)).flatten() for part in (Part.TRAIN, Part.VALID, Part.TEST)
    )
    return _make_task(pack, name, group, train, valid, test)


def _make_task(
    pack: Pack, name: str, group: Sequence[int], train: torch.Tensor, valid: torch.Tensor, test: torch.Tensor
) -> Task:
    """The task of these images, indices into the pack; their order in the pack is kept."""
    if len(group) < 2:
        raise DataError(
            f"a task must have at least 2 classes, got {len(group)} for {name}; put more classes in its group"
        )
    for part, indices in (("train", train), ("valid", valid)):
        absent = sorted(set(group) - set(pack.labels[indices].tolist()))
        if absent:
            raise DataError(
                f"every class of a task needs images in train and valid, got none in {part} of {name} for "
                f"{some([pack.class_names[label] for label in absent])}; give more images a class, or another seed"
            )
    number = torch.zeros(len(pack.class_names), dtype=torch.int64)
    number[list(group)] = torch.arange(len(group))
    parts = (train, valid, test)
    return Task(
        id=task_id(*((pack.images[indices], number[pack.labels[indices]]) for indices in parts)),
        name=name,
        source=pack.id,
        resolution=pack.resolution,
        classes=tuple(pack.class_names[label] for label in group),
        source_labels=tuple(group),
        train=tuple(train.tolist()),
        valid=tuple(valid.tolist()),
        test=tuple(test.tolist()),
    )


def _consecutive_groups(pack: Pack, num_groups: int) -> Iterator[range]:
    num_classes = len(pack.class_names)
    if num_classes % num_groups:
        raise DataError(
            f"the number of classes must be divisible by {num_groups}, got {num_classes} in {pack.name}; use a source "
            "with a multiple of that, or data.split='classes'"
        )
    size = num_classes // num_groups
    return (range(start, start + size) for start in range(0, num_classes, size))


def _learnt_and_tested(pack: Pack, group: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The indices of the group's images that are not test, and of those that are."""
    is_member = torch.isin(pack.labels, torch.tensor(group))
    is_test = pack.parts == Part.TEST
    return torch.nonzero(is_member & ~is_test).flatten(), torch.nonzero(is_member & is_test).flatten()


def _cut_sizes(num: int, fractions: Sequence[float]) -> list[int]:
    """How many of `num` images each cut takes, and at last how many stay; all at least 1 where `num` allows it."""
    sizes: list[int] = []
    for index, fraction in enumerate(fractions):
        num_later = len(fractions) - index  # the cuts that follow, and what stays, keep one image each
        sizes.append(min(max(1, round(fraction * num)), num - sum(sizes) - num_later))
    return [*sizes, num - sum(sizes)]


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError unless both cuts take something and leave something to train on."""
    if not (0 < valid_fraction < 1 and 0 < test_fraction < 1 and valid_fraction + test_fraction < 1):
        raise ConfigError(
            f"valid_fraction and test_fraction must be positive and sum to less than 1, got {valid_fraction} and "
            f"{test_fraction}; set data.valid_fraction and data.test_fraction"
        )


def _check_pool(name: str, num_images: int, missing: dict[Part, float]) -> None:
    if num_images < 1 + len(missing):
        needed = ["train", *(part.name.lower() for part in reversed(missing))]
        raise DataError(
            f"every class needs at least one image to each of {', '.join(needed)}, got {num_images} for {name}; "
            "add images or remove the class"
        )


def _check_every_class(pack: Pack, indices: torch.Tensor, part: Part) -> None:
    absent = sorted(set(range(len(pack.class_names))) - set(pack.labels[indices].tolist()))
    if absent:
        raise DataError(
            f"every class needs an image in each part that a source gives, got none in {part.name.lower()} for "
            f"{some([pack.class_names[label] for label in absent])}; "
            "add images, or leave that part out so that it is cut from train"
        )
