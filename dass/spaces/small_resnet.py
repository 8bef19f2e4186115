"""The space of small residual networks (algorithms: sections 1.3, 1.5 and 1.7).

A student has four stages. A stage is a *row*: the widths of its 1 to `teacher_depth` blocks, one *slot* each. The last
block of a row always has the full base width, the others a ratio of it. Stages, slots and levels (positions in the
list of ratios) are counted from 0.

Because every row ends at full width, what enters a stage does not depend on the row before it. So the rows of the four
stages are independent of each other, MACs are a sum of one term per row, and a random student is four random rows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import NoReturn

import torch

from dass.cost import stage_macs
from dass.errors import ConfigError, SpaceError
from dass.records import Student
from dass.spaces.space import Sampler
from dass.spaces.summary import NUM_SIZES, NUMBERS_PER_STAGE, summarise

Row = tuple[int, ...]

FAMILY = "small_resnet"
NUM_STAGES = 4
NUM_RESOLUTIONS = 1  # leading entries of the architecture vector; one resolution, so always 1
MACS_RESOLUTION = 64  # pixels; strata are of MACs at this resolution, without classifier
NUM_STRATA = 10
DRAWN_AT_ONCE = 256  # students, however many are wanted: so a larger sample begins as a smaller one
MAX_ROUNDS = 10  # of draws in one stratum that give nothing new, before it counts as used up
MAX_TILT = 1e4  # puts all but a trace on the rows of the fewest, or the most, MACs


@dataclass(frozen=True)
class _Rows:
    """Every legal row of one stage; tensors are aligned with `rows`, one entry each."""

    rows: tuple[Row, ...]
    macs: torch.Tensor  # int64, at MACS_RESOLUTION; those of the first stage include the stem
    log_uniform: torch.Tensor  # float64, log-probability under the uniform sampler


@dataclass(frozen=True)
class SmallResNetSpace:
    """The students whose depths and ratios come from the given lists.

    depths: legal blocks per stage, ascending. base_widths: full width of each of the four stages. ratios: legal
    ratios, ascending, the last one 1.0; every ratio times every base width is a whole number of channels.
    teacher_depth: blocks per stage of the teacher, and slots per stage of the architecture vector; None means the
    largest depth. When it exceeds every depth, the teacher `largest` is not itself a student.

    The first draw of a space lists the sum of `len(ratios) ** (depth - 1)` rows of each stage, and keeps them.
    """

    name: str
    depths: tuple[int, ...]
    base_widths: tuple[int, ...]
    ratios: tuple[float, ...]
    teacher_depth: int | None = None

    def __post_init__(self) -> None:
        self._require(len(self.base_widths) == NUM_STAGES, f"{NUM_STAGES} base widths", self.base_widths)
        self._require(_is_ascending((0, *self.depths)), "ascending depths from 1", self.depths)
        self._require(self.num_slots >= max(self.depths), "a teacher as deep as its students", self.teacher_depth)
        self._require(
            _is_ascending((0, *self.ratios)) and self.ratios[-1] == 1, "ascending ratios up to 1", self.ratios
        )
        products = [base * ratio for base in self.base_widths for ratio in self.ratios]
        self._require(all(width >= 1 and width == int(width) for width in products), "whole widths", products)

    def _require(self, is_legal: bool, rule: str, received: object) -> None:
        if not is_legal:
            raise SpaceError(f"space {self.name} must have {rule}, got {received}; correct its definition")

    @property
    def num_slots(self) -> int:
        """Slots per stage, the teacher's blocks per stage."""
        return max(self.depths, default=0) if self.teacher_depth is None else self.teacher_depth

    @property
    def size(self) -> int:
        """Number of distinct students: per stage the sum over depths of `len(ratios) ** (depth - 1)`."""
        return int(sum(len(self.ratios) ** (depth - 1) for depth in self.depths) ** NUM_STAGES)

    @property
    def encoding_dim(self) -> int:
        """One resolution entry, then one entry per stage, slot and level."""
        return NUM_RESOLUTIONS + NUM_STAGES * self.num_slots * len(self.ratios)

    @property
    def num_channels(self) -> int:
        """Channels of the last feature map, the same for every student."""
        return self.base_widths[-1]

    @property
    def largest(self) -> Student:
        """The teacher's architecture: full width, `teacher_depth` blocks in every stage."""
        return Student(tuple((base,) * self.num_slots for base in self.base_widths))

    @cached_property
    def smallest(self) -> Student:
        """The student with the fewest MACs, not always the shallowest: a narrow block can make the next one cheap."""
        return Student(tuple(min(zip(menu.macs.tolist(), menu.rows, strict=True))[1] for menu in self._menus))

    @cached_property
    def _widths(self) -> tuple[Row, ...]:
        """The legal widths of each stage by level."""
        return tuple(tuple(int(base * ratio) for ratio in self.ratios) for base in self.base_widths)

    def check(self, student: Student) -> None:
        """Raise SpaceError, naming stage, slot, width and legal widths, unless `student` belongs to the space."""
        if student.family != FAMILY or len(student.widths) != NUM_STAGES:
            raise SpaceError(
                f"a student of space {self.name} must have the family {FAMILY!r} and {NUM_STAGES} stages, got "
                f"{student.family!r} and {len(student.widths)}; choose the space that the student comes from"
            )
        for stage, (row, widths) in enumerate(zip(student.widths, self._widths, strict=True)):
            if len(row) not in self.depths:
                raise SpaceError(
                    f"stage {stage} in space {self.name} must have a depth of {self.depths}, got {len(row)} blocks "
                    f"{row}; add or remove blocks"
                )
            for slot, width in enumerate(row):
                legal = widths if slot < len(row) - 1 else widths[-1:]
                if width not in legal:
                    self._refuse_width(stage, slot, width, legal)

    def _refuse_width(self, stage: int, slot: int, width: int, legal: Row) -> NoReturn:
        which = "last slot" if len(legal) == 1 else "slot"
        raise SpaceError(
            f"stage {stage}, {which} {slot} in space {self.name} must have a width of {legal}, got {width}; "
            "choose a legal width, or the space that has this one"
        )

    def sample(self, num: int, rng: torch.Generator, sampler: Sampler = "uniform") -> list[Student]:
        """`num` distinct students in random order; a larger `num` from the same seed begins with the same students.

        `uniform` draws each depth and each ratio below the last uniformly and independently. `macs_stratified` draws
        one of ten equal intervals between the fewest and the most MACs (64 px, no classifier), and then a student in it
        as `uniform` would, tilted by MACs. What was drawn before is drawn again.

        Raises:
            ConfigError: `num` is below 1 or the sampler is unknown.
            SpaceError: the space has fewer than `num` students.
        """
        if num < 1:
            raise ConfigError(f"num must be >= 1, got {num}; ask for at least one student")
        if num > self.size:
            raise SpaceError(
                f"num must be at most {self.size}, the size of space {self.name}, got {num}; ask for fewer"
            )
        if sampler not in ("uniform", "macs_stratified"):
            raise ConfigError(f"sampler must be uniform or macs_stratified, got {sampler!r}; choose one of them")
        found: dict[Student, None] = {}
        drawn = self._stratified(rng) if sampler == "macs_stratified" else self._uniform(rng)
        while len(found) < num:
            found[next(drawn)] = None
        return list(found)

    def _uniform(self, rng: torch.Generator) -> Iterator[Student]:
        """Students without end, equal ones among them."""
        log_uniform = [menu.log_uniform for menu in self._menus]
        while True:
            yield from self._students(_draw(log_uniform, DRAWN_AT_ONCE, rng))

    def _stratified(self, rng: torch.Generator) -> Iterator[Student]:
        """Students without end, each of a stratum drawn before, and different until a stratum gives no other ones."""
        anywhere, strata = self._uniform(rng), [self._of_stratum(stratum, rng) for stratum in range(NUM_STRATA)]
        while True:
            stratum = int(torch.randint(NUM_STRATA, (), generator=rng))
            yield next(strata[stratum], None) or next(anywhere)

    def _of_stratum(self, stratum: int, rng: torch.Generator) -> Iterator[Student]:
        """Distinct students of a stratum, until many draws give none that is new."""
        found: dict[Student, None] = {}
        rounds = 0
        while rounds < MAX_ROUNDS:
            picks = _draw(self._tilted[stratum], DRAWN_AT_ONCE, rng)
            drawn = dict.fromkeys(self._students(picks[self._stratum(picks) == stratum]))
            fresh = [student for student in drawn if student not in found]
            found |= dict.fromkeys(fresh)
            rounds = 0 if fresh else rounds + 1
            yield from fresh

    def _students(self, picks: torch.Tensor) -> Iterator[Student]:
        """The students of row indices, int64 (n, 4)."""
        menus = [menu.rows for menu in self._menus]
        return (Student(tuple(rows[i] for rows, i in zip(menus, pick, strict=True))) for pick in picks.tolist())

    def _stratum(self, picks: torch.Tensor) -> torch.Tensor:
        """The stratum of each row of `picks`, int64 (n,)."""
        fewest = sum(int(menu.macs.min()) for menu in self._menus)
        macs = sum((menu.macs[picks[:, stage]] for stage, menu in enumerate(self._menus)), torch.tensor(-fewest))
        return (macs * NUM_STRATA // max(self._macs_range, 1)).clamp(max=NUM_STRATA - 1)

    @cached_property
    def _macs_range(self) -> int:
        """The most MACs of a student less the fewest."""
        return sum(int(menu.macs.max() - menu.macs.min()) for menu in self._menus)

    @cached_property
    def _menus(self) -> tuple[_Rows, ...]:
        """The rows of each stage."""
        return tuple(self._menu(stage) for stage in range(NUM_STAGES))

    def _menu(self, stage: int) -> _Rows:
        *_, full = widths = self._widths[stage]
        rows = [(*inner, full) for depth in self.depths for inner in product(widths, repeat=depth - 1)]
        entering = self.base_widths[stage - 1] if stage else None
        macs = [stage_macs(row, entering, MACS_RESOLUTION >> stage) for row in rows]
        num_inner = torch.tensor([len(row) - 1 for row in rows], dtype=torch.float64)
        log_uniform = -math.log(len(self.depths)) - math.log(len(widths)) * num_inner
        return _Rows(tuple(rows), torch.tensor(macs), log_uniform)

    @cached_property
    def _tilted(self) -> tuple[list[torch.Tensor], ...]:
        """Per stratum the log-probabilities of each stage's rows, such that the expected MACs are the stratum's middle.

        Each row is weighted by exp(k MACs), so students of equal MACs stay as likely as each other, and the expected
        MACs grow with k from the fewest to the most: bisection finds k.
        """
        shares = [(menu.macs - menu.macs.min()).double() / max(self._macs_range, 1) for menu in self._menus]

        def tilt(k: float) -> list[torch.Tensor]:
            logits = (menu.log_uniform + k * share for menu, share in zip(self._menus, shares, strict=True))
            return [torch.log_softmax(logit, dim=0) for logit in logits]

        def expected(k: float) -> float:
            return sum(float(log_p.exp() @ share) for log_p, share in zip(tilt(k), shares, strict=True))

        return tuple(tilt(_bisect(expected, (stratum + 0.5) / NUM_STRATA)) for stratum in range(NUM_STRATA))

    def encode(self, student: Student) -> torch.Tensor:
        """The architecture vector, float32 (encoding_dim,): 1 for the resolution, then one 1 per block.

        Block (stage, slot) of the level-th ratio sets entry 1 + (num_slots stage + slot) num_ratios + level; a block
        that is absent sets none. The teacher's vector is legal too where the teacher is no student of the space.

        Raises:
            SpaceError: the student is not in the space.
        """
        return self.encode_many([student])[0]

    def encode_many(self, students: Sequence[Student]) -> torch.Tensor:
        """The vectors of `encode` as rows, float32 (n, encoding_dim)."""
        hot: list[tuple[int, int]] = []
        for index, student in enumerate(students):
            self._check_encodable(student)
            for stage, row in enumerate(student.widths):
                first = NUM_RESOLUTIONS + stage * self.num_slots * len(self.ratios)
                levels = self._levels[stage]
                hot += [(index, first + slot * len(self.ratios) + levels[width]) for slot, width in enumerate(row)]
        vectors = torch.zeros(len(students), self.encoding_dim)
        vectors[:, :NUM_RESOLUTIONS] = 1
        vectors[tuple(torch.tensor(hot, dtype=torch.int64).reshape(-1, 2).T)] = 1
        return vectors

    @property
    def summary_dim(self) -> int:
        """Some numbers for each stage, and some for all."""
        return NUM_STAGES * NUMBERS_PER_STAGE + NUM_SIZES

    def summarise(self, vectors: torch.Tensor) -> torch.Tensor:
        """See `dass.spaces.summary`."""
        levels = vectors[:, NUM_RESOLUTIONS:].reshape(-1, NUM_STAGES, self.num_slots, len(self.ratios))
        return summarise(levels, self.ratios, self.base_widths)

    @cached_property
    def _levels(self) -> tuple[dict[int, int], ...]:
        """The level of each legal width, per stage."""
        return tuple({width: level for level, width in enumerate(widths)} for widths in self._widths)

    def decode(self, vector: torch.Tensor) -> Student:
        """The student of an architecture vector, of any dtype and on any device.

        Raises:
            SpaceError: wrong length, an entry other than 0 and 1, no resolution, two ratios for one slot, a gap between
                blocks, a last block below full width, or a depth outside the space.
        """
        self._require_vector(vector.shape == (self.encoding_dim,), f"{self.encoding_dim} entries", tuple(vector.shape))
        self._require_vector(bool(((vector == 0) | (vector == 1)).all()), "only zeros and ones", "other values")
        self._require_vector(bool(vector[0] == 1), "its resolution entry set", 0)
        slots = vector[NUM_RESOLUTIONS:].reshape(NUM_STAGES, self.num_slots, len(self.ratios)).tolist()
        student = Student(tuple(self._decode_row(stage, levels) for stage, levels in enumerate(slots)))
        self._check_encodable(student)
        return student

    def _check_encodable(self, student: Student) -> None:
        if student != self.largest:
            self.check(student)

    def _decode_row(self, stage: int, slots: list[list[float]]) -> Row:
        """The widths of one stage from its (num_slots, num_ratios) zeros and ones."""
        counts = [int(sum(levels)) for levels in slots]
        where = f"in each slot of stage {stage}"
        self._require_vector(max(counts) <= 1, f"at most one ratio {where}", counts)
        self._require_vector(counts == sorted(counts, reverse=True), f"no gap before a block {where}", counts)
        return tuple(self._widths[stage][levels.index(1)] for levels in slots if 1 in levels)

    def _require_vector(self, is_legal: bool, rule: str, received: object) -> None:
        if not is_legal:
            raise SpaceError(
                f"a vector of space {self.name} must have {rule}, got {received}; use one that encode gave"
            )

    def neighbours(self, student: Student) -> list[Student]:
        """All students at one move, each once, without the student itself.

        A move changes one ratio by one level, appends a block of full width to a stage, or takes the last block off a
        stage whose block before it has full width too. So every move can be undone by a move, and every student can
        be reached from every other where the depths have no gap.

        Raises:
            SpaceError: the student is not in the space.
        """
        self.check(student)
        rows = student.widths
        return [
            Student((*rows[:stage], row, *rows[stage + 1 :]))
            for stage in range(NUM_STAGES)
            for row in self._neighbour_rows(stage, rows[stage])
        ]

    def _neighbour_rows(self, stage: int, row: Row) -> list[Row]:
        widths = self._widths[stage]
        moved = []
        for slot, width in enumerate(row[:-1]):
            level = self._levels[stage][width]
            near = widths[max(level - 1, 0) : level] + widths[level + 1 : level + 2]
            moved += [(*row[:slot], other, *row[slot + 1 :]) for other in near]
        if len(row) + 1 in self.depths:
            moved.append((*row, widths[-1]))
        if len(row) - 1 in self.depths and row[-2] == widths[-1]:
            moved.append(row[:-1])
        return moved

    def mutate(self, student: Student, rng: torch.Generator, rate: float = 0.1) -> Student:
        """A copy in which each decision is drawn anew, uniformly, with probability `rate`; it may come out the same.

        The decisions are the four depths and the ratio of each block but the last of its stage. A block that was the
        last, or absent, and no longer is gets a ratio drawn anew.

        Raises:
            SpaceError: the student is not in the space.
            ConfigError: the rate is not in [0, 1].
        """
        self.check(student)
        if not 0 <= rate <= 1:
            raise ConfigError(f"rate must be in [0, 1], got {rate}; give a probability")
        chances = torch.rand(NUM_STAGES, self.num_slots, 2, generator=rng, dtype=torch.float64).tolist()
        stages = zip(student.widths, self._widths, chances, strict=True)
        return Student(tuple(self._mutate_row(row, widths, chance, rate) for row, widths, chance in stages))

    def _mutate_row(self, row: Row, widths: Row, chances: list[list[float]], rate: float) -> Row:
        """`chances` holds two numbers in [0, 1) per decision, ratios first and the depth last: whether, and to what."""
        *inner, (is_redrawn, choice) = chances
        depth = self.depths[int(choice * len(self.depths))] if is_redrawn < rate else len(row)
        kept = row[:-1]
        mutated = [
            kept[slot] if slot < len(kept) and is_redrawn >= rate else widths[int(choice * len(widths))]
            for slot, (is_redrawn, choice) in enumerate(inner[: depth - 1])
        ]
        return (*mutated, widths[-1])

    def cross(self, left: Student, right: Student, rng: torch.Generator) -> Student:
        """A student that takes each stage from one of two parents, each with probability one half.

        Raises:
            SpaceError: a parent is not in the space.
        """
        self.check(left)
        self.check(right)
        sides = torch.randint(2, (NUM_STAGES,), generator=rng).tolist()
        return Student(tuple(pair[side] for side, *pair in zip(sides, left.widths, right.widths, strict=True)))


def _is_ascending(values: Sequence[float]) -> bool:
    """Whether there are at least two values, each larger than the one before."""
    return len(values) > 1 and all(low < high for low, high in pairwise(values))


def _draw(log_probs: Sequence[torch.Tensor], num: int, rng: torch.Generator) -> torch.Tensor:
    """Row indices of `num` independent draws per stage, int64 (num, stages)."""
    return torch.stack([log_p.exp().multinomial(num, replacement=True, generator=rng) for log_p in log_probs], dim=1)


def _bisect(rising: Callable[[float], float], target: float) -> float:
    """Where a function that rises passes `target`."""
    low, high = -MAX_TILT, MAX_TILT
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2
