"""Insertion, deletion and their correlations: what becomes of the target as pixels are changed in the mask's order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from xattn.errors import InputError, NameUnknownError
from xattn.metrics.facts import MetricFacts, metrics
from xattn.metrics.looks import Baseline, Curve, Look
from xattn.metrics.perturbation import CurveSeen, Seen, look_at
from xattn.metrics.probability import Predict

FLAT_CURVE = 1e-9
FLAT_STEPS = 1e-6

ProtocolName = Literal["ca-stream", "rise", "gomez"]
Colour = Literal["mean", "black"]


@dataclass(frozen=True)
class Protocol:
    """How pixels are changed. Definitions, Metrics, second table.

    Attributes:
        deletion: what a deleted pixel shows.
        insertion: what the image is before pixels are inserted.
        cells: the steps are cells of the map at its own resolution, not pixels of the mask.
        summary: in words.
    """

    deletion: Baseline
    insertion: Baseline
    cells: bool
    summary: str


PROTOCOLS: dict[str, Protocol] = {
    "ca-stream": Protocol(
        Baseline("colour"), Baseline("gaussian", side=5), False, "8·W pixels a step; deletes to the mean colour; inserts from blur 5"
    ),
    "rise": Protocol(
        Baseline("colour"), Baseline("gaussian", side=11), False, "8·W pixels a step; deletes to the mean colour; inserts from blur 11"
    ),
    "gomez": Protocol(
        Baseline("colour", "black"),
        Baseline("box", "black"),
        True,
        "map cells, ceil(n/196) a step; deletes to black; inserts from a box blur of side max(H // 5, 9)",
    ),
}


def _settled(base: Baseline, fill: Colour | None, blur: int | None) -> Baseline:
    return Baseline(base.kind, base.colour if fill is None else fill, base.side if blur is None else blur)


@dataclass(frozen=True)
class _Curved(ABC):
    """Settings of a metric along a curve.

    Attributes:
        protocol: a named protocol.
        step: pixels (gomez: cells) a step instead of the protocol's.
    """

    protocol: ProtocolName = "ca-stream"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise NameUnknownError("protocol", self.protocol, PROTOCOLS)
        if self.step is not None and self.step < 1:
            raise InputError(f"a step needs at least one pixel; got {self.step}.")

    @property
    @abstractmethod
    def whole(self) -> Curve:
        """The curve, every step of it looked at."""

    @property
    def curve(self) -> Curve:
        """The curve as the metric follows it."""
        return self.whole

    @property
    def looks(self) -> tuple[Look, ...]:
        return (self.curve,)


@dataclass(frozen=True)
class _Deleting(_Curved):
    """Settings of a metric along the deletion curve.

    Attributes:
        fill: colour of deleted pixels instead of the protocol's.
    """

    fill: Colour | None = None

    @property
    def whole(self) -> Curve:
        protocol = PROTOCOLS[self.protocol]
        return Curve(False, _settled(protocol.deletion, self.fill, None), self.step, protocol.cells)


@dataclass(frozen=True)
class _Inserting(_Curved):
    """Settings of a metric along the insertion curve.

    Attributes:
        blur: side of the blur's kernel instead of the protocol's.
        fill: colour outside the image, for the blur, instead of the protocol's.
    """

    blur: int | None = None
    fill: Colour | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blur is not None and (self.blur < 1 or self.blur % 2 == 0):
            raise InputError(f"a blur's side must be odd; got {self.blur}.")

    @property
    def whole(self) -> Curve:
        protocol = PROTOCOLS[self.protocol]
        return Curve(True, _settled(protocol.insertion, self.fill, self.blur), self.step, protocol.cells)


@dataclass(frozen=True)
class _Area(_Curved):
    """The area under a curve, of which fewer steps may be looked at.

    Attributes:
        tolerance: look only at as many steps as bring the estimated error of an image's area below so many points, where the curve
            bends first; None: at all. The estimate takes the curve for smooth: a run says how far its areas lie off on a sample.
    """

    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"a tolerance is in points of area, above 0; got {self.tolerance}.")

    @property
    def curve(self) -> Curve:
        return replace(self.whole, tolerance=self.tolerance)

    @property
    def exact(self) -> Self:
        """Every step looked at."""
        return replace(self, tolerance=None)

    def value(self, seen: Seen) -> Tensor:
        return area(seen.curve(self.curve))


def area(curve: CurveSeen) -> Tensor:
    """100 · area under the probability against the share of pixels changed, trapezoid, both ends included. `(B,)`."""
    return 100 * torch.trapezoid(curve.p, curve.shares, dim=1)


def correlation(curve: CurveSeen, sign: float) -> Tensor:
    """Pearson r between the mean mask value of each step's pixels and the change of p at that step per pixel. `(B,)`, NaN if constant."""
    change = sign * curve.p.diff(dim=1) / curve.shares.diff(dim=1)
    flat = curve.p.amax(1) - curve.p.amin(1) <= FLAT_CURVE
    flat |= _constant(change) | _constant(curve.mask_means)
    a = change - change.mean(dim=1, keepdim=True)
    b = curve.mask_means - curve.mask_means.mean(dim=1, keepdim=True)
    r = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(flat, torch.nan, r.clamp(-1, 1))


def _constant(values: Tensor) -> Tensor:
    return values.amax(1) - values.amin(1) <= FLAT_STEPS * values.abs().amax(1)


@metrics.register("insertion", MetricFacts("I", "higher", "%", (0, 100), ("masks", "fill"), "Petsiuk et al. 2018"))
@dataclass(frozen=True)
class Insertion(_Area, _Inserting):
    """How soon the target is recognised as the mask's pixels are put in, highest first."""


@metrics.register("deletion", MetricFacts("D", "lower", "%", (0, 100), ("masks", "fill"), "Petsiuk et al. 2018"))
@dataclass(frozen=True)
class Deletion(_Area, _Deleting):
    """How long the target is recognised as the mask's pixels are taken out, highest first."""


@metrics.register("insertion-correlation", MetricFacts("IC", "higher", "1", (-1, 1), ("masks", "fill"), "Gomez et al. 2022"))
@dataclass(frozen=True)
class InsertionCorrelation(_Inserting):
    """Whether pixels of a higher mask value raise the target's probability more when they are put in."""

    def value(self, seen: Seen) -> Tensor:
        return correlation(seen.curve(self.curve), 1.0)


@metrics.register("deletion-correlation", MetricFacts("DC", "higher", "1", (-1, 1), ("masks", "fill"), "Gomez et al. 2022"))
@dataclass(frozen=True)
class DeletionCorrelation(_Deleting):
    """Whether pixels of a higher mask value lower the target's probability more when they are taken out."""

    def value(self, seen: Seen) -> Tensor:
        return correlation(seen.curve(self.curve), -1.0)


Fill = Tensor | Sequence[float] | None


def insertion(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    blur: int | None = None,
    tolerance: float | None = None,
    multi_label: bool = False,
    chunk: int = 8,
) -> Tensor:
    """100 · area under the target's probability while the mask's pixels are put into a blurred image. Definitions, Metrics.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`; for protocol "gomez" maps of any resolution, whose cells are ranked.
        targets: `(B,)` class indices.
        fill: the classifier's mean colour, three values in pixel space; None is enough for "gomez", which uses black.
        protocol: "ca-stream", "rise" or "gomez".
        step: pixels (gomez: cells) a step; None: the protocol's.
        blur: side of the blur's kernel, odd; None: the protocol's.
        tolerance: points of area that an image's estimated error may reach, for fewer forwards; None: every step is looked at.
        multi_label: sigmoid instead of softmax.
        chunk: images a forward.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better.

    Differs: the released code of "gomez" overshoots its last step; ours ends with a shorter one, and areas use the true shares.
    """
    return _measure(Insertion(protocol, step, blur, tolerance=tolerance), predict, images, masks, targets, fill, multi_label, chunk)


def deletion(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    tolerance: float | None = None,
    multi_label: bool = False,
    chunk: int = 8,
) -> Tensor:
    """100 · area under the target's probability while the mask's pixels are taken out. Definitions, Metrics.

    Arguments, range and differences as for `insertion`; lower is better.
    """
    return _measure(Deletion(protocol, step, tolerance=tolerance), predict, images, masks, targets, fill, multi_label, chunk)


def insertion_correlation(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    blur: int | None = None,
    multi_label: bool = False,
    chunk: int = 8,
) -> Tensor:
    """Pearson r between each step's mean mask value and the rise of the target's probability per pixel. Definitions, Metrics.

    Arguments as for `insertion`. `(B,)` float64 in [-1, 1], NaN for a constant curve or map; higher is better.
    """
    return _measure(InsertionCorrelation(protocol, step, blur), predict, images, masks, targets, fill, multi_label, chunk)


def deletion_correlation(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    multi_label: bool = False,
    chunk: int = 8,
) -> Tensor:
    """Pearson r between each step's mean mask value and the fall of the target's probability per pixel. Definitions, Metrics.

    Arguments as for `insertion`. `(B,)` float64 in [-1, 1], NaN for a constant curve or map; higher is better.
    """
    return _measure(DeletionCorrelation(protocol, step), predict, images, masks, targets, fill, multi_label, chunk)


def _measure(
    metric: Insertion | Deletion | InsertionCorrelation | DeletionCorrelation,
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Tensor,
    fill: Fill,
    multi_label: bool,
    chunk: int,
) -> Tensor:
    mean = None if fill is None else torch.as_tensor(fill)
    seen = look_at(predict, images, targets, {"": masks}, metric.looks, mean=mean, multi_label=multi_label, chunk=chunk)
    return metric.value(seen[""])
