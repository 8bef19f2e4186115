"""Functional maps of thousands of remapped students, exact and batched (DaSS, section 3; contract 5).

A student's map is the output of its last stage for one fixed noise image, computed with weights remapped from the
teacher, in eval mode. Every student is a slice of the teacher, so nothing is built and nothing is copied per student:

- students are nodes of a prefix tree: two that begin with the same blocks share that part of the computation;
- nodes of one depth whose next block has the same widths use the same slice of the teacher's filters, so they are one
  batched convolution;
- batch norm is folded into the filters once per teacher (in eval mode it is an affine map of the output channels);
- maps and filters are channels-last, in which a CPU's convolutions are fastest and a slice of channels is a view;
- wide convolutions on a CPU take Winograd's minimal filtering, exact to some 1e-6 of the largest output;
- maps that pass from level to level lie in memory that is used again, since fresh pages are slow.

The maps equal those of each student built, remapped and run alone, to float tolerance. The same way lead images of a task
to what a classifier would see of them (`features`).

Shape legend: n candidates, B images (1 for noise), C channels, H = W = R/8 for resolution R; inside, maps are
(nodes, B, H, W, C).
"""

import copy
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass import winograd
from dass.cost import count_shared_macs
from dass.errors import ConfigError
from dass.kernels import keep_kernels
from dass.networks.small_resnet import BN_EPS, STRIDES
from dass.records import Init, Student
from dass.remap import channel_slice, teacher_block
from dass.seeding import generator
from dass.tensors import open_tensors, packed_sha256
from dass.threads import workers

keep_kernels()  # here, because it must come before the first convolution

NOISE_SEED = 0
_KEPT_NOISE = Path(__file__).with_name("noise.safetensors")
CHUNK = 250  # the most students whose maps are computed together, by one thread
CHUNK_BYTES = 128 << 20  # of their maps of one level, as large as those of the first
STREAM_BYTES = 64 << 20  # the same where a search goes on for long: a tenth slower, and 2 GB are enough for any number
FEWEST = 16  # students that are computed together at least: where they have no room with all images, images are parted
PIECE_BYTES = 8 << 20  # of maps that pass a block together on a CPU: larger pieces of memory are hard to use again
WIDE = 96 * 96  # channels in times channels out, from which Winograd's filtering is the faster one on a CPU

MapPrecision = Literal["float32", "bfloat16"]
Maps = dict[int, torch.Tensor]  # width -> maps (nodes, B, H, W, width)
Child = tuple[int, int, int, int]  # width and row of the parent, block of the teacher, width
Site = tuple[int, int]  # where a node's map lies: (width, row in the maps of that width)


def draw_noise(resolution: int, seed: int = NOISE_SEED) -> torch.Tensor:
    """The fixed image z ~ N(0, 1) of shape (1, 3, R, R), from a CPU generator of its own.

    The package keeps those of 8, 16, 32 and 64 px: a CPU of another kind draws other last bits, and to a predictor that is
    another noise.
    """
    kept = open_tensors(_KEPT_NOISE)[0] if seed == NOISE_SEED else {}
    if str(resolution) in kept:
        return kept[str(resolution)].clone()
    return torch.randn(1, 3, resolution, resolution, generator=generator("noise", seed, resolution))


def noise_sha(noise: torch.Tensor) -> str:
    """The SHA-256 of the noise image; it travels in a predictor's file."""
    return packed_sha256({"noise": noise})


@dataclass(frozen=True)
class _Filter:
    """A 3x3 convolution with its batch norm folded in: weight (out, in, 3, 3), bias (out,).

    products: the weight as `winograd` takes it; None where it is narrow or bfloat16, and on a GPU, whose library chooses
    itself.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    products: torch.Tensor | None

    @classmethod
    def of(cls, weight: torch.Tensor, bias: torch.Tensor) -> "_Filter":
        is_exact = weight.device.type == "cpu" and weight.dtype == torch.float32
        is_wide = weight.shape[0] * weight.shape[1] >= WIDE
        products = winograd.transform(weight) if is_wide and is_exact else None
        return cls(weight.contiguous(memory_format=torch.channels_last), bias, products)

    @classmethod
    def fold(
        cls, state: Mapping[str, torch.Tensor], conv: str, norm: str, dtype: torch.dtype = torch.float32
    ) -> "_Filter":
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BN_EPS)
        weight = state[f"{conv}.weight"] * scale[:, None, None, None]
        return cls.of(weight.to(dtype), (state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale).to(dtype))

    def slice(self, out: slice, into: slice) -> "_Filter":
        products = None if self.products is None else self.products[:, into, out]
        return _Filter(self.weight[out, into], self.bias[out], products)

    def to(self, device: torch.device) -> "_Filter":
        return self if device == self.weight.device else _Filter.of(self.weight.to(device), self.bias.to(device))

    def __call__(self, maps_NHWC: torch.Tensor, stride: int = 1) -> torch.Tensor:
        num_out, num_in = self.weight.shape[:2]
        is_tiled = maps_NHWC.shape[1] % winograd.TILE == 0
        if self.products is not None and stride == 1 and is_tiled and num_in * num_out >= WIDE:
            return winograd.convolve(maps_NHWC, self.products, self.bias)
        maps_NCHW = maps_NHWC.permute(0, 3, 1, 2)
        return F.conv2d(maps_NCHW, self.weight, self.bias, stride=stride, padding=1).permute(0, 2, 3, 1)


class _Scratch:
    """Memory for the maps of one chunk at a time: what a level leaves behind is the room of the level after the next."""

    def __init__(self, like: torch.Tensor) -> None:
        self._like = like
        self._buffers: dict[str, torch.Tensor] = {}

    def room(self, name: str, size: int) -> torch.Tensor:
        """(size,): whatever was written under this name before is lost."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = self._like.new_empty(size)
        return buffer[:size]


class _Shelf:
    """The maps of one level by width, side by side in `room`, written as they come."""

    def __init__(self, nums: Mapping[int, int], places: tuple[int, int, int], room: torch.Tensor) -> None:
        sizes = [num * math.prod(places) * width for width, num in nums.items()]
        self.maps: Maps = {
            width: flat.view(num, *places, width)
            for (width, num), flat in zip(nums.items(), torch.split(room, sizes), strict=True)
        }
        self._filled: Counter[int] = Counter()

    def take(self, width: int, num: int) -> tuple[torch.Tensor, int]:
        """Room for the next `num` maps of this width, and the row at which it begins."""
        first = self._filled[width]
        self._filled[width] += num
        return self.maps[width][first : first + num], first


class Embedder:
    """Maps of students remapped from one teacher, for one noise image, or for images of a task.

    Args:
        teacher_state: the teacher's state dict.
        teacher: the teacher's architecture.
        images: (B, 3, R, R), such as `draw_noise` gives; their device is the device of the computation.
        mode: how students are remapped; `scratch` has no teacher to slice and is refused.
        precision: `bfloat16` holds filters and maps with 7 bits; what that costs and brings, tests/benchmarks tells
            (`embed`). Maps come as float32 either way.
    """

    def __init__(
        self,
        teacher_state: Mapping[str, torch.Tensor],
        teacher: Student,
        images: torch.Tensor,
        mode: Init = "copy_paste_first",
        precision: MapPrecision = "float32",
    ) -> None:
        if mode == "scratch":
            raise ConfigError("maps need weights remapped from a teacher, got mode 'scratch'; use a copy_paste mode")
        self._teacher = teacher
        self._mode: Init = mode
        state = {name: tensor.to(images.device) for name, tensor in teacher_state.items()}
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        self._filters = {
            (stage, block, conv): _Filter.fold(
                state, f"stages.{stage}.{block}.conv{conv}", f"stages.{stage}.{block}.bn{conv}", dtype
            )
            for stage, depth in enumerate(teacher.depths)
            for block in range(depth)
            for conv in (1, 2)
        }
        with torch.inference_mode():
            stem = _Filter.fold(state, "stem.conv", "stem.bn")
            self._stem = stem(images.permute(0, 2, 3, 1).contiguous()).relu_().to(dtype)[None]
        self._idle: list[_Scratch] = []  # as many as chunks were computed at the same time
        self._pairs: dict[tuple[int, int, int, int], tuple[_Filter, _Filter]] = {}  # by stage, block, widths in and out

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._stem.device

    def to(self, device: torch.device) -> "Embedder":
        """The same on this device."""
        moved = copy.copy(self)
        moved._filters = {place: each.to(device) for place, each in self._filters.items()}
        moved._stem = self._stem.to(device)
        return moved

    def __getstate__(self) -> dict[str, object]:
        """Without memory to use again and sliced filters: a copy, by `to` or in another process, makes its own."""
        return {**vars(self), "_idle": [], "_pairs": {}}

    @property
    def chunk(self) -> int:
        """How many students `maps` and `features` compute together where nothing else is said."""
        return self._fitting(CHUNK_BYTES)

    @property
    def stream_chunk(self) -> int:
        """How many students `stream` computes together."""
        return self._fitting(STREAM_BYTES)

    def maps(self, students: Sequence[Student], chunk: int | None = None) -> torch.Tensor:
        """float32 (n, C, H, W) of the first image, in the order of `students`; C is the width of the teacher's last block."""
        side = self._side(len(STRIDES) - 1)
        maps = torch.empty(len(students), self._num_channels, side, side, device=self.device)
        return self._fill(maps, students, chunk or self.chunk, lambda found: found[:, 0].permute(0, 3, 1, 2))

    def features(self, students: Sequence[Student], chunk: int | None = None) -> torch.Tensor:
        """float32 (n, B, C), the means of the maps over their places: what the classifier of each student sees of images."""
        chunk, at_once = chunk or self.chunk, self._images_at_once
        features = torch.empty(len(students), self._stem.shape[1], self._num_channels, device=self.device)
        for stem, room in zip(
            torch.split(self._stem, at_once, dim=1), torch.split(features, at_once, dim=1), strict=True
        ):
            part = copy.copy(self)
            part._stem, part._idle, part._pairs = stem, self._idle, self._pairs
            part._fill(room, students, chunk, lambda found: found.mean(dim=(2, 3)))
        return features

    def stream(self, students: Sequence[Student]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """`maps` in chunks that share prefixes, as (indices into `students`, maps); memory is that of one chunk."""
        for indices in cut(students, self.stream_chunk):
            yield indices, self._chunk([students[index] for index in indices])[:, 0].permute(0, 3, 1, 2)

    def _fill(
        self,
        room: torch.Tensor,
        students: Sequence[Student],
        chunk: int,
        read: Callable[[torch.Tensor], torch.Tensor],
    ) -> torch.Tensor:
        """`room`, a row for each student, filled with what `read` makes of the maps (n, B, H, W, C) of a chunk."""
        if not students:
            raise ValueError("maps need at least one student, got none")

        @torch.inference_mode()  # the room may be of it, and other threads do not have their caller's mode
        def fill(indices: list[int]) -> None:
            room[indices] = read(self._chunk([students[index] for index in indices]))

        def macs(indices: list[int]) -> int:
            return count_shared_macs((students[index] for index in indices), resolution=8)  # or any other

        with workers(self._stem.device) as each:  # most work first: they end together
            for _ in each(fill, sorted(cut(students, chunk), key=macs, reverse=True)):
                pass
        return room

    @property
    def _image_bytes(self) -> int:
        """Of the map of one image that enters the first stage, the largest of one student."""
        return self._stem[0, 0].nbytes

    @property
    def _images_at_once(self) -> int:
        return min(self._stem.shape[1], max(1, CHUNK_BYTES // (FEWEST * self._image_bytes)))

    def _fitting(self, room_bytes: int) -> int:
        return min(CHUNK, max(1, room_bytes // (self._images_at_once * self._image_bytes)))

    @property
    def _num_channels(self) -> int:
        return self._teacher.widths[-1][-1]

    @torch.inference_mode()
    def _chunk(self, students: Sequence[Student]) -> torch.Tensor:
        """Maps (n, B, H, W, C) of one chunk, stage by stage."""
        entering = [student.widths[0][0] for student in students]
        sites: list[Site] = [(width, 0) for width in entering]
        maps = {width: self._stem[..., :width] for width in entering}
        try:
            scratch = self._idle.pop()
        except IndexError:  # asked first, another thread might take the last one meanwhile
            scratch = _Scratch(self._stem)
        for stage in range(len(STRIDES)):
            maps, sites = self._stage(stage, [student.widths[stage] for student in students], maps, sites, scratch)
        ((_, last),) = maps.items()
        rows = _index([row for _, row in sites], last)
        found = last.index_select(0, rows).float()
        self._idle.append(scratch)
        return found

    def _stage(
        self, stage: int, rows: list[tuple[int, ...]], maps: Maps, sites: list[Site], scratch: _Scratch
    ) -> tuple[Maps, list[Site]]:
        """Carry every node through one stage; shallow students leave it earlier than deep ones.

        Maps as wide as those that leave lie in a shelf of the whole stage, so that none is moved when it does.
        """
        depth = self._teacher.depths[stage]
        paths = [
            tuple((teacher_block(depth, len(row), level, self._mode), width) for level, width in enumerate(row))
            for row in rows
        ]
        ends = {row[-1] for row in rows}
        nodes = {(site, path[:end]) for site, path in zip(sites, paths, strict=True) for end in range(1, 1 + len(path))}
        widths = (path[-1][1] for _, path in nodes if path[-1][1] in ends)
        left = self._shelf(stage, widths, scratch, f"left {stage % 2}")
        sites = list(sites)
        for level in range(max(map(len, paths))):
            children = {i: (*sites[i], *path[level]) for i, path in enumerate(paths) if level < len(path)}
            maps, where = self._level(stage, level, set(children.values()), maps, left, scratch)
            for i, child in children.items():
                sites[i] = where[child]
        return left.maps, sites

    def _level(
        self, stage: int, level: int, children: set[Child], maps: Maps, left: _Shelf, scratch: _Scratch
    ) -> tuple[Maps, dict[Child, Site]]:
        """One block for all children, grouped by filters; the maps of the level and of `left`, and where each child lies."""
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for parent_width, row, block, width in sorted(children):
            groups[parent_width, block, width].append(row)
        stride = STRIDES[stage] if level == 0 else 1
        others = (width for *_, width in children if width not in left.maps)
        shelf = self._shelf(stage, others, scratch, f"level {level % 2}")
        where: dict[Child, Site] = {}
        for (parent_width, block, width), rows in groups.items():
            room, first = (left if width in left.maps else shelf).take(width, len(rows))
            piece_bytes = PIECE_BYTES if room.device.type == "cpu" else room.nbytes
            at_once = max(1, piece_bytes // room[0].nbytes)
            for begin in range(0, len(rows), at_once):
                piece = slice(begin, begin + at_once)
                self._block(stage, block, _rows(maps[parent_width], rows[piece]), stride, room[piece])
            for offset, row in enumerate(rows):
                where[parent_width, row, block, width] = (width, first + offset)
        return {**shelf.maps, **left.maps}, where

    def _block(self, stage: int, block: int, maps: torch.Tensor, stride: int, room: torch.Tensor) -> None:
        """The teacher's block, sliced to maps.shape[-1] -> room.shape[-1] channels, into `room`."""
        first, second = self._pair(stage, block, maps.shape[-1], room.shape[-1])
        # the shortcut is without parameters: channels are cut off or missing, the places halved by their maximum
        maps, room = maps.flatten(0, 1), room.flatten(0, 1)
        inner = second(first(maps, stride).relu_())
        kept = maps[..., : room.shape[-1]]
        if stride == 2:
            kept = F.max_pool2d(kept.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        num_kept = kept.shape[-1]
        torch.add(inner[..., :num_kept], kept, out=room[..., :num_kept])
        if num_kept < room.shape[-1]:
            room[..., num_kept:] = inner[..., num_kept:]
        room.relu_()

    def _pair(self, stage: int, block: int, width_in: int, width_out: int) -> tuple[_Filter, _Filter]:
        """The filters of the teacher's block, sliced to these widths."""
        key = (stage, block, width_in, width_out)
        if key not in self._pairs:
            first, second = self._filters[stage, block, 1], self._filters[stage, block, 2]
            num_out, num_in = first.weight.shape[:2]
            out, into = channel_slice(num_out, width_out, self._mode), channel_slice(num_in, width_in, self._mode)
            self._pairs[key] = first.slice(out, into), second.slice(out, out)
        return self._pairs[key]

    def _shelf(self, stage: int, widths: Iterable[int], scratch: _Scratch, name: str) -> _Shelf:
        nums, side = Counter(widths), self._side(stage)
        places = (int(self._stem.shape[1]), side, side)
        return _Shelf(
            nums, places, scratch.room(name, math.prod(places) * sum(width * num for width, num in nums.items()))
        )

    def _side(self, stage: int) -> int:
        """Of a stage's maps."""
        return int(self._stem.shape[2]) // math.prod(STRIDES[: stage + 1])


def _rows(maps: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """These maps, in ascending order: without a copy where they lie side by side."""
    first, last = rows[0], rows[-1] + 1
    return maps[first:last] if last - first == len(rows) else maps.index_select(0, _index(rows, maps))


def _index(rows: list[int], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(rows, device=like.device)


def cut(students: Sequence[Student], chunk: int) -> list[list[int]]:
    """The students' indices in even chunks, in which neighbours share prefixes."""
    order = sorted(range(len(students)), key=lambda index: students[index].widths)
    num = math.ceil(len(order) / chunk)
    return [order[len(order) * number // num : len(order) * (number + 1) // num] for number in range(num)]
