"""MAML and Meta-SGD on the architecture alone, and the variants of DaSS that show what each part of it is worth (6.1).

All are the DaSS predictor under other settings of `MetaConfig`, so `MetaTraining` trains them and `load_predictor` reads
them. Architecture-only predictors know a task by what they adapt to: its teacher's accuracy, or with `support_students=k`
the accuracies of k students of it. Without adaptation they rank alike on every task.
"""

from collections.abc import Mapping
from dataclasses import replace

from dass.meta.train import MetaConfig


def maml(base: MetaConfig) -> MetaConfig:
    """MAML: the architecture alone, one fixed inner rate."""
    return replace(base, inputs="A", learn_rates=False)


def meta_sgd(base: MetaConfig) -> MetaConfig:
    """Meta-SGD: the architecture alone, a learned inner rate for every weight."""
    return replace(base, inputs="A", learn_rates=True)


def unguided(base: MetaConfig) -> MetaConfig:
    """DaSS that does not adapt, in training as little as afterwards; the teacher is still seen through its map."""
    return replace(base, guided=False, support_students=0)


def ablations(base: MetaConfig) -> Mapping[str, MetaConfig]:
    """One setting changed at a time, by a name that says which, and `paper`: all of them as the released code has them.

    What the base has already is left out.
    """
    changed = {
        "inputs A": replace(base, inputs="A"),
        "inputs SA": replace(base, inputs="SA"),
        "inputs ST": replace(base, inputs="ST"),
        "inputs STA": replace(base, inputs="SAT"),  # the same set: the order S, A, T holds however it is spelled
        "inputs AR": replace(base, inputs="AR"),
        "inputs AE": replace(base, inputs="AE"),
        "encoding slots": replace(base, encoding="slots"),
        "encoding stages": replace(base, encoding="stages"),
        "encoding summary": replace(base, encoding="summary"),
        "paper": MetaConfig(seed=base.seed),
        "unguided": unguided(base),
        "first order": replace(base, order="first"),
        "second order": replace(base, order="second"),
        **{f"{steps} inner steps": replace(base, inner_steps=steps) for steps in (1, 2, 3)},
        "fixed rates": replace(base, learn_rates=False),
        "loss squared": replace(base, loss="squared"),
        "loss correlation": replace(base, loss="correlation"),
        "unit percent": replace(base, unit="percent"),
        "unit task_free": replace(base, unit="task_free"),
        "unit fraction": replace(base, unit="fraction"),
        "unit teacher": replace(base, unit="teacher"),
    }
    return {name: config for name, config in changed.items() if config != base}
