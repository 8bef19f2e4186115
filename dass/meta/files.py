"""The file of a meta-trained method: its tensors, and a header that says which method it is and what it is made for.

tensors          by the names of `MethodLearner.learned`
"predictor"      {version, method, spec, is_selected}; files of version 1 hold the DaSS predictor and do not say
                 so, and those before version 3 do not name the recipe in `spec`
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from dass.errors import ConfigError, PredictorMismatchError, SchemaTooNewError, StoreError
from dass.meta.method import MethodSpec, epochs_of
from dass.tensors import not_finite, pack_tensors, unpack_tensors

FILE_VERSION = 3
FIRST_METHOD = "dass"  # what a file of version 1 holds

S = TypeVar("S", bound=MethodSpec)


@dataclass(frozen=True, eq=False)
class MethodFile(Generic[S]):
    """What a file holds; is_selected: whether meta-validation chose it."""

    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    spec: S
    is_selected: bool

    @property
    def num_weights(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.numel() for tensor in self.tensors.values())


def write_method(method: str, spec: MethodSpec, tensors: Mapping[str, torch.Tensor], *, is_selected: bool) -> bytes:
    """The file's content; `read_method` reads it."""
    header = {"version": FILE_VERSION, "method": method, "spec": dataclasses.asdict(spec), "is_selected": is_selected}
    return pack_tensors(tensors, {"predictor": header})


@contextmanager
def read_method(data: bytes, method: str, make_spec: type[S]) -> Iterator[MethodFile[S]]:
    """What the file holds; the `with` block makes the method of it, and what does not fit there is the file's fault.

    Raises:
        PredictorMismatchError: the file holds another method.
        SchemaTooNewError: a newer version of this package wrote it.
        StoreError: the bytes are no complete file of this method, its weights are not finite, or the block raised
            KeyError, TypeError, RuntimeError or ConfigError.
    """
    tensors, header = unpack_tensors(data)
    try:
        file: Mapping[str, Any] = header["predictor"]
        if file["version"] > FILE_VERSION:
            raise SchemaTooNewError(
                f"predictor files up to version {FILE_VERSION} are readable, got {file['version']}; update the package"
            )
        if (found := file.get("method", FIRST_METHOD)) != method:
            raise PredictorMismatchError(
                f"a file is read as the method that it holds: its method is {found!r:.80}, got {method!r}; use the "
                f"file of a {method} predictor"
            )
        spec = make_spec(**file["spec"])
        _check_types(spec)
        epochs_of(spec)
        if name := not_finite(tensors):
            raise StoreError(f"a predictor's weights must be finite, got others in {name}; run meta-training again")
        yield MethodFile(tensors, spec, bool(file["is_selected"]))
    except (KeyError, TypeError, OverflowError, RuntimeError, AttributeError, ConfigError) as error:
        raise StoreError(
            f"expected a complete predictor file, got one that does not fit together ({error}); run meta-training again"
        ) from error


def match_spec(spec: MethodSpec, expect: MethodSpec | None, names: tuple[str, ...]) -> None:
    """Raise PredictorMismatchError, naming both values, unless the specs agree on these fields."""
    for name in names if expect is not None else ():
        wanted, made_for = getattr(expect, name), getattr(spec, name)
        if wanted != made_for:
            raise PredictorMismatchError(
                f"a predictor ranks only what it was made for: its {name} is {made_for!r}, got {wanted!r}; "
                "use a predictor meta-trained for that, or change the search"
            )


def _check_types(spec: MethodSpec) -> None:
    """Raise TypeError unless every field of a spec from a file is of its own type."""
    for f in dataclasses.fields(spec):
        if f.type in (int, float, bool, str) and type(getattr(spec, f.name)) is not f.type:
            raise TypeError(f"{f.name} {getattr(spec, f.name)!r:.80}")
