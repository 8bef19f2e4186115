"""How much of what a teacher sees in images of a task its students still see, before any training (ours).

A student takes over slices of its teacher's weights. What its last layer then makes of the task's images is compared with
what the teacher's does: the share of the teacher's features, over the images, that a ridge regression from the student's
explains. Distillation trains such a linear map first of all, so what counts is what is lost, not how channels are
scaled or ordered. Linear regression as a likeness of representations: Kornblith et al., ICML 2019, section 3.

Images are halved in width and height where networks take that: a quarter of the work, and students rank as well by it.

Shape legend: n students, B images, C channels of the last stage, R resolution.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.data.batches import BatchSource, plain_batch
from dass.embed import Embedder, MapPrecision
from dass.errors import DataError, PredictorMismatchError
from dass.kd.teacher import Teacher
from dass.records import Init, Student

VIEW = 2  # the version of this score: a predictor, and features that are kept, hold for one
NUM_IMAGES = 64
RIDGE = 0.05  # beside eigenvalues that add up to 1
_LEAST_SD = 1e-4  # channels that vary less are as good as constant
_LEAST = 1e-12  # nothing is explained of what does not vary


def images_of(data: BatchSource) -> torch.Tensor:
    """The images of a task that are looked at, the same ones for every teacher: float32 (B, 3, R / 2, R / 2) on their device.

    They keep their size where half of it is no multiple of 8, which networks want.
    """
    images = plain_batch(data, NUM_IMAGES, seed=0)[0]
    return images if images.shape[-1] % 16 else F.avg_pool2d(images, 2)


def check_view(view: int) -> None:
    """Raise PredictorMismatchError unless a predictor that learned from this version of the score may be asked."""
    if view != VIEW:
        raise PredictorMismatchError(
            f"a predictor ranks only what it was made for: its view of students is version {view}, got {VIEW}; run "
            "meta-training again"
        )


class TeacherView:
    """A scorer: of each student the share of the teacher's features that its own explain, over the teacher's own share.

    Args:
        teacher: with its weights.
        images: float32 (B, 3, H, W) of the task; their device is the device of the computation.
        mode: how students are remapped; `scratch` has no teacher to slice and is refused.
        precision: see `Embedder`.

    Raises:
        DataError: there are fewer than 2 images.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: torch.Tensor,
        mode: Init = "copy_paste_first",
        precision: MapPrecision = "float32",
    ) -> None:
        if len(images) < 2:
            raise DataError(
                f"what students and teacher see is compared over several images, got {len(images)}; give the task more images "
                "to train on"
            )
        self._embedder = Embedder(teacher.state, teacher.student, images, mode, precision)
        self._features = self._embedder.features([teacher.student])
        self._own = explained(self._features, self._features[0])

    def score(self, students: Sequence[Student]) -> torch.Tensor:
        """float32 (n,) on the CPU: 1 for the teacher itself, less for all that see less."""
        features = self._embedder.features(students)
        with torch.inference_mode():
            return (explained(features, self._features[0]) / self._own).cpu()

    def to(self, device: torch.device) -> "TeacherView":
        """The same scorer, computing on this device."""
        moved = copy.copy(self)
        moved._embedder = self._embedder.to(device)
        moved._features, moved._own = self._features.to(device), self._own.to(device)
        return moved


def explained(features: torch.Tensor, teachers: torch.Tensor) -> torch.Tensor:
    """The share of the variance of features (B, C) that a ridge regression from each of (n, B, C) explains: (n,) in 0..1.

    All channels are brought to mean 0 and standard deviation 1 over the images. The regression is solved in the space of
    the images, whose products are divided so that their eigenvalues add up to 1, and it is fitted to the images it is judged by.
    """
    num_images, num_channels = teachers.shape
    own, wanted = _standardise(features), _standardise(teachers)
    gram = own @ own.transpose(1, 2) / (num_images * num_channels)
    ridge = RIDGE * torch.eye(num_images, device=gram.device)
    residual: torch.Tensor = RIDGE * torch.linalg.solve_ex(gram + ridge, wanted.expand(len(own), -1, -1)).result
    return 1 - residual.square().sum(dim=(1, 2)) / wanted.square().sum().clamp_min(_LEAST)


def _standardise(features: torch.Tensor) -> torch.Tensor:
    centred = features - features.mean(dim=-2, keepdim=True)
    return centred / (centred.std(dim=-2, keepdim=True) + _LEAST_SD)
