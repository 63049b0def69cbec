"""Training losses."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def distillation(student: Tensor, teacher: Tensor, labels: Tensor, *, alpha: float = 0.5, temperature: float = 1.0) -> Tensor:
    """Cross-entropy with the labels plus the divergence from a teacher: α·CE(student, y) + (1 − α)·T²·KL(teacher_T ‖ student_T).

    Args:
        student: logits `(B, K)`.
        teacher: logits `(B, K)`, without gradient.
        labels: `(B,)` class indices.
        alpha: weight of the labels; 1 is plain training.
        temperature: divides both logits in the divergence.

    Returns:
        Mean over the batch, a scalar, ≥ 0.

    Source: Gomez et al. 2021, Eq. 1, where T is 1; Hinton et al. 2015 for T.
    """
    plain = functional.cross_entropy(student, labels)
    if alpha == 1:
        return plain
    said, wanted = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    divergence = functional.kl_div(said, wanted, reduction="batchmean", log_target=True)
    return alpha * plain + (1 - alpha) * temperature**2 * divergence
