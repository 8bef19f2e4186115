"""Functional maps of thousands of remapped students, exact and batched (DaSS, section 3; contract 5).

A student's map is the output of its last stage for one fixed noise image, computed with weights remapped from the
teacher, in eval mode. Every student is a slice of the teacher, so nothing is built and nothing is copied per student:

- students are nodes of a prefix tree: two that begin with the same blocks share that part of the computation;
- nodes of one depth whose next block has the same widths use the same slice of the teacher's filters, so they are one
  batched convolution;
- batch norm is folded into the filters once per teacher (in eval mode it is an affine map of the output channels).

The maps equal those of each student built, remapped and run alone, to float tolerance.

Shape legend: n candidates, C channels, H = W = R/8 for resolution R.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.errors import ConfigError
from dass.networks.small_resnet import BN_EPS, STRIDES, shortcut
from dass.records import Init, Student
from dass.remap import kept_channels, teacher_block
from dass.seeding import generator
from dass.tensors import pack_tensors, sha256

NOISE_SEED = 0

Site = tuple[int, int]  # where a node's map lies: (width, row in the frontier of that width)
Frontier = dict[int, torch.Tensor]  # width -> maps (nodes, width, H, W)


def draw_noise(resolution: int, seed: int = NOISE_SEED) -> torch.Tensor:
    """The fixed image z ~ N(0, 1) of shape (1, 3, R, R), from a CPU generator of its own."""
    return torch.randn(1, 3, resolution, resolution, generator=generator("noise", seed, resolution))


def noise_sha(noise: torch.Tensor) -> str:
    """The SHA-256 of the noise image; it travels in a predictor's file."""
    return sha256(pack_tensors({"noise": noise}))


@dataclass(frozen=True)
class _Filter:
    """A 3x3 convolution with its batch norm folded in: weight (out, in, 3, 3), bias (out,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fold(cls, state: Mapping[str, torch.Tensor], conv: str, norm: str) -> "_Filter":
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BN_EPS)
        weight = state[f"{conv}.weight"] * scale[:, None, None, None]
        return cls(weight, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale)

    def slice(self, out: torch.Tensor, into: torch.Tensor) -> "_Filter":
        return _Filter(self.weight[out][:, into], self.bias[out])

    def to(self, device: torch.device) -> "_Filter":
        return _Filter(self.weight.to(device), self.bias.to(device))

    def __call__(self, images: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(images, self.weight, self.bias, stride=stride, padding=1)


class Embedder:
    """Maps of students remapped from one teacher, for one noise image.

    Args:
        teacher_state: the teacher's state dict.
        teacher: the teacher's architecture.
        noise: (1, 3, R, R), see `draw_noise`; its device is the device of the computation.
        mode: how students are remapped; `scratch` has no teacher to slice and is refused.
    """

    def __init__(
        self,
        teacher_state: Mapping[str, torch.Tensor],
        teacher: Student,
        noise: torch.Tensor,
        mode: Init = "copy_paste_first",
    ) -> None:
        if mode == "scratch":
            raise ConfigError("maps need weights remapped from a teacher, got mode 'scratch'; use a copy_paste mode")
        self._teacher = teacher
        self._mode: Init = mode
        state = {name: tensor.to(noise.device) for name, tensor in teacher_state.items()}
        self._filters = {
            (stage, block, conv): _Filter.fold(
                state, f"stages.{stage}.{block}.conv{conv}", f"stages.{stage}.{block}.bn{conv}"
            )
            for stage, depth in enumerate(teacher.depths)
            for block in range(depth)
            for conv in (1, 2)
        }
        with torch.inference_mode():
            self._stem = F.relu(_Filter.fold(state, "stem.conv", "stem.bn")(noise))

    def to(self, device: torch.device) -> "Embedder":
        """The same on this device."""
        moved = copy.copy(self)
        moved._filters = {place: each.to(device) for place, each in self._filters.items()}
        moved._stem = self._stem.to(device)
        return moved

    def maps(self, students: Sequence[Student], chunk: int = 256) -> torch.Tensor:
        """float32 (n, C, H, W) in the order of `students`; C is the width of the teacher's last block."""
        maps: torch.Tensor | None = None
        for indices, part in self.stream(students, chunk):
            if maps is None:
                maps = part.new_empty((len(students), *part.shape[1:]))
            maps[indices] = part
        if maps is None:
            raise ValueError("maps need at least one student, got none")
        return maps

    def stream(self, students: Sequence[Student], chunk: int = 256) -> Iterator[tuple[list[int], torch.Tensor]]:
        """The same in chunks that share prefixes, as (indices into `students`, maps); memory is that of one chunk."""
        order = sorted(range(len(students)), key=lambda index: students[index].widths)
        for start in range(0, len(order), chunk):
            indices = order[start : start + chunk]
            with torch.inference_mode():
                maps = self._chunk([students[index] for index in indices])
            yield indices, maps

    def _chunk(self, students: Sequence[Student]) -> torch.Tensor:
        """Maps of one chunk, stage by stage."""
        stem_widths = sorted({student.widths[0][0] for student in students})
        frontier = {width: self._stem[:, :width] for width in stem_widths}
        sites = [(student.widths[0][0], 0) for student in students]
        for stage in range(len(STRIDES)):
            frontier, sites = self._stage(stage, [student.widths[stage] for student in students], frontier, sites)
        ((_, maps),) = frontier.items()
        return maps[[row for _, row in sites]]

    def _stage(
        self, stage: int, widths: list[tuple[int, ...]], frontier: Frontier, sites: list[Site]
    ) -> tuple[Frontier, list[Site]]:
        """Carry every node through one stage; shallow students leave it earlier than deep ones."""
        leavers: dict[int, list[torch.Tensor]] = defaultdict(list)  # maps that left the stage, by width
        num_left: dict[int, int] = defaultdict(int)
        final = list(sites)
        active = list(range(len(sites)))
        for level in range(max(map(len, widths))):
            blocks = [teacher_block(self._teacher.depths[stage], len(widths[i]), level, self._mode) for i in active]
            children = [(*sites[i], block, widths[i][level]) for i, block in zip(active, blocks, strict=True)]
            frontier, child_sites = self._level(stage, level, children, frontier)
            sites = list(sites)
            for i, site in zip(active, child_sites, strict=True):
                sites[i] = site
            done = [i for i in active if len(widths[i]) == level + 1]
            for width in sorted({sites[i][0] for i in done}):
                here = [i for i in done if sites[i][0] == width]
                rows = sorted({sites[i][1] for i in here})
                place = {row: num_left[width] + offset for offset, row in enumerate(rows)}
                for i in here:
                    final[i] = (width, place[sites[i][1]])
                leavers[width].append(frontier[width][rows])
                num_left[width] += len(rows)
            active = [i for i in active if len(widths[i]) > level + 1]
        return {width: torch.cat(parts) for width, parts in leavers.items()}, final

    def _level(
        self, stage: int, level: int, children: list[tuple[int, int, int, int]], frontier: Frontier
    ) -> tuple[Frontier, list[Site]]:
        """One block for all distinct children (parent width, parent row, teacher block, width), grouped by filters."""
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for parent_width, row, block, width in sorted(set(children)):
            groups[parent_width, block, width].append(row)
        stride = STRIDES[stage] if level == 0 else 1
        outputs: dict[int, list[torch.Tensor]] = defaultdict(list)
        num_rows: dict[int, int] = defaultdict(int)
        where: dict[tuple[int, int, int, int], Site] = {}
        for (parent_width, block, width), rows in groups.items():
            outputs[width].append(self._block(stage, block, frontier[parent_width][rows], width, stride))
            for offset, row in enumerate(rows):
                where[parent_width, row, block, width] = (width, num_rows[width] + offset)
            num_rows[width] += len(rows)
        return {width: torch.cat(parts) for width, parts in outputs.items()}, [where[child] for child in children]

    def _block(self, stage: int, block: int, maps: torch.Tensor, width: int, stride: int) -> torch.Tensor:
        """The teacher's block, sliced to maps.shape[1] -> width channels."""
        first, second = self._filters[stage, block, 1], self._filters[stage, block, 2]
        num_out, num_in = first.weight.shape[:2]
        out = kept_channels(num_out, width, self._mode)
        into = kept_channels(num_in, maps.shape[1], self._mode)
        hidden = F.relu(first.slice(out, into)(maps, stride))
        return F.relu(second.slice(out, out)(hidden) + shortcut(maps, width, stride))
