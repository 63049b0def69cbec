"""Targets of networks whose output is values instead of logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.metrics.probability import Probability
from xattn.metrics.target_base import Target
from xattn.metrics.targets import Contrast, written_contrast

if TYPE_CHECKING:
    from torch import Tensor

VALUE = "value "


def is_value(target: str | None) -> bool:
    """Whether a target, named as in the rows, is a value of a regression.

    >>> is_value("value 0"), is_value("281")
    (True, False)
    """
    return target is not None and VALUE in target


@dataclass(frozen=True, eq=False)
class Values(Contrast):
    """A value of a regression, or a weighted sum of several: Σ w·y. It has no probability.

    Args:
        classes: indices of the values `(B, T)`, or `(T,)` for all images.
        weights: their weights, in the same shape.

    Raises:
        InputError: indices and weights do not match.
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
        """The value; None for a sum of several, which cannot be compared with a label."""
        return self.score(output).detach() if self.weights.shape[1] == 1 and bool((self.weights == 1).all()) else None

    def names(self) -> list[str]:
        rows = zip(self.classes.tolist(), self.weights.tolist(), strict=True)
        return [written_contrast([(weight, f"{VALUE}{index}") for index, weight in zip(*row, strict=True)]) for row in rows]
