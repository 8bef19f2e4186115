"""What DaSS is compared with: what a user would try before a predictor, and other meta-learned predictors."""

from dass.baselines.registry import BASELINES, UNSEEDED, BaselineContext, build_baseline
from dass.baselines.scorers import FAILED, failures

__all__ = ["BASELINES", "FAILED", "UNSEEDED", "BaselineContext", "build_baseline", "failures"]
