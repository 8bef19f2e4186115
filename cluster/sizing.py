"""How many students train together: a pure decision from what the cohorts so far took and gave.

    first size --faster by 5 % and fits--> twice as many --...--> the bound, what fits, or what is no faster
                                                 | slower: back, for good
    any size --out of memory--> half as many, and never more again

Two cohorts hold different students, so their rates differ by more than what their sizes do; that decides only where
sizes are about equally fast, and there it does not matter. A result never depends on the size.
"""

from dataclasses import dataclass, field, replace

FIRST_SIZE = 8
LEAST_GAIN = 1.05
MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class Measured:
    """What a cohort of `size` gave and took.

    rate: student-steps per second; 0 where none was measured.
    fixed_bytes: memory in use before the cohort was there; 0 where that cannot be told apart, which errs on the safe side.
    peak_bytes: the most in use while it trained, `fixed_bytes` included.
    room_bytes: what may be in use; infinite where the system does not tell.
    """

    size: int
    rate: float
    fixed_bytes: int
    peak_bytes: int
    room_bytes: float

    def fits(self, size: int) -> bool:
        """Whether a cohort of `size` leaves enough room, its memory taken as linear in its size."""
        predicted_bytes = self.fixed_bytes + (self.peak_bytes - self.fixed_bytes) * size / self.size
        return predicted_bytes <= MEMORY_SHARE * self.room_bytes


@dataclass(frozen=True)
class Sizing:
    """The size of the next cohort of one kind of work, and what it was chosen by.

    bound: what the size never exceeds again.
    smaller: size and rate of the cohort that the next one is compared with; None when there is nothing to compare.
    """

    size: int
    bound: int
    reason: str
    smaller: tuple[int, float] | None = None

    @classmethod
    def first(cls, bound: int) -> "Sizing":
        """Where nothing is measured yet."""
        return cls(min(FIRST_SIZE, bound), bound, "nothing is measured yet")

    def after(self, cohort: Measured) -> "Sizing":
        """The choice after a cohort; one that had fewer runs than were asked for, or no rate, changes nothing."""
        if cohort.size != self.size or not cohort.rate:
            return self
        if not cohort.fits(self.size) and self.size > 1:
            size = next((size for size in _halves(self.size) if cohort.fits(size)), 1)
            return Sizing(size, self.bound, f"{self.size} take more memory than there is room for")
        if self.smaller is not None:
            smaller, rate = self.smaller
            if cohort.rate < rate:
                return Sizing(smaller, smaller, f"{self.size} are slower than {smaller}")
            if cohort.rate < LEAST_GAIN * rate:
                return Sizing(self.size, self.size, f"{self.size} are hardly faster than {smaller}")
        return self._grown(cohort)

    def after_out_of_memory(self, size: int) -> "Sizing":
        """The choice after a cohort broke the memory when `size` students, more than one, were left in it."""
        half = size // 2
        return Sizing(min(half, self.size), min(half, self.bound), f"{size} broke the memory")

    def _grown(self, cohort: Measured) -> "Sizing":
        larger = min(2 * self.size, self.bound)
        if larger == self.size:
            return replace(self, smaller=None, reason="no more are allowed")
        if not cohort.fits(larger):
            return replace(self, smaller=None, reason=f"{larger} would take more memory than there is room for")
        return Sizing(larger, self.bound, f"{larger} may be faster", smaller=(self.size, cohort.rate))


@dataclass
class Pace:
    """Student-steps per second of one cohort, counted from its first yield on: what comes before that warms up."""

    _began: float | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)
    _step: int = field(default=0, init=False)
    _num_students: int = field(default=0, init=False)
    _student_steps: int = field(default=0, init=False)

    def note(self, step: int, num_students: int, now: float) -> None:
        """The cohort yielded after `step` steps and goes on with `num_students`; `now` is in seconds of any clock."""
        if self._began is None:
            self._began = now
        else:
            self._student_steps += (step - self._step) * self._num_students
        self._seconds = now - self._began
        self._step, self._num_students = step, num_students

    @property
    def rate(self) -> float:
        """Student-steps per second; 0 where nothing was measured."""
        return self._student_steps / self._seconds if self._seconds > 0 else 0.0


def _halves(size: int) -> list[int]:
    """`size` halved again and again, down to 1."""
    return [size >> shift for shift in range(1, size.bit_length())]
