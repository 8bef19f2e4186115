"""The distillation loss, in the released form and in the paper's literal form (DaSS, appendix D.3)."""

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from dass.records import Recipe


def soft_cross_entropy(student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over the batch of -sum softmax(t/T) log softmax(s/T): the KL divergence plus the teacher's entropy.

    Both logits are (N, C); the teacher's receive no gradient.
    """
    target = F.softmax(teacher_logits.detach() / temperature, dim=1)
    return -(target * F.log_softmax(student_logits / temperature, dim=1)).sum(dim=1).mean()


def distillation_loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """The scalar training loss of `recipe`, computed in float32.

    student_logits and teacher_logits: (N, C). labels: int64 (N,). With a = alpha and temperature T:

    - `kd`: (1-a) T² CE(softmax(t/T), softmax(s/T)) + a CE(y, softmax(s)), without T² when `scale_by_t2` is off.
    - `kd_paper`: a CE(y, softmax(s/T)) + (1-a) CE(softmax(t/T), softmax(s/T)). Differs: the paper prints the arguments
      of its second term in the other order, which does not match its own description.
    - `ce`: CE with label smoothing, (1-e) onehot + e/C; needs no teacher.
    """
    student_logits = student_logits.float()
    if recipe.loss == "ce":
        return F.cross_entropy(student_logits, labels, label_smoothing=recipe.label_smoothing)
    if teacher_logits is None:
        raise ValueError(f"the loss {recipe.loss!r} needs the teacher's logits, got None")
    temperature, alpha = recipe.temperature, recipe.alpha
    soft = soft_cross_entropy(student_logits, teacher_logits.float(), temperature)
    if recipe.loss == "kd_paper":
        hard = F.cross_entropy(student_logits / temperature, labels, label_smoothing=recipe.label_smoothing)
        return alpha * hard + (1 - alpha) * soft
    hard = F.cross_entropy(student_logits, labels, label_smoothing=recipe.label_smoothing)
    scale = temperature**2 if recipe.scale_by_t2 else 1.0
    return (1 - alpha) * scale * soft + alpha * hard
