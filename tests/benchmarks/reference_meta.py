"""Meta-training as the method's paper tells it, written plainly: torch's own layers, autograd, one task at a time.

It shares with `dass.meta` the tasks, the draw of episodes, the first weights and Spearman's rho, and no arithmetic.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.meta.episodes import MetaTask, draw_episode
from dass.meta.train import MetaConfig
from dass.metrics import spearman
from dass.predictor import Predictor, PredictorSpec

Weights = Mapping[str, torch.Tensor]


class PlainTraining:
    """The weights, the inner rates and Adam; inputs SAT and one inner step, guided, in percent."""

    def __init__(self, spec: PredictorSpec, config: MetaConfig, tasks: Sequence[MetaTask]) -> None:
        self._config, self._tasks = config, tasks
        device = tasks[0].maps.device
        drawn = Predictor(spec, config.seed).state_dict()
        self.phi = {name: value.clone().to(device).requires_grad_() for name, value in drawn.items()}
        self.rates = {
            name: torch.full_like(value, config.rate_init, requires_grad=True) for name, value in self.phi.items()
        }
        self._optimizer = torch.optim.Adam([*self.phi.values(), *self.rates.values()], lr=config.lr)

    def episode(self, number: int) -> float:
        """One Adam step; the outer loss before it."""
        config = self._config
        sizes = [task.num_students for task in self._tasks]
        drawn = draw_episode(
            sizes, seed=config.seed, number=number, num_tasks=config.tasks_per_episode, num_queries=config.queries
        )
        self._optimizer.zero_grad()
        total = 0.0
        for index, chosen in zip(drawn.tasks, drawn.queries, strict=True):
            task = self._tasks[index]
            adapted = self._adapt(task)
            predicted = predict(adapted, task.maps[chosen], task.arch[chosen], task.teacher_map)
            loss = F.mse_loss(predicted, task.targets_pct[chosen]) / len(drawn.tasks)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self._optimizer.step()
        return total

    def evaluate(self, tasks: Sequence[MetaTask]) -> float:
        """The mean over tasks of the rank correlation of all students."""
        correlations = []
        for task in tasks:
            adapted = {name: value.detach() for name, value in self._adapt(task).items()}
            scores = predict(adapted, task.maps, task.arch, task.teacher_map)
            correlations.append(spearman(scores.cpu(), task.targets_pct.cpu()))
        return sum(correlations) / len(correlations)

    def _adapt(self, task: MetaTask) -> dict[str, torch.Tensor]:
        predicted = predict(self.phi, task.teacher_map[None], task.teacher_arch[None], task.teacher_map)
        error = (predicted - task.teacher_accuracy_pct).square().mean()
        slopes = torch.autograd.grad(error, list(self.phi.values()), create_graph=self._config.order == "second")
        return {
            name: value - self.rates[name] * slope
            for (name, value), slope in zip(self.phi.items(), slopes, strict=True)
        }


def predict(params: Weights, maps: torch.Tensor, arch: torch.Tensor, teacher_map: torch.Tensor) -> torch.Tensor:
    """(n,) predictions, percent: the network of section 3.2."""
    teacher = encode(params, "teacher_encoder", teacher_map[None]).expand(len(arch), -1)
    parts = [encode(params, "student_encoder", maps), linear(params, "arch_encoder", arch), teacher]
    return linear(params, "head", linear(params, "fusion", torch.cat(parts, 1)).tanh()).squeeze(1)


def encode(params: Weights, name: str, maps: torch.Tensor) -> torch.Tensor:
    """Maps (n, C, h, w) to vectors (n, 256)."""
    for conv in ("conv1", "conv2"):
        maps = F.conv2d(maps, params[f"{name}.{conv}.weight"], stride=2, padding=1).relu()
    return maps.mean(dim=(2, 3))


def linear(params: Weights, name: str, values: torch.Tensor) -> torch.Tensor:
    """A layer with weight and bias."""
    return F.linear(values, params[f"{name}.weight"], params[f"{name}.bias"])
