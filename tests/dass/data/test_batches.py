from dataclasses import replace

import pytest
import torch

from dass.data.augment import augment, draw_epoch, normalise
from dass.data.batches import Batch, BatchSource, PartName, ResidentBatches
from dass.data.pack import Part
from dass.data.splits import class_splits, whole_task
from dass.errors import DataError
from dass.records import Recipe
from dass.seeding import generator
from tests.dass.data.packs import golden_pack, make_pack

RECIPE = Recipe(batch_size=4, crop_padding=2, vertical_flip=0.3)
PACK = make_pack(num_classes=4, per_class=12)


def source() -> BatchSource:
    return ResidentBatches.of(PACK, class_splits(PACK, [[2, 0, 3]], ["three"])[0])


def batches(data: BatchSource, recipe: Recipe = RECIPE, seed: int = 0, epoch: int = 0) -> list[Batch]:
    drawn = data.train_epoch(recipe, seed, epoch)
    return [drawn.batch(index) for index in range(len(drawn))]


def same(left: list[Batch], right: list[Batch]) -> bool:
    return len(left) == len(right) and all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(left, right, strict=True)
    )


def test_a_training_batch_is_what_the_plan_says_of_the_tasks_images() -> None:
    data = source()
    task = data.task
    plan = draw_epoch(len(task.train), RECIPE, 8, generator("data", task.id, RECIPE.id, 5, 7)).span(4, 8)
    images, labels = data.train_epoch(RECIPE, 5, 7).batch(1)
    chosen = [task.train[position] for position in plan.order.tolist()]
    assert torch.equal(images, augment(PACK.images[chosen], plan, 2))
    assert labels.tolist() == [[2, 0, 3].index(int(PACK.labels[index])) for index in chosen]
    assert (images.dtype, images.shape, labels.dtype) == (torch.float32, (4, 3, 8, 8), torch.int64)


def test_batches_depend_on_task_recipe_seed_and_epoch_alone() -> None:
    first, second = source(), source()
    second.train_epoch(RECIPE, 9, 9).batch(0)
    assert same(batches(first), batches(second))
    assert same(batches(first), list(reversed([first.train_epoch(RECIPE, 0, 0).batch(i) for i in reversed(range(4))])))
    assert not same(batches(first), batches(first, seed=1))
    assert not same(batches(first), batches(first, epoch=1))
    assert not same(batches(first), batches(first, recipe=replace(RECIPE, lr=0.1)))


def test_batches_do_not_depend_on_the_pack_that_holds_the_task() -> None:
    members = torch.nonzero(PACK.labels != 1).flatten()
    smaller = replace(
        PACK,
        images=PACK.images[members],
        labels=torch.tensor([0, 9, 1, 2])[PACK.labels[members]],
        parts=PACK.parts[members],
        class_names=("x", "y", "z"),
    )
    other = ResidentBatches.of(smaller, class_splits(smaller, [[1, 0, 2]])[0])
    assert same(batches(source()), batches(other))


def test_the_last_incomplete_batch_is_left_out_of_training() -> None:
    data = source()
    assert data.num_images("train") == 18
    assert len(data.train_epoch(RECIPE, 0, 0)) == 4
    assert [len(labels) for _, labels in batches(data)] == [4, 4, 4, 4]
    with pytest.raises(IndexError, match=r"0\.\.3, got 4"):
        data.train_epoch(RECIPE, 0, 0).batch(4)


def test_a_batch_larger_than_the_part_is_all_of_it() -> None:
    drawn = source().train_epoch(Recipe(batch_size=64), 0, 0)
    assert len(drawn) == 1
    assert len(drawn.batch(0)[1]) == 18


@pytest.mark.parametrize("batch_size", [1, 5, 256])
@pytest.mark.parametrize(("part", "number"), [("train", Part.TRAIN), ("valid", Part.VALID), ("test", Part.TEST)])
def test_evaluation_gives_every_image_once_in_order(part: PartName, number: Part, batch_size: int) -> None:
    data = source()
    members = torch.nonzero((PACK.labels != 1) & (PACK.parts == number)).flatten()
    given = list(data.evaluation(part, batch_size))
    assert all(len(labels) <= batch_size for _, labels in given)
    assert torch.equal(torch.cat([images for images, _ in given]), normalise(PACK.images[members]))
    assert torch.equal(torch.cat([labels for _, labels in given]), torch.tensor([1, -1, 0, 2])[PACK.labels[members]])
    assert data.num_images(part) == len(members)


def test_a_part_without_images_is_evaluated_in_no_batch() -> None:
    pack = replace(PACK, parts=torch.where(PACK.parts == Part.TEST, 0, PACK.parts))
    data = ResidentBatches.of(pack, whole_task(pack, "no test"))
    assert data.num_images("test") == 0
    assert list(data.evaluation("test")) == []


def test_what_a_caller_does_to_a_batch_stays_with_the_caller() -> None:
    data = source()
    before = [*batches(data), *data.evaluation("valid")]
    for images, labels in [*batches(data), *data.evaluation("valid")]:
        images.zero_()
        labels.fill_(99)
    assert same(before, [*batches(data), *data.evaluation("valid")])


def test_another_pack_is_refused() -> None:
    with pytest.raises(DataError, match="the pack that it was cut from"):
        ResidentBatches.of(make_pack(num_classes=4, per_class=12, seed=1), whole_task(PACK, "all"))


def test_golden_epoch() -> None:
    pack = golden_pack()
    data = ResidentBatches.of(pack, whole_task(pack, "golden"))
    images, labels = data.train_epoch(Recipe(), 0, 0).batch(0)
    assert labels.tolist() == [0, 0, 1, 1, 1, 0]
    assert images.double().sum().item() == pytest.approx(-573.1686, abs=1e-3)


def test_a_task_that_does_not_fit_its_own_classes_is_refused() -> None:
    """It may come from a store, which somebody can write to."""
    task = class_splits(PACK, [[2, 0, 3]], ["three"])[0]
    stranger = int(torch.nonzero(PACK.labels == 1)[0])
    with pytest.raises(DataError, match="train images of its own classes alone, got 1 of others"):
        ResidentBatches.of(PACK, replace(task, train=(*task.train, stranger)))
    for labels in ((2, 0), (2, 0, 0), (2, 0, 3, 1)):
        with pytest.raises(DataError, match="one label of its pack for each of 3 classes"):
            ResidentBatches.of(PACK, replace(task, source_labels=labels))
