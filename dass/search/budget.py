"""What a student may cost."""

import dataclasses
from dataclasses import dataclass

from dass.cost import count_macs, count_params
from dass.errors import BudgetError, ConfigError
from dass.spaces.space import SearchSpace


@dataclass(frozen=True)
class Budget:
    """The most multiply-adds per image and the most trainable parameters, both inclusive; None sets no limit.

    Raises:
        ConfigError: a limit is below 1.
    """

    max_macs: int | None = None
    max_params: int | None = None

    def __post_init__(self) -> None:
        for name, limit in dataclasses.asdict(self).items():
            if limit is not None and limit < 1:
                raise ConfigError(f"budget.{name} must be >= 1, got {limit}; leave it out for no limit")

    def admits(self, macs: int, params: int) -> bool:
        """Whether a student of this cost is within the budget."""
        return (self.max_macs is None or macs <= self.max_macs) and (
            self.max_params is None or params <= self.max_params
        )


def check_feasible(budget: Budget, space: SearchSpace, resolution: int, num_classes: int) -> None:
    """Raise BudgetError, naming its cost, unless the budget admits the space's smallest student.

    In every preset the student with the fewest MACs is the one with the fewest parameters too, so what is refused here
    has no student at all.
    """
    macs = count_macs(space.smallest, resolution, num_classes)
    params = count_params(space.smallest, num_classes)
    if not budget.admits(macs, params):
        raise BudgetError(
            f"the budget must admit the smallest student of space {space.name}, {space.smallest.key}, with {macs} MACs "
            f"and {params} parameters, got max_macs={budget.max_macs} and max_params={budget.max_params}; "
            "raise the limit, or choose a space with smaller students"
        )
