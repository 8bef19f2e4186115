"""What students explain of their teacher, against scikit-learn's and by what must hold of any such number."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from dass.data.batches import ResidentBatches, plain_batch
from dass.data.pack import Pack, Part
from dass.data.splits import whole_task
from dass.errors import DataError, PredictorMismatchError
from dass.explained import NUM_IMAGES, RIDGE, VIEW, TeacherView, check_view, explained, images_of
from dass.networks import build
from dass.records import Student
from dass.remap import remap
from dass.seeding import generator
from tests.dass.kd.tiny import DATA, SPACE, make_teacher

TEACHER = make_teacher()
STUDENTS = [SPACE.largest, SPACE.smallest, *SPACE.sample(10, torch.Generator().manual_seed(3))]


def features(num: int, num_images: int = 20, num_channels: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, num_images, num_channels, generator=torch.Generator().manual_seed(seed))


class TestExplained:
    def test_it_is_the_share_that_a_ridge_regression_explains(self) -> None:
        given, wanted = features(3), features(1, seed=1)[0]
        for own, found in zip(given.double().numpy(), explained(given, wanted), strict=True):
            x = (own - own.mean(0)) / own.std(0, ddof=1)
            y = wanted.double().numpy()
            y = (y - y.mean(0)) / y.std(0, ddof=1)
            fit = Ridge(alpha=RIDGE * len(x) * x.shape[1], fit_intercept=False).fit(x, y)
            assert found.item() == pytest.approx(1 - ((y - fit.predict(x)) ** 2).sum() / (y**2).sum(), abs=1e-3)

    def test_scaling_and_ordering_channels_changes_nothing(self) -> None:
        given = features(2)
        wanted = given[0] @ features(1, 6, 6, seed=2)[0]
        scaled = given * torch.tensor([3.0, 0.1, 7.0, 1.0, 2.0, 0.5]) + 4
        torch.testing.assert_close(explained(scaled, wanted), explained(given, wanted), rtol=1e-3, atol=1e-3)
        order = [3, 1, 0, 5, 2, 4]
        torch.testing.assert_close(
            explained(given[..., order], wanted[:, [5, 4, 3, 2, 1, 0]]), explained(given, wanted)
        )

    def test_what_comes_from_the_teacher_explains_more_than_noise_and_nothing_explains_nothing(self) -> None:
        wanted = features(1)[0]
        part = torch.cat([wanted[:, :4], torch.zeros(20, 2)], dim=1)
        all_of_it, some, noise, none = explained(torch.stack([wanted, part, features(1, seed=9)[0], 0 * part]), wanted)
        assert 1 > all_of_it > some > noise > 0
        assert none == pytest.approx(0, abs=1e-6)


class TestTeacherView:
    def test_it_compares_the_networks_features_of_the_images(self) -> None:
        images = images_of(DATA)
        assert len(images) == min(NUM_IMAGES, DATA.num_images("train"))
        scores = TeacherView(TEACHER, images).score(STUDENTS)

        def seen(student: Student) -> torch.Tensor:
            network = build(student, DATA.task.num_classes)
            network.load_state_dict(remap(TEACHER.state, TEACHER.student, student))
            with torch.no_grad():
                return network.eval().features(images).mean(dim=(2, 3))

        wanted = seen(TEACHER.student)
        own = explained(wanted[None], wanted)
        expected = torch.cat([explained(seen(student)[None], wanted) / own for student in STUDENTS])
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4)
        assert scores[0] == pytest.approx(1, abs=1e-4)
        assert np.all(scores.numpy() <= 1 + 1e-4)

    def test_order_and_company_change_last_bits_at_most(self) -> None:
        view = TeacherView(TEACHER, images_of(DATA))
        scores = view.score(STUDENTS)
        torch.testing.assert_close(view.score(STUDENTS[::-1]).flip(0), scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            view.to(torch.device("cpu")).score(STUDENTS[4:5])[0], scores[4], rtol=1e-4, atol=1e-5
        )

    def test_other_images_give_other_shares(self) -> None:
        noise = torch.randn(8, 3, DATA.task.resolution, DATA.task.resolution, generator=generator("noise images"))
        assert not torch.allclose(
            TeacherView(TEACHER, noise).score(STUDENTS), TeacherView(TEACHER, images_of(DATA)).score(STUDENTS)
        )

    def test_one_image_is_refused(self) -> None:
        with pytest.raises(DataError, match="compared over several images, got 1"):
            TeacherView(TEACHER, images_of(DATA)[:1])


def test_the_score_is_what_its_version_stands_for() -> None:
    """Whoever changes one of these raises the version, or predictors would be asked of what they have not learned from."""
    assert (VIEW, NUM_IMAGES, RIDGE) == (2, 64, 0.05)


@pytest.mark.parametrize(("resolution", "expected"), [(8, 8), (16, 8), (24, 24), (32, 16)])
def test_images_are_halved_where_networks_take_that(resolution: int, expected: int) -> None:
    rng = generator("images", resolution)
    images = torch.randint(256, (8, 3, resolution, resolution), generator=rng, dtype=torch.uint8)
    parts = torch.tensor([Part.TRAIN] * 6 + [Part.VALID] * 2).to(torch.uint8)
    pack = Pack(images, torch.arange(8) % 2, parts, ("a", "b"), "halved")
    data = ResidentBatches.of(pack, whole_task(pack, "halved"))
    found, whole = images_of(data), plain_batch(data, NUM_IMAGES, seed=0)[0]
    step = resolution // expected
    corners = [whole[:, :, row::step, column::step] for row in range(step) for column in range(step)]
    torch.testing.assert_close(found, torch.stack(corners).mean(dim=0))
    assert found.shape == (6, 3, expected, expected)


def test_a_predictor_that_learned_from_another_version_is_refused() -> None:
    check_view(VIEW)
    with pytest.raises(PredictorMismatchError, match=f"version 0, got {VIEW}; run meta-training again"):
        check_view(0)
