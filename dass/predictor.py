"""The DaSS predictor: from an architecture and two functional maps to the accuracy after distillation (section 3).

Reading order: `PredictorSpec` (what it is for), `Predictor` (the network), `MetaPredictor` (network and learned inner
rates, what meta-training gives), `Adapted` (after the inner step on one teacher, what ranks students), then its file.

Shape legend: n students, k of them support, C channels of the last stage, h = w = resolution / 8, D length of the
architecture vector.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name
from torch import nn

from dass.errors import ConfigError, PredictorMismatchError
from dass.explained import check_view
from dass.meta.adapt import InnerLoop, Params, adapt
from dass.meta.episodes import Measured, Support
from dass.meta.files import match_spec, read_method, write_method
from dass.meta.layers import apply_linear, initialise, linear
from dass.records import Init
from dass.seeding import generator
from dass.spaces import get_space
from dass.spaces.summary import NUM_SIZES
from dass.units import Unit, to_percent, to_unit
from dass.windows import all_windows, convolve

InputSet = Literal["S", "A", "T", "R", "E", "SA", "ST", "AT", "AR", "AE", "ARE", "SAT", "SATR"]
Encoding = Literal["slots", "stages", "summary"]
MapNorm = Literal["none", "layer"]

MAP_CHANNELS = (128, 256)  # of the two convolutions of a map encoder, whatever the number of channels that enter
METHOD = "dass"
NUM_RELATIONS = 3  # of a student's map to the teacher's
_LEAST_NORM = 1e-6  # of a map, or its logarithm could be infinite
_LEAST_EXPLAINED = 1e-3  # the same of what a student explains
_MATCHED = ("space", "resolution", "noise_sha", "unit", "remap_mode")


@dataclass(frozen=True, kw_only=True)
class PredictorSpec:
    """What a predictor is made for and how it adapts; it travels inside the predictor's file.

    space, resolution, noise_sha, remap_mode: the maps and encodings it has learned from; others mean nothing to it.
    num_channels: C. arch_dim: D. inputs: which of student map (S), architecture (A), teacher map (T), relations of the
    two maps (R) and the share of the teacher's features that the student's explain (E, `dass.explained`) it sees. view: the
    version of that share, 0 without it. encoding: of the architecture, `slots` as it comes, `summary` by
    `SearchSpace.summarise`, or `stages`: without sizes.
    hidden_dim: width of the architecture embedding and of the fusion. unit: what the network itself puts out.
    inner_steps, guided, rate_init: the adaptation that was trained. map_norm: `layer` normalises each map as a whole.
    support_students: it adapts to so many measured students of the task; 0: to the teacher as if it were one.
    recipe: of the distillations that it has learned from, see `MethodSpec`.
    """

    space: str
    resolution: int
    num_channels: int
    arch_dim: int
    noise_sha: str
    inputs: InputSet = "SAT"
    view: int = 0
    encoding: Encoding = "slots"
    hidden_dim: int = 64
    unit: Unit = "percent"
    inner_steps: int = 1
    guided: bool = True
    rate_init: float = 0.005
    remap_mode: Init = "copy_paste_first"
    map_norm: MapNorm = "none"
    support_students: int = 0
    recipe: str = ""

    def __post_init__(self) -> None:
        for name in ("resolution", "num_channels", "arch_dim", "hidden_dim", "inner_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"predictor.{name} must be >= 1, got {getattr(self, name)}; set predictor.{name}")
        if self.support_students < 0:
            raise ConfigError(
                f"predictor.support_students must be >= 0, got {self.support_students}; set predictor.support_students"
            )
        choices = {"inputs": InputSet, "encoding": Encoding, "unit": Unit, "remap_mode": Init, "map_norm": MapNorm}
        for name, legal in choices.items():
            if getattr(self, name) not in get_args(legal):
                raise ConfigError(
                    f"predictor.{name} must be one of {', '.join(get_args(legal))}, got {getattr(self, name)!r}; "
                    f"set predictor.{name}"
                )
        if self.remap_mode == "scratch":
            raise ConfigError(
                "maps need weights remapped from a teacher, got remap_mode 'scratch'; use a copy_paste mode"
            )
        if not math.isfinite(self.rate_init):
            raise ConfigError(
                f"predictor.rate_init must be finite, got {self.rate_init}; set predictor.rate_init=0.005"
            )


class Inputs(NamedTuple):
    """What the network sees of n students of one teacher: maps (n, C, h, w), arch (n, D), teacher_map (C, h, w).

    explained: (n,), 1 for the teacher. Of what is not among its inputs it reads nothing.
    """

    maps: torch.Tensor
    arch: torch.Tensor
    teacher_map: torch.Tensor
    explained: torch.Tensor | None = None


class Prepared(NamedTuple):
    """The same as the first layers read it: windows (n, h', w', 9 C), arch (n, D), teacher (1, h', w', 9 C), relations.

    arch: encoded, D the length of the encoding. relations: (n, NUM_RELATIONS), see `relate`. explained: (n, 1), logarithms.
    No weight has a part in it, so that training makes it once. What is not read is empty.
    """

    windows: torch.Tensor
    arch: torch.Tensor
    teacher: torch.Tensor
    relations: torch.Tensor
    explained: torch.Tensor


class Predictor(nn.Module):
    """The network: one encoder per input, concatenated in the order S, A, T, R, E, and a fusion with one hidden tanh layer.

    Weights are drawn from PyTorch's default distributions with a generator of `seed`, on the CPU; the global random
    number generator is neither read nor moved. Nothing couples the students of a batch.
    """

    def __init__(self, spec: PredictorSpec, seed: int) -> None:
        super().__init__()
        self.spec = spec
        widths = {"S": MAP_CHANNELS[-1], "A": spec.hidden_dim, "T": MAP_CHANNELS[-1]}
        widths |= {"R": spec.hidden_dim, "E": spec.hidden_dim}
        self._space = None if spec.encoding == "slots" else get_space(spec.space)
        if "S" in spec.inputs:
            self.student_encoder = _map_encoder(spec.num_channels)
        if "A" in spec.inputs:
            self.arch_encoder = linear(self.encoding_dim, spec.hidden_dim)
        if "T" in spec.inputs:
            self.teacher_encoder = _map_encoder(spec.num_channels)
        if "R" in spec.inputs:
            self.relation_encoder = linear(NUM_RELATIONS, spec.hidden_dim)
        if "E" in spec.inputs:
            self.explained_encoder = linear(1, spec.hidden_dim)
        self.fusion = linear(sum(widths[name] for name in spec.inputs), spec.hidden_dim)
        self.head = linear(spec.hidden_dim, 1)
        initialise(self, generator("predictor", seed))
        # As windows are: the filters are then matrices as they lie in memory.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        student_maps: torch.Tensor,
        arch: torch.Tensor,
        teacher_map: torch.Tensor,
        explained: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(n, 1) predictions in `spec.unit`; for the arguments see `Inputs`."""
        inputs = self.prepare(Inputs(student_maps, arch, teacher_map, explained))
        return self.call(dict(self.named_parameters()), inputs).unsqueeze(1)

    def prepare(self, inputs: Inputs) -> Prepared:
        """All that can be done to the inputs before the weights are known."""
        given = {"S": inputs.maps, "T": inputs.teacher_map[None]}
        read = [
            all_windows(self.normalise(maps)) if name in self.spec.inputs else inputs.arch.new_empty(0)
            for name, maps in given.items()
        ]
        relations = self.relate(inputs.maps, inputs.teacher_map)
        explained = self.compare(inputs.explained, inputs.arch)
        return Prepared(read[0], self.encode(inputs.arch), read[1], relations, explained)

    def encode(self, arch: torch.Tensor) -> torch.Tensor:
        """Architectures (n, D) as the spec's encoding has them."""
        return arch if self._space is None else self._space.summarise(arch)[:, : self.encoding_dim]

    @property
    def encoding_dim(self) -> int:
        """Length of an encoded architecture."""
        if self._space is None:
            return self.spec.arch_dim
        return self._space.summary_dim - (NUM_SIZES if self.spec.encoding == "stages" else 0)

    def compare(self, explained: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """Logarithms (n, 1) of the shares of the teacher's features that students explain (n,), zero for the teacher.

        Empty, as `like`, where they are not among the inputs; PredictorMismatchError where they are, and are not given.
        """
        if "E" not in self.spec.inputs:
            return like.new_empty(len(like), 0)
        if explained is None:
            raise PredictorMismatchError("a predictor with input E needs what students explain, got none; give it")
        return explained.clamp_min(_LEAST_EXPLAINED).log()[:, None]

    def relate(self, maps: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
        """How near maps (n, C, h, w) are to the teacher's (C, h, w): (n, NUM_RELATIONS), zero for the teacher itself (ours).

        One less the cosine of the two maps, the same of their means over places, and the logarithm of the ratio of their
        norms. Empty where relations are not among the inputs.
        """
        if "R" not in self.spec.inputs:
            return maps.new_empty(len(maps), 0)
        own, teachers = maps.flatten(1), teacher_map[None].flatten(1)
        far = 1 - F.cosine_similarity(own, teachers)
        far_in_mean = 1 - F.cosine_similarity(maps.mean(dim=(2, 3)), teacher_map[None].mean(dim=(2, 3)))
        size, teachers_size = (each.norm(dim=1).clamp_min(_LEAST_NORM) for each in (own, teachers))
        return torch.stack([far, far_in_mean, (size / teachers_size).log()], dim=1)

    def normalise(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps (n, C, h, w) as the encoders want them, (n, h, w, C)."""
        if self.spec.map_norm == "layer":
            maps = F.layer_norm(maps, maps.shape[1:])
        return maps.permute(0, 2, 3, 1)

    def call(self, params: Params, inputs: Prepared) -> torch.Tensor:
        """(n,) predictions in `spec.unit` with `params` in the place of the network's own, which play no part."""
        parts = []
        if "S" in self.spec.inputs:
            parts.append(_encode_maps(params, "student_encoder", inputs.windows))
        if "A" in self.spec.inputs:
            parts.append(apply_linear(params, "arch_encoder", inputs.arch))
        if "T" in self.spec.inputs:
            encoded = _encode_maps(params, "teacher_encoder", inputs.teacher)
            parts.append(encoded.expand(len(inputs.arch), -1))
        if "R" in self.spec.inputs:
            parts.append(apply_linear(params, "relation_encoder", inputs.relations))
        if "E" in self.spec.inputs:
            parts.append(apply_linear(params, "explained_encoder", inputs.explained))
        hidden = torch.tanh(apply_linear(params, "fusion", torch.cat(parts, dim=1)))
        return apply_linear(params, "head", hidden).squeeze(1)


def _encode_maps(params: Params, encoder: str, read: torch.Tensor) -> torch.Tensor:
    """Windows (n, h', w', 9 C) to vectors (n, 256): two 3x3 convolutions of stride 2 with ReLU, the mean over places."""
    hidden = F.relu(convolve(read, params[f"{encoder}.conv1.weight"]))
    return F.relu(convolve(all_windows(hidden), params[f"{encoder}.conv2.weight"])).mean(dim=(1, 2))


def _map_encoder(num_channels: int) -> nn.ModuleDict:
    """The weights of a map encoder; `_encode_maps` says what is done with them."""
    return nn.ModuleDict({"conv1": _conv(num_channels, MAP_CHANNELS[0]), "conv2": _conv(*MAP_CHANNELS)})


def _conv(num_in: int, num_out: int) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, 3, stride=2, padding=1, bias=False, device="meta").to_empty(device="cpu")


@dataclass(frozen=True, eq=False)
class Adapted:
    """The predictor after its inner step on one teacher.

    teacher_map: (C, h, w). teacher_pct: the teacher's accuracy. num_skipped: inner steps left out for a loss that was
    not finite; the predictor then ranks as it was meta-trained.
    """

    model: Predictor
    params: Params
    teacher_map: torch.Tensor
    teacher_pct: float
    num_skipped: int = 0

    @property
    def needs_maps(self) -> bool:
        """Whether it looks at its students' maps."""
        return not {"S", "R"}.isdisjoint(self.model.spec.inputs)

    @property
    def needs_explained(self) -> bool:
        """Whether it asks what its students see of what the teacher sees."""
        return "E" in self.model.spec.inputs

    def to(self, device: torch.device) -> "Adapted":
        """The same on this device."""
        params = {name: value.to(device) for name, value in self.params.items()}
        return Adapted(self.model, params, self.teacher_map.to(device), self.teacher_pct, self.num_skipped)

    def score(self, maps: torch.Tensor, arch: torch.Tensor, explained: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted accuracy after distillation, percent, float32 (n,); see `AdaptedMethod`."""
        with torch.no_grad():
            inputs = self.model.prepare(Inputs(maps, arch, self.teacher_map, explained))
            return to_percent(self.model.call(self.params, inputs), self.model.spec.unit, self.teacher_pct)


@dataclass(frozen=True, eq=False)
class MetaPredictor:
    """What meta-training gives: the network, its learned inner rates, and whether meta-validation chose it.

    rates: same names and shapes as the network's parameters. is_selected: False when no evaluation gave a rank
    correlation, so that these are merely the last weights.
    """

    model: Predictor
    rates: Params
    is_selected: bool = True

    @property
    def spec(self) -> PredictorSpec:
        """What it was made for."""
        return self.model.spec

    @property
    def num_support(self) -> int:
        """Measured students that it adapts to; 0: to the teacher."""
        return self.spec.support_students

    @property
    def needs_explained(self) -> bool:
        """Whether E is among its inputs."""
        return "E" in self.spec.inputs

    def adapt(self, support: Support) -> Adapted:
        """Take the inner steps on the teacher, or on the measured students; on the device of the teacher's map.

        Raises:
            PredictorMismatchError: it was trained with another number of measured students.
        """
        device, loop = support.teacher_map.device, InnerLoop(self.spec.inner_steps, guided=self.spec.guided)
        # Maps are often computed in inference mode, whose tensors autograd refuses: leave the mode and copy.
        with torch.inference_mode(mode=False), torch.no_grad():
            examples = to_examples(support, self.spec.support_students)
            teacher_map = support.teacher_map.clone()
            explained = None if examples.explained is None else examples.explained.to(device)
            read = self.model.prepare(
                Inputs(examples.maps.to(device), examples.arch.to(device), teacher_map, explained)
            )
            targets = to_unit(examples.targets_pct.to(device), self.spec.unit, support.teacher_accuracy_pct)
            params = {name: value.detach().to(device) for name, value in self.model.named_parameters()}
            rates = {name: value.to(device) for name, value in self.rates.items()}
            adapted = adapt(self.model.call, params, rates, read, targets, loop)
        return Adapted(self.model, adapted.params, teacher_map, support.teacher_accuracy_pct, adapted.num_skipped)

    def save(self) -> bytes:
        """The predictor's file; `load_predictor` reads it."""
        return save_predictor(self.model, self.rates, is_selected=self.is_selected)


def to_examples(support: Support, num_students: int) -> Measured:
    """The support examples, as copies: so many measured students, or for 0 the teacher as a student of itself.

    Raises:
        PredictorMismatchError: there are more or fewer measured students.
    """
    received = 0 if support.students is None else len(support.students.arch)
    if received != num_students:
        raise PredictorMismatchError(
            f"a predictor adapts to as many measured students as it was trained with, {num_students}, got {received}; "
            "give it that many records of the task"
        )
    if support.students is not None:
        return support.students.clone()
    one = support.teacher_map.new_ones(1)
    return Measured(
        support.teacher_arch[None].clone(), support.teacher_map[None].clone(), one * support.teacher_accuracy_pct, one
    )


def save_predictor(model: Predictor, rates: Params, *, is_selected: bool = True) -> bytes:
    """Weights, learned rates and spec in one safetensors block."""
    tensors: dict[str, torch.Tensor] = {f"phi.{name}": value for name, value in model.named_parameters()}
    tensors |= {f"rate.{name}": value for name, value in rates.items()}
    return write_method(METHOD, model.spec, tensors, is_selected=is_selected)


def load_predictor(data: bytes, *, expect: PredictorSpec | None = None, legacy_alpha: bool = False) -> MetaPredictor:
    """The predictor of a file that `save_predictor` made.

    expect: its space, resolution, noise_sha, unit and remap_mode must be the file's.
    legacy_alpha: put the constant initial rate in the place of the learned ones, as the released code does, which does
    not store them.

    Raises:
        PredictorMismatchError: the predictor was made for something else than expected, which is named, or is of
            another method.
        SchemaTooNewError: a newer version of this package wrote it.
        StoreError: the bytes are not a complete predictor.
    """
    with read_method(data, METHOD, PredictorSpec) as file:
        if _least_weights(file.spec) > file.num_weights:
            raise TypeError("fewer weights than its spec asks for")  # before a network of any size is made
        match_spec(file.spec, expect, _MATCHED)
        if "E" in file.spec.inputs:
            check_view(file.spec.view)
        model = Predictor(file.spec, seed=0)
        model.load_state_dict({name: file.tensors[f"phi.{name}"] for name, _ in model.named_parameters()})
        rates = {name: file.tensors[f"rate.{name}"] for name, _ in model.named_parameters()}
    if legacy_alpha:
        rates = {name: torch.full_like(rate, file.spec.rate_init) for name, rate in rates.items()}
    return MetaPredictor(model, rates, is_selected=file.is_selected)


def _least_weights(spec: PredictorSpec) -> int:
    """A lower bound of the weights: those of the layers whose size the spec decides."""
    maps = 9 * spec.num_channels * MAP_CHANNELS[0] * sum(name in spec.inputs for name in "ST")
    reads_slots = "A" in spec.inputs and spec.encoding == "slots"
    return maps + spec.hidden_dim * (spec.arch_dim if reads_slots else 1)
