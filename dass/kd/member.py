"""One run under training: a student's network, its optimiser, what it has shown so far, and its saved state."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from dass.errors import ConfigError, StoreError
from dass.kd.loss import distillation_loss
from dass.records import CurvePoint, Result, Run, Status
from dass.tensors import pack_tensors, refusing_damage, unpack_tensors

STATE_VERSION = 1
_END = 2**31  # of epochs, and of the batches of one
_refusing_damage = partial(refusing_damage, "a run", "delete the checkpoint so that the run starts again")


@dataclass(frozen=True)
class Position:
    """Where a run stands: whole epochs completed, and batches done inside the next one."""

    epoch: int = 0
    batch: int = 0


def state_position(state: bytes) -> tuple[str, Position]:
    """The run id and the position of a run's saved state.

    Raises:
        StoreError: the state was written by a newer version, or is damaged.
    """
    with _refusing_damage():
        return _read_header(unpack_tensors(state)[1])


def _read_header(header: Mapping[str, Any]) -> tuple[str, Position]:
    if header.get("version") != STATE_VERSION:
        raise StoreError(
            f"a run's state must have version {STATE_VERSION}, got {header.get('version')}; upgrade this package, or "
            "delete the checkpoint so that the run starts again"
        )
    position = Position(**header["position"])
    if not all(type(number) is int and 0 <= number < _END for number in (position.epoch, position.batch)):
        raise ValueError(f"the position {position!r:.80}")
    return str(header["run"]), position


class Member:
    """One student of a cohort: its network, its optimiser, and what it has shown so far."""

    def __init__(self, run: Run, network: torch.nn.Module, keep_weights: bool) -> None:
        self.run = run
        self.network = network
        self.keep_weights = keep_weights
        recipe = run.recipe
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
            fused=True,
        )
        self.loss_sum = torch.zeros((), device=next(network.parameters()).device)
        self.init_accuracy_pct = math.nan
        self.curve: list[CurvePoint] = []
        self.best_weights: dict[str, torch.Tensor] = {}
        self.seconds = 0.0

    def step(self, images: torch.Tensor, labels: torch.Tensor, logits: torch.Tensor | None, lr: float) -> None:
        """One optimiser step; the loss is added to `loss_sum`, unchecked, so that nothing waits for the device."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = distillation_loss(self.network(images), logits, labels, self.run.recipe)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss_sum += loss.detach()

    def record(self, point: CurvePoint) -> None:
        """Append an evaluation; remember the weights when it is the best so far (the earliest of equals)."""
        is_best = all(point.valid_accuracy_pct > earlier.valid_accuracy_pct for earlier in self.curve)
        self.curve.append(point)
        if self.keep_weights and is_best:
            self.best_weights = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def result(self, status: Status, test_accuracy_pct: float | None = None, epoch: int | None = None) -> Result:
        """What the curve so far amounts to; `epoch` is the one in which the run diverged."""
        accuracies = [point.valid_accuracy_pct for point in self.curve]
        return Result(
            status=status,
            curve=tuple(self.curve),
            init_accuracy_pct=self.init_accuracy_pct,
            best_accuracy_pct=max(accuracies, default=None),
            final_accuracy_pct=accuracies[-1] if accuracies else None,
            final_loss=self.curve[-1].valid_loss if accuracies else None,
            test_accuracy_pct=test_accuracy_pct,
            diverged_epoch=epoch,
        )

    def _momentum(self) -> dict[str, torch.Tensor]:
        return {
            name: self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.network.named_parameters()
            if self.optimizer.state[parameter].get("momentum_buffer") is not None
        }

    def save(self, position: Position) -> bytes:
        """Everything that `load` needs to continue bit-exactly on CPU."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"momentum.{name}": tensor for name, tensor in self._momentum().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best_weights.items()}
        tensors["loss_sum"] = self.loss_sum
        header = {
            "version": STATE_VERSION,
            "run": self.run.id,
            "position": asdict(position),
            "seconds": self.seconds,
            "init_accuracy_pct": self.init_accuracy_pct,
            "curve": [asdict(point) for point in self.curve],
        }
        return pack_tensors(tensors, header)

    def load(self, state: bytes) -> Position:
        """Continue from a saved state; returns its position.

        Raises:
            StoreError: the state is damaged or of another run.
            ConfigError: weights are to be kept, and the state was saved without the best so far.
        """
        tensors, header = unpack_tensors(state)
        with _refusing_damage():
            run_id, position = _read_header(header)
        if run_id != self.run.id:
            raise StoreError(
                f"the state must be that of run {self.run.id}, got that of {run_id}; delete the checkpoint"
            )
        with _refusing_damage():
            self._restore(tensors, header)
        if self.keep_weights and self.curve and not self.best_weights:
            raise ConfigError(
                f"keep_weights needs a state that was saved with it, got one of run {run_id} without its best weights; "
                "set keep_weights=False, or delete the checkpoint so that the run starts again"
            )
        return position

    def _restore(self, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
        device = self.loss_sum.device

        def part(prefix: str) -> dict[str, torch.Tensor]:
            return {n.removeprefix(prefix): t.to(device) for n, t in tensors.items() if n.startswith(prefix)}

        self.network.load_state_dict(part("network."))
        parameters = dict(self.network.named_parameters())
        for name, buffer in part("momentum.").items():
            momentum = torch.empty_like(parameters[name]).copy_(buffer)
            self.optimizer.state[parameters[name]]["momentum_buffer"] = momentum
        self.best_weights = (
            part("best.") if self.keep_weights else {}
        )  # else they would be out of date at the next save
        self.loss_sum = tensors["loss_sum"].to(device)
        self.seconds = float(header["seconds"])
        self.init_accuracy_pct = float(header["init_accuracy_pct"])
        self.curve = [CurvePoint(**point) for point in header["curve"]]
