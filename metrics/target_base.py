"""Base class of targets: a score, perhaps a probability, names in the rows, and indexing like the images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Self

from xattn.deferred import torch
from xattn.errors import InputError, UnsupportedError
from xattn.metrics.probability import Probability
from xattn.text import counted

if TYPE_CHECKING:
    from torch import Tensor

PER_LABEL = ("labels", "predicted labels", "pairs")
"""Prefixes of the rules, as named in the rows, that explain an image once per label or per picture that it is paired with."""


@dataclass(frozen=True, eq=False)
class Target(ABC):
    """The explained target of each image of a batch.

    A target of length 1 applies to a batch of any size.

    Attributes:
        rule: how the targets were chosen, as named in the rows: "predicted", "label", "given", …
    """

    rule: str = field(default="given", kw_only=True)

    @abstractmethod
    def score(self, output: Tensor) -> Tensor:
        """The score of each row of the output, `(B,)`, differentiable."""

    def probability(self, output: Tensor) -> Probability:
        """The probability of each row of the output, float64.

        Raises:
            UnsupportedError: the target has no probability.
        """
        raise UnsupportedError(f"{self.kind} has no probability. Metrics of the map alone (complexity, sparsity) can be taken.")

    def margin(self, output: Tensor) -> Tensor:
        """Probability of the target minus that of all else, or for a contrast minus that of the negative classes. `(B,)` float64."""
        found = self.probability(output)
        return found.p - found.rest

    @property
    def kind(self) -> str:
        """Its name in messages."""
        return f"a target of kind {type(self).__name__}"

    @property
    def has_probability(self) -> bool:
        """Whether the target has a probability, which metrics use."""
        return True

    @abstractmethod
    def names(self) -> list[str]:
        """The entry for each image in the rows' column `target`."""

    def predicted(self, output: Tensor) -> Tensor | None:
        """The network's prediction for each row `(B,)`: a class, or the value of a regression; None if there is neither."""
        return output.argmax(dim=1) if output.dim() == 2 else None

    def _tensors(self) -> dict[str, Any]:
        return {f.name: value for f in fields(self) if isinstance(value := getattr(self, f.name), torch.Tensor)}

    def __len__(self) -> int:
        return len(next(iter(self._tensors().values())))

    def __getitem__(self, index: Tensor | slice) -> Self:
        own = {name: value[index.to(value.device) if isinstance(index, torch.Tensor) else index] for name, value in self._tensors().items()}
        return replace(self, **own)

    def joined(self, others: Sequence[Self]) -> Self:
        """Joins the targets of several batches.

        Args:
            others: the targets of all of them, in order.
        """
        together: dict[str, Any] = {name: torch.cat([getattr(other, name) for other in others]) for name in self._tensors()}
        return replace(self, **together)

    def to(self, device: torch.device) -> Self:
        """The target on a device."""
        return replace(self, **{name: value.to(device) for name, value in self._tensors().items()})

    def expanded(self, count: int) -> Self:
        """The target for a batch of `count` images.

        Raises:
            InputError: the target is for another number of images.
        """
        if len(self) == count:
            return self
        if len(self) != 1:
            raise InputError(f"{counted(count, 'image needs', 'images need')} one target per image; got {len(self)}.")
        return self[torch.zeros(count, dtype=torch.long)]
