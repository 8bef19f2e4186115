"""The contract of a search space: what a student may be, and every move on students."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch

from dass.records import Student

Sampler = Literal["uniform", "macs_stratified"]


class SearchSpace(Protocol):
    """A finite set of students with one largest member, the teacher's architecture.

    Every student in the space is a slice of the largest one. All randomness comes from the generator handed in.
    """

    @property
    def name(self) -> str:
        """The preset's name; part of what a predictor must match."""

    @property
    def size(self) -> int:
        """Number of distinct students."""

    @property
    def encoding_dim(self) -> int:
        """Length of the one-hot architecture vector."""

    @property
    def num_channels(self) -> int:
        """Channels of the last feature map, the same for every student."""

    @property
    def largest(self) -> Student:
        """The teacher's architecture."""

    @property
    def smallest(self) -> Student:
        """The student with the fewest MACs."""

    def check(self, student: Student) -> None:
        """Raise SpaceError, naming the offending entry, unless `student` belongs to the space."""

    def sample(self, num: int, rng: torch.Generator, sampler: Sampler = "uniform") -> list[Student]:
        """`num` distinct students; SpaceError when the space has fewer.

        A larger `num` from a generator in the same state begins with the same students: a collection can grow.
        """

    def encode(self, student: Student) -> torch.Tensor:
        """The one-hot architecture vector, float32 of length `encoding_dim`."""

    def encode_many(self, students: Sequence[Student]) -> torch.Tensor:
        """The vectors of `encode` as rows, float32 (n, encoding_dim), in the order of `students`."""

    @property
    def summary_dim(self) -> int:
        """Length of a summary."""

    def summarise(self, vectors: torch.Tensor) -> torch.Tensor:
        """Vectors of `encode_many` in a few numbers, float32 (n, summary_dim); the teacher's are zeros."""

    def decode(self, vector: torch.Tensor) -> Student:
        """The student of a one-hot vector; SpaceError when the vector is not one that `encode` can give."""

    def neighbours(self, student: Student) -> list[Student]:
        """All students at one move: one ratio by one level, or one block more or less in one stage."""

    def mutate(self, student: Student, rng: torch.Generator, rate: float = 0.1) -> Student:
        """A copy in which each decision (depth, ratio) is drawn anew with probability `rate`."""

    def cross(self, left: Student, right: Student, rng: torch.Generator) -> Student:
        """A student that takes each stage from one of two parents."""
