import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from dass.data.image_features import ImageEncoder, image_features, resnet18_encoder, teacher_encoder
from dass.data.torchvision_import import import_torchvision
from dass.errors import DataError, SpaceError, StoreError
from dass.kd.teacher import Teacher
from dass.networks import build
from dass.spaces import get_space
from dass.tensors import pack_tensors

SPACE = get_space("smoke")
RNG = torch.Generator().manual_seed(0)
IMAGES = torch.randint(256, (12, 3, 16, 16), generator=RNG, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 0, 1, 0, 0, 1, 0])  # 7, 4 and 1 images of each class


class Means(nn.Module):
    """An image's mean of each channel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


PLAIN = ImageEncoder(Means(), "means", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def make_teacher(seed: int = 0) -> Teacher:
    rng = torch.Generator().manual_seed(seed)
    return Teacher(f"t{seed}", SPACE.largest, build(SPACE.largest, 3, rng).state_dict(), 80.0)


class TestFeatures:
    def test_each_row_is_of_an_image_of_its_class_and_none_comes_twice_where_there_are_enough(self) -> None:
        values = image_features(PLAIN, IMAGES, LABELS, per_class=4).values
        assert values.shape == (3, 4, 3)
        own = IMAGES.double().mean(dim=(2, 3)) / 255
        for label, rows in enumerate(values.double()):
            distance = torch.cdist(rows, own[label == LABELS])
            assert distance.min(dim=1).values.max() < 1e-6
            if label < 2:
                assert len(set(distance.argmin(dim=1).tolist())) == 4

    def test_a_class_with_fewer_images_gives_all_of_them_and_some_again(self) -> None:
        values = image_features(PLAIN, IMAGES, LABELS, per_class=6).values
        assert [len(rows.unique(dim=0)) for rows in values] == [6, 4, 1]

    def test_equal_seeds_draw_the_same_images_whatever_the_global_generator_did(self) -> None:
        first = image_features(PLAIN, IMAGES, LABELS, per_class=3).values
        torch.rand(3)
        assert torch.equal(image_features(PLAIN, IMAGES, LABELS, per_class=3).values, first)
        assert not torch.equal(image_features(PLAIN, IMAGES, LABELS, per_class=3, seed=1).values, first)

    def test_the_network_stays_as_it_is(self) -> None:
        network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), Means())
        image_features(ImageEncoder(network, "own"), IMAGES, LABELS, per_class=2)
        assert network.training
        network(torch.rand(2, 3, 4, 4)).sum().backward()
        assert network[0].weight.grad is not None

    def test_a_class_without_images_is_named(self) -> None:
        with pytest.raises(DataError, match="none of class 1"):
            image_features(PLAIN, IMAGES[:2], torch.tensor([0, 2]))

    def test_channels_are_normalised_and_images_resized(self) -> None:
        encoder = ImageEncoder(Means(), "means", mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), side=32)
        plain = torch.full((1, 3, 16, 16), 51, dtype=torch.uint8)  # 0.2 everywhere, whatever its size
        torch.testing.assert_close(encoder.encode(plain), torch.tensor([[0.2, 0.0, -0.05]]))

        class Side(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.tensor([[float(images.shape[2])]]).expand(len(images), 1)

        assert dataclasses.replace(encoder, network=Side()).encode(plain).item() == 32


class TestTeacherEncoder:
    def test_features_are_what_the_classifier_reads(self) -> None:
        teacher = make_teacher()
        network = teacher.network(3)
        with torch.no_grad():
            logits = network((IMAGES.float() / 255 - 0.5) / 0.5)
            found = teacher_encoder(teacher, 3).encode(IMAGES)
            expected = found @ teacher.state["head.weight"].T + teacher.state["head.bias"]
        torch.testing.assert_close(expected, logits, rtol=1e-4, atol=1e-4)

    def test_the_id_is_that_of_the_weights_and_of_how_images_are_prepared(self) -> None:
        one, same, other = (teacher_encoder(make_teacher(seed), 3) for seed in (0, 0, 1))
        assert one.id == same.id
        assert len({one.id, other.id, dataclasses.replace(one, side=32).id, dataclasses.replace(one, name="x").id}) == 4
        assert image_features(one, IMAGES, LABELS, 2).encoder == one.id


class TestResNet18:
    def test_features_are_those_of_torchvisions_network_before_its_classifier(self, tmp_path: Path) -> None:
        with torch.random.fork_rng():
            network = import_torchvision("models").resnet18().eval()
        file = tmp_path / "resnet18.safetensors"
        file.write_bytes(pack_tensors(network.state_dict()))
        before = torch.random.get_rng_state()
        encoder = resnet18_encoder(file)
        assert torch.equal(torch.random.get_rng_state(), before)
        found = encoder.encode(IMAGES[:2])
        assert found.shape == (2, 512)
        scaled = nn.functional.interpolate(IMAGES[:2] / 255, (224, 224), mode="bilinear", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        with torch.no_grad():
            logits = network((scaled - mean[:, None, None]) / std[:, None, None])
            torch.testing.assert_close(network.fc(found), logits, rtol=1e-4, atol=1e-4)

    def test_other_weights_are_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "other.safetensors"
        file.write_bytes(pack_tensors(make_teacher().state))
        with pytest.raises(SpaceError, match="torchvision's resnet18"):
            resnet18_encoder(file)
        file.write_bytes(b"weights")
        with pytest.raises(StoreError):
            resnet18_encoder(file)
