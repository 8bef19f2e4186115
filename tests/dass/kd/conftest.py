"""What the tests of cohorts share: trainings that several of them look at, made once."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dass.data.batches import ResidentBatches
from dass.kd.cohort import Cohort
from dass.kd.teacher import Teacher, teacher_run
from dass.records import Run
from tests.dass.kd.tiny import DATA, RUNS, SPACE, TEACHER, TEACHER_RECIPE, Trace, make_data, trace


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    """Threads cost more than they bring at this size, and their number is a part of what fixes the bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def together() -> Trace:
    """The three runs in one cohort that yields at every step and keeps weights."""
    return trace(Cohort(RUNS, DATA, TEACHER, keep_weights=True, yield_every=1))


@pytest.fixture(scope="package")
def own() -> tuple[Run, Trace]:
    """A short training of a teacher."""
    run = teacher_run(DATA.task, SPACE, TEACHER_RECIPE)
    return run, trace(Cohort([run], DATA, None, keep_weights=True, yield_every=1))


@pytest.fixture(scope="package")
def skilled() -> tuple[ResidentBatches, Teacher]:
    """A task that is easy, and a teacher that was trained on it for long."""
    data = make_data(contrast=80)
    run = teacher_run(data.task, SPACE, replace(TEACHER_RECIPE, epochs=15, eval_every=15))
    ended = trace(Cohort([run], data, None, keep_weights=True)).ended[run.id]
    assert ended.weights is not None
    return data, Teacher(run.id, run.student, ended.weights, ended.result.best_accuracy_pct or 0)
