"""A dataset of torchvision through the command line."""

import json
from pathlib import Path

from cluster.objects import FolderStore
from cluster.packs import get_pack
from dass.data.pack import Part
from tests.dass.data.test_torchvision_sets import KMNIST, drawn, found, write_mnist
from tests.jobs.command import call


def test_tasks_are_cut_from_a_set_on_disk_and_test_stays_what_it_was(tmp_path: Path) -> None:
    written = drawn(KMNIST, (Part.TRAIN, Part.TEST), num=5, is_grey=True)
    write_mnist(tmp_path, written, "KMNIST", KMNIST)
    keys = ("resolution=8", "train_tasks=1", "target_classes=0", "valid_fraction=0.2")
    settings = [argument for key in keys for argument in ("--set", f"data.{key}")]
    where = ("--data", f"torchvision:KMNIST:{tmp_path}", "--store", tmp_path / "store")
    answer = call("data", "--recipe", "smoke", *settings, *where, "--json")
    assert answer.code == 0, answer.err
    tasks = json.loads(answer.out)["tasks"]
    per_class = {tuple(task[part] // task["classes"] for part in ("train", "valid", "test")) for task in tasks}
    assert per_class == {(4, 1, 5)}
    store = FolderStore(tmp_path / "store")
    ((_, pack_id, _),) = (key.split("/") for key in store.list("data/"))
    read = found(get_pack(store, pack_id))
    for name in KMNIST:
        expected = {image.tobytes() for image in written[name, Part.TEST]}
        assert {image[..., 0].tobytes() for image in read[name, Part.TEST]} == expected


def test_a_set_that_is_not_there_is_one_clear_error(tmp_path: Path) -> None:
    source = f"torchvision:CIFAR10:{tmp_path}"
    answer = call("data", "--recipe", "smoke", "--data", source, "--store", tmp_path / "store")
    assert answer.code == 2
    assert "torchvision's CIFAR10 must lie in" in answer.error
    assert "nothing is downloaded here" in answer.error
    assert list(tmp_path.iterdir()) == []
