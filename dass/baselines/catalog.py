"""Every method that ranks students, by name and group: the baselines of the registry and all that are meta-learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from typing import Any

from dass.baselines.arch_only import ablations, maml, meta_sgd, unguided
from dass.baselines.meta_d2a import MetaD2AConfig
from dass.baselines.registry import BASELINES, SHORT_KD, UNSEEDED
from dass.baselines.tans import TansConfig
from dass.embed import draw_noise, noise_sha
from dass.errors import ConfigError, DataError
from dass.meta.episodes import MetaTask
from dass.meta.guided import MetaConfig
from dass.meta.method import MetaMethod
from dass.meta.train import MetaTraining
from dass.spaces.space import SearchSpace

LearnedConfig = MetaConfig | MetaD2AConfig | TansConfig
LOOK_AT_IMAGES = (MetaD2AConfig, TansConfig)
TRIVIAL = ("params", "macs", "depth", "random")
ABLATION = "dass:"  # what the names of DaSS's variants begin with


class Group(StrEnum):
    """What kind of method it is."""

    TRIVIAL = "trivial"
    ZERO_COST = "zero-cost"
    SHORT_TRAINING = "short training"
    META_LEARNED = "meta-learned"


@dataclass(frozen=True)
class Method:
    """A method by name. learned: how it is meta-trained; None for a baseline of the registry."""

    name: str
    group: Group
    learned: LearnedConfig | None = None

    @property
    def is_seeded(self) -> bool:
        """Whether another seed may give other scores."""
        return self.name not in UNSEEDED

    @property
    def needs_images(self) -> bool:
        """Whether it looks at features of the tasks' images."""
        return isinstance(self.learned, LOOK_AT_IMAGES)

    @property
    def needs_explained(self) -> bool:
        """Whether it is, or looks at, what students explain of their teacher."""
        return "E" in self.learned.inputs if isinstance(self.learned, MetaConfig) else self.name == "explained"


@dataclass(frozen=True)
class Catalog:
    """All methods, meta-learned ones under these settings; DaSS and its relatives are variants of `meta`."""

    meta: MetaConfig = MetaConfig()
    meta_d2a: MetaD2AConfig = MetaD2AConfig()
    tans: TansConfig = TansConfig()

    @property
    def main(self) -> dict[str, Method]:
        """Every method by name, without DaSS's ablations."""
        learned: Mapping[str, LearnedConfig] = {
            "maml": maml(self.meta),
            "meta_sgd": meta_sgd(self.meta),
            "meta_d2a": self.meta_d2a,
            "tans": self.tans,
            "dass_unguided": unguided(self.meta),
            "dass": self.meta,
        }
        return {name: Method(name, _group_of(name)) for name in BASELINES} | _learned(learned)

    @property
    def ablations(self) -> dict[str, Method]:
        """DaSS with one setting changed, named such as `dass:first_order`."""
        return _learned(
            {
                f"{ABLATION}{name.replace(' ', '_')}": config
                for name, config in ablations(self.meta).items()
                if config != unguided(self.meta)
            }
        )

    def choose(self, names: Sequence[str] | None = None) -> list[Method]:
        """The methods of these names, each once and in their order; the main ones where none are given.

        Raises:
            ConfigError: a name is unknown; the message lists all.
        """
        if not names:
            return list(self.main.values())
        known = self.main | self.ablations
        if unknown := [name for name in names if name not in known]:
            nearest = get_close_matches(unknown[0], known, n=1, cutoff=0)[0]
            raise ConfigError(
                f"a method must be one of {', '.join(known)}, got {', '.join(unknown)}; did you mean {nearest}?"
            )
        return [known[name] for name in dict.fromkeys(names)]


def begin_training(
    config: LearnedConfig, space: SearchSpace, resolution: int, train: Sequence[MetaTask], valid: Sequence[MetaTask]
) -> MetaTraining[MetaMethod]:
    """The meta-training of a method on these tasks.

    Raises:
        DataError: the method looks at images, and the tasks have none. Others as `MetaTraining`.
    """
    made_for: dict[str, Any] = {
        "space": space.name,
        "resolution": resolution,
        "num_channels": space.num_channels,
        "arch_dim": space.encoding_dim,
        "noise_sha": noise_sha(draw_noise(resolution)),
    }
    if isinstance(config, MetaConfig):
        return MetaTraining(config.spec(**made_for), config, train, valid)
    if not train or (images := train[0].images) is None:
        raise DataError("a method that looks at images needs their features, got meta tasks without; give them images")
    seen: dict[str, Any] = {"encoder": images.encoder, "num_features": images.values.shape[2]}
    if isinstance(config, TansConfig):
        return MetaTraining(config.spec(**made_for, **seen), config, train, valid)
    return MetaTraining(config.spec(**made_for, **seen), config, train, valid)


def with_seed(config: LearnedConfig, seed: int) -> LearnedConfig:
    """The same training from other first weights and episodes."""
    return replace(config, seed=seed)


def _learned(configs: Mapping[str, LearnedConfig]) -> dict[str, Method]:
    return {name: Method(name, Group.META_LEARNED, config) for name, config in configs.items()}


def _group_of(name: str) -> Group:
    if name in TRIVIAL:
        return Group.TRIVIAL
    return Group.SHORT_TRAINING if name == SHORT_KD else Group.ZERO_COST
