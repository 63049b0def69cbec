"""What is explained of a network that gives values instead of logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from xattn.metrics.probability import Probability
from xattn.metrics.targets import Contrast, Target


@dataclass(frozen=True, eq=False)
class Values(Contrast):
    """A value of a regression, or a weighted sum of several: Σ w·y. It has no probability.

    Args:
        classes: indices of the values `(B, T)`, or `(T,)` for all images.
        weights: their weights, in the same shape.

    Raises:
        InputError: indices and weights that do not match.
    """

    def probability(self, output: Tensor) -> Probability:
        return Target.probability(self, output)

    @property
    def kind(self) -> str:
        return "a value of a regression"

    @property
    def has_probability(self) -> bool:
        return False

    def predicted(self, output: Tensor) -> Tensor | None:
        return None
