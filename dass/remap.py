"""A student's initial weights as slices of its teacher's (algorithms: section 2). Copying only: no data, no training.

A mode answers two questions, and both answers are pure functions of sizes: which block of the teacher a block of the
student reads (`teacher_block`), and which channels of it are kept (`kept_channels`), on the output and the input axis
alike.
"""

from collections.abc import Mapping

import torch

from dass.cost import IMAGE_CHANNELS
from dass.errors import ConfigError, SpaceError
from dass.networks import build
from dass.records import Init, Student

_BN_VECTORS = ("weight", "bias", "running_mean", "running_var")


def kept_channels(num_teacher: int, num_student: int, mode: Init) -> torch.Tensor:
    """The teacher's channels that the student keeps, ascending, int64 (num_student,); errors as in `channel_slice`."""
    return torch.arange(num_teacher)[channel_slice(num_teacher, num_student, mode)]


def channel_slice(num_teacher: int, num_student: int, mode: Init) -> slice:
    """The same as a slice.

    Leading ones (`copy_paste_first`), trailing ones (`copy_paste_last`), or every floor(teacher / student)-th from 0
    (both uniform modes), which are the leading ones again as soon as the student keeps more than half.

    Raises:
        SpaceError: the student has more channels than the teacher, or none.
        ConfigError: the mode copies nothing.
    """
    if not 1 <= num_student <= num_teacher:
        raise SpaceError(
            f"a student must keep between 1 and all {num_teacher} channels of its teacher, got {num_student}; "
            "use a teacher that is at least as wide as the student everywhere"
        )
    if mode == "copy_paste_first":
        return slice(0, num_student)
    if mode == "copy_paste_last":
        return slice(num_teacher - num_student, num_teacher)
    if mode in ("copy_paste_uniform", "copy_paste_uniform_last"):
        step = num_teacher // num_student
        return slice(0, num_student * step, step)
    raise ConfigError(f"channels are kept only by the copy_paste modes, got {mode!r}; choose one of those")


def teacher_block(teacher_depth: int, student_depth: int, block: int, mode: Init) -> int:
    """The teacher's block, counted from 0 in its stage, that block `block` of the student's stage reads.

    The `last` modes align the two stages at their ends, the others at their beginnings.

    Raises:
        SpaceError: the student's stage is deeper than the teacher's.
        ConfigError: the mode copies nothing.
    """
    if not 0 <= block < student_depth <= teacher_depth:
        raise SpaceError(
            f"a block must lie in a stage of at most the teacher's {teacher_depth} blocks, got block {block} of "
            f"{student_depth}; use a teacher that is at least as deep as the student"
        )
    if mode in ("copy_paste_first", "copy_paste_uniform"):
        return block
    if mode in ("copy_paste_last", "copy_paste_uniform_last"):
        return teacher_depth - student_depth + block
    raise ConfigError(f"blocks are read only by the copy_paste modes, got {mode!r}; choose one of those")


def entering_width(student: Student, stage: int, block: int) -> int:
    """Channels that reach a block (stage and block counted from 0); the stem is as wide as the first block."""
    if block:
        return student.widths[stage][block - 1]
    return student.widths[stage - 1][-1] if stage else student.widths[0][0]


def remap(
    teacher_state: Mapping[str, torch.Tensor],
    teacher: Student,
    student: Student,
    mode: Init = "copy_paste_first",
    *,
    rng: torch.Generator | None = None,
    consistent_stem: bool = False,
) -> dict[str, torch.Tensor]:
    """The complete state dict of the student: own memory, the teacher's dtypes and device.

    The stem keeps leading channels in every mode, the classifier is copied whole, and every batch norm follows the
    output channels of its convolution; its batch counter is that of the first batch norm of the teacher's stage.

    mode: `scratch` copies nothing, not even stem and classifier, and draws all weights from `rng`.
    consistent_stem: let the stem follow `mode` too.
        Differs: the released code knows leading channels only, so in the other modes the first block reads channels
        that the stem does not give.

    Raises:
        SpaceError: the state is not one of `teacher`, or the student is wider or deeper than the teacher, or its last
            block is not as wide as the teacher's.
        ConfigError: `scratch` without `rng`.
    """
    head = _head(teacher_state, teacher)
    if mode == "scratch":
        return _scratch(head["head.weight"], student, rng)
    _check_ends(teacher, student)
    stem_mode: Init = mode if consistent_stem else "copy_paste_first"
    state = _stem(teacher_state, teacher.widths[0][0], student.widths[0][0], stem_mode)
    for stage, row in enumerate(student.widths):
        for block in range(len(row)):
            copied = _block(teacher_state, teacher, student, stage, block, mode)
            state |= {f"stages.{stage}.{block}.{name}": tensor for name, tensor in copied.items()}
    return state | {name: tensor.clone() for name, tensor in head.items()}


def _head(teacher_state: Mapping[str, torch.Tensor], teacher: Student) -> dict[str, torch.Tensor]:
    """The teacher's classifier, for as many classes as its weight has rows."""
    classes = teacher_state["head.weight"].shape[:1] if "head.weight" in teacher_state else ()
    shapes = {"head.weight": (*classes, teacher.widths[-1][-1]), "head.bias": tuple(classes)}
    return {name: _read(teacher_state, name, shape) for name, shape in shapes.items()}


def _check_ends(teacher: Student, student: Student) -> None:
    """Raise SpaceError unless both have as many stages and end equally wide."""
    if len(student.widths) != len(teacher.widths) or student.widths[-1][-1] != teacher.widths[-1][-1]:
        raise SpaceError(
            "the classifier is copied whole, so teacher and student must end equally wide after as many stages, got "
            f"{teacher.key} and {student.key}; give the student's last block the ratio 1.0"
        )


def _scratch(teacher_head: torch.Tensor, student: Student, rng: torch.Generator | None) -> dict[str, torch.Tensor]:
    """Fresh weights for as many classes as the teacher has, with its dtype and on its device."""
    if rng is None:
        raise ConfigError("mode 'scratch' draws weights and needs a generator, got rng=None; pass rng")
    network = build(student, len(teacher_head), rng)
    return dict(network.to(teacher_head.device, teacher_head.dtype).state_dict())


def _stem(
    teacher_state: Mapping[str, torch.Tensor], num_teacher: int, num_student: int, mode: Init
) -> dict[str, torch.Tensor]:
    kept = kept_channels(num_teacher, num_student, mode)
    copied = _layer(teacher_state, "stem.", "", (num_teacher, IMAGE_CHANNELS), kept, torch.arange(IMAGE_CHANNELS))
    copied["bn.num_batches_tracked"] = _read(teacher_state, "stem.bn.num_batches_tracked", ()).clone()
    return {f"stem.{name}": tensor for name, tensor in copied.items()}


def _block(
    teacher_state: Mapping[str, torch.Tensor], teacher: Student, student: Student, stage: int, block: int, mode: Init
) -> dict[str, torch.Tensor]:
    """The two layers of one block of the student; names begin at the block."""
    source = teacher_block(len(teacher.widths[stage]), len(student.widths[stage]), block, mode)
    prefix = f"stages.{stage}.{source}."
    outputs, inputs = teacher.widths[stage][source], entering_width(teacher, stage, source)
    kept_out = kept_channels(outputs, student.widths[stage][block], mode)
    kept_in = kept_channels(inputs, entering_width(student, stage, block), mode)
    copied = _layer(teacher_state, prefix, "1", (outputs, inputs), kept_out, kept_in)
    copied |= _layer(teacher_state, prefix, "2", (outputs, outputs), kept_out, kept_out)
    counter = _read(teacher_state, f"stages.{stage}.0.bn1.num_batches_tracked", ())
    return copied | {f"bn{index}.num_batches_tracked": counter.clone() for index in (1, 2)}


def _layer(
    teacher_state: Mapping[str, torch.Tensor],
    prefix: str,
    index: str,
    sizes: tuple[int, int],
    kept_out: torch.Tensor,
    kept_in: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """`conv{index}` and `bn{index}` under `prefix`, sliced; `sizes` are the teacher's (output, input) channels."""
    weight = _read(teacher_state, f"{prefix}conv{index}.weight", (*sizes, 3, 3))
    kept_out, kept_in = kept_out.to(weight.device), kept_in.to(weight.device)
    copied = {f"conv{index}.weight": weight.index_select(0, kept_out).index_select(1, kept_in)}
    for name in _BN_VECTORS:
        vector = _read(teacher_state, f"{prefix}bn{index}.{name}", sizes[:1])
        copied[f"bn{index}.{name}"] = vector.index_select(0, kept_out)
    return copied


def _read(state: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of the teacher, checked; still the teacher's own memory."""
    if name not in state or tuple(state[name].shape) != shape:
        received = f"shape {tuple(state[name].shape)}" if name in state else "nothing"
        raise SpaceError(
            f"the teacher's {name} must have shape {shape}, got {received}; give weights of the teacher's architecture"
        )
    return state[name].detach()
