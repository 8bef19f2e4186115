"""What the tests of trials train on: toy tasks, and the same trainings without ledger, Ray or interruption."""

from functools import cache

import torch

from cluster.trial import TrialTasks
from dass.meta.train import MetaConfig, MetaPredictor, MetaTraining
from dass.meta.tuning import spec_for
from tests.dass.meta.toy import spec, task

BASE = MetaConfig(episodes=9, queries=6, eval_every=1, hidden_dim=16)
TASKS = TrialTasks(spec(BASE), (task("a", 80, seed=0), task("b", 60, seed=1)), (task("c", 70, seed=2),))


@cache
def undisturbed(config: MetaConfig) -> MetaTraining[MetaPredictor]:
    """The training of this configuration at its end, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    training = MetaTraining(spec_for(config, TASKS.spec), config, TASKS.train, TASKS.valid)
    for _ in training:
        pass
    torch.set_num_threads(threads)
    return training
