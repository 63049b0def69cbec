"""What metrics of a picture's parts have in common: their kind, and the checks of what they are given."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.base import Evidence, Metric
from xattn.metrics.inputs import as_masks, refuse_no_masks
from xattn.metrics.known_parts import KnownParts

if TYPE_CHECKING:
    from torch import Tensor

MARGIN = 1e-6  # by which one share is larger than another


class PartsMetric(Metric):
    """A metric of how the map's parts compare with what they do to the network's output."""

    kind = "parts"
    needs_parts = True
    lacks: ClassVar[str] = "too few of the parts are visible"
    undefined: ClassVar[str] = "the map has the same mean in all of the parts, or all of them have the same effect"

    @abstractmethod
    def of_parts(self, masks: Tensor, parts: KnownParts) -> Tensor:
        """`(B,)` float64 of masks `(B, H, W)`; NaN where it is undefined."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_parts(evidence.masks, known_parts_of(evidence.parts))

    def has(self, parts: KnownParts) -> Tensor:
        """`(B,)` bool: the picture has what the metric asks of it; `lacks` says what, where not."""
        return parts.known

    def reasons(self, parts: KnownParts) -> tuple[str | None, ...]:
        """Why a picture whose parts are known has no value of any map; None for one that has."""
        return tuple(None if there else self.lacks for there in self.has(parts).tolist())


def known_parts_of(parts: object) -> KnownParts:
    """What is known of the parts, checked."""
    if not isinstance(parts, KnownParts):
        came = "got none" if parts is None else f"got {type(parts).__name__}"
        raise InputError(f"a metric of kind parts takes xattn.metrics.KnownParts, for birds from xattn.birds.known_parts; {came}.")
    return parts


def given(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise InputError(f"this metric needs the {what} of the pictures (KnownParts.{what}); got none.")
    return value


def checked_masks(masks: Tensor, parts: KnownParts) -> Tensor:
    """Masks, checked against the parts."""
    masks = as_masks(masks, len(known_parts_of(parts)))
    refuse_no_masks(masks)
    return masks


def defined(values: Tensor, masks: Tensor, parts: KnownParts) -> Tensor:
    """The values where the map shows something and a part is visible, else NaN."""
    known = (masks.flatten(1).amax(dim=1) > 0).to(values.device) & parts.known.to(values.device)
    return torch.where(known, values, torch.nan)
