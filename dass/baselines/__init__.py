"""What a user would try before a predictor: sizes, zero-cost proxies, DisWOT, remapped students, short distillation."""

from dass.baselines.registry import BASELINES, BaselineContext, build_baseline
from dass.baselines.scorers import FAILED, failures

__all__ = ["BASELINES", "FAILED", "BaselineContext", "build_baseline", "failures"]
