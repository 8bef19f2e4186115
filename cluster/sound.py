"""What a record may hold. A value that no run can leave would spoil every analysis that reads it, or fit no column.

Losses may be infinite or NaN, because that is what a run diverges to; accuracies are counted and never are.
"""

import math
from collections.abc import Iterable, Iterator

from cluster.objects import is_key
from dass.records import Record

_INT32, _INT64 = 2**31, 2**63


def fault_of(record: Record) -> str:
    """The first value that no run can leave, with its rule, as an error names it; empty for a sound record."""
    return next(_faults(record), "")


def _faults(record: Record) -> Iterator[str]:
    run, result, provenance = record.run, record.result, record.provenance
    if not is_key(run.task):
        yield f"the task {run.task!r:.80}, which must be an id"
    if not -_INT64 <= run.seed < _INT64:
        yield f"the seed {run.seed!r:.80}, which must fit into 64 bits"
    for stage in run.student.widths:
        if not all(type(width) is int and 0 < width < _INT32 for width in stage):
            yield f"the widths {stage!r:.80}, which must be integers >= 1 and below {_INT32}"
    accuracies = [result.init_accuracy_pct]
    for point in result.curve:
        if type(point.epoch) is not int or not 0 <= point.epoch < _INT32:
            yield f"the epoch {point.epoch!r:.80}, which must be an integer >= 0 and below {_INT32}"
        if not (type(point.train_loss) is type(point.valid_loss) is type(point.valid_accuracy_pct) is float):
            yield f"{point!r:.200} in its curve, which must hold numbers"
        else:
            accuracies.append(point.valid_accuracy_pct)
    measured = (result.best_accuracy_pct, result.final_accuracy_pct, result.test_accuracy_pct)
    accuracies += [accuracy for accuracy in measured if accuracy is not None]
    yield from measure_faults(accuracies, record.macs, provenance.seconds)
    for name, count, end in (
        ("diverged_epoch", result.diverged_epoch or 0, _INT32),
        ("num_classes", record.num_classes, _INT32),
        ("resolution", record.resolution, _INT32),
        ("params", record.params, _INT64),
        ("threads", provenance.threads, _INT32),
        ("attempt", provenance.attempt, _INT32),
        ("incarnation", provenance.incarnation, _INT32),
    ):
        if not 0 <= count < end:
            yield f"{name} {count!r:.80}, which must be >= 0 and below {end}"
    if not _is_unicode(record):
        yield "a text that is no Unicode"


def measure_faults(accuracies_pct: Iterable[float], macs: int, seconds: float) -> Iterator[str]:
    """Those of figures that are kept without the rest of their record too."""
    for accuracy in accuracies_pct:
        if not 0 <= accuracy <= 100:
            yield f"the accuracy {accuracy}, which must be in 0..100 percent"
    if not 0 <= macs < _INT64:
        yield f"macs {macs!r:.80}, which must be >= 0 and below {_INT64}"
    if not 0 <= seconds < math.inf:
        yield f"seconds {seconds}, which must be >= 0 and finite"


def _is_unicode(record: Record) -> bool:
    """Whether a table can hold the texts: JSON can hold half a character."""
    run, provenance = record.run, record.provenance
    texts = (
        *(run.student.family, run.teacher or "", record.weights or ""),
        *(provenance.started_at, provenance.lane, provenance.device, provenance.memory_format),
        *(provenance.code_version, *provenance.versions, *provenance.versions.values()),
    )
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
