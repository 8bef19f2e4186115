import pytest

from dass.cost import count_macs, count_params
from dass.errors import BudgetError, ConfigError
from dass.search.budget import Budget, check_feasible
from dass.spaces import PRESETS

SPACE = PRESETS["smoke"]
MACS, PARAMS = count_macs(SPACE.smallest, 32, 10), count_params(SPACE.smallest, 10)


class TestBudget:
    def test_limits_are_inclusive_and_both_must_hold(self) -> None:
        budget = Budget(max_macs=100, max_params=10)
        assert budget.admits(100, 10)
        assert not budget.admits(101, 10)
        assert not budget.admits(100, 11)

    def test_no_limit_admits_everything(self) -> None:
        assert Budget().admits(10**18, 10**18)

    @pytest.mark.parametrize("name", ["max_macs", "max_params"])
    @pytest.mark.parametrize("limit", [0, -5])
    def test_a_limit_below_one_is_refused(self, name: str, limit: int) -> None:
        with pytest.raises(ConfigError, match=f"{name} must be >= 1, got {limit}"):
            Budget(**{name: limit})


class TestFeasibility:
    def test_the_cost_of_the_smallest_student_is_enough(self) -> None:
        check_feasible(Budget(MACS, PARAMS), SPACE, 32, 10)

    @pytest.mark.parametrize("budget", [Budget(MACS - 1), Budget(max_params=PARAMS - 1), Budget(MACS, PARAMS - 1)])
    def test_less_is_refused_with_the_cost_of_the_smallest_student(self, budget: Budget) -> None:
        with pytest.raises(BudgetError, match=f"{MACS} MACs and {PARAMS} parameters"):
            check_feasible(budget, SPACE, 32, 10)

    @pytest.mark.parametrize("name", sorted(PRESETS))
    def test_the_student_of_fewest_macs_has_the_fewest_parameters_too(self, name: str) -> None:
        # Stages are independent, so it is enough that no student with one other row has fewer.
        space = PRESETS[name]
        smallest = space.smallest
        fewest = count_params(smallest, 10)
        for menu, stage in zip(space._menus, range(4), strict=True):
            for row in menu.rows:
                other = type(smallest)((*smallest.widths[:stage], row, *smallest.widths[stage + 1 :]))
                assert count_params(other, 10) >= fewest
