"""Base class of metrics of a picture's parts, and the checks of their arguments."""

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

MARGIN = 1e-6  # least difference by which one share is larger than another


class PartsMetric(Metric):
    """A metric that compares the map's values in the parts with the parts' effects on the network's output."""

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
        """`(B,)` bool: whether the picture has what the metric needs; `lacks` says what is missing."""
        return parts.known

    def reasons(self, parts: KnownParts) -> tuple[str | None, ...]:
        """The reason why a picture with known parts has no value for any map; None for a picture that has one."""
        return tuple(None if there else self.lacks for there in self.has(parts).tolist())


def known_parts_of(parts: object) -> KnownParts:
    """Returns the known parts, after a type check."""
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
