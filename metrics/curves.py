"""Insertion, deletion and their correlations: how the target's probability changes as pixels change in the mask's order."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self, TypeAlias, TypeGuard

from xattn.deferred import torch
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.base import CurveMetric, Evidence, Metric, register
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.perturbations import Curve, Perturbation
from xattn.metrics.protocols import PROTOCOLS, DeletionFill, InsertionFill, ProtocolName, chosen
from xattn.metrics.responses import CurveResponse
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

FLAT_CURVE = 1e-9
FLAT_STEPS = 1e-6
LARGEST_BLUR = 1001


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Protocolled(CurveMetric):
    """Settings of a metric along a curve.

    Attributes:
        protocol: a named protocol.
        step: pixels (gomez, br-npa: cells) per step instead of the protocol's.
    """

    protocol: ProtocolName = "ca-stream"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise NameUnknownError("protocol", self.protocol, PROTOCOLS)
        if self.step is not None and (not _is_whole(self.step) or self.step < 1):
            raise InputError(f"a step is a whole number of pixels, at least one; got {self.step!r:.40}.")

    @property
    @abstractmethod
    def whole(self) -> Curve:
        """The curve with every step evaluated."""

    @property
    def curve(self) -> Curve:
        """The curve as the metric follows it."""
        return self.whole


@dataclass(frozen=True)
class _Deleting(_Protocolled):
    """Settings of a metric along the deletion curve.

    Attributes:
        fill: what deleted pixels show instead of the protocol's colour: the mean colour, black, a box blur of side max(H // 5, 9), noise
            seeded by the picture, or ROAD's noisy linear imputation from the remaining pixels.
    """

    fill: DeletionFill | None = None

    @property
    def whole(self) -> Curve:
        protocol = PROTOCOLS[self.protocol]
        return Curve(False, chosen(protocol.deletion, self.fill), self.step, protocol.low_res, as_bytes=protocol.as_bytes)


@dataclass(frozen=True)
class _Inserting(_Protocolled):
    """Settings of a metric along the insertion curve.

    Attributes:
        blur: side of the blur's kernel instead of the protocol's; 0: no blur, one colour.
        fill: colour outside the image, for the blur, instead of the protocol's; with blur=0, the colour of all pixels before they are
            inserted; or noise or ROAD's noisy linear imputation instead of a blur.
    """

    blur: int | None = None
    fill: InsertionFill | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.blur is None:
            return
        if not _is_whole(self.blur) or (self.blur and (not 1 <= self.blur <= LARGEST_BLUR or self.blur % 2 == 0)):
            raise InputError(f"a blur's side must be odd, from 1 to {LARGEST_BLUR}, or 0 for none; got {self.blur!r:.40}.")
        if self.fill in ("noise", "noisy-linear"):
            raise InputError(f"fill={self.fill} replaces the blur: leave out blur={self.blur}.")

    @property
    def whole(self) -> Curve:
        protocol = PROTOCOLS[self.protocol]
        return Curve(True, chosen(protocol.insertion, self.fill, self.blur), self.step, protocol.low_res, as_bytes=protocol.as_bytes)


@dataclass(frozen=True)
class _Area(_Protocolled):
    """The area under a curve, of which not all steps need to be evaluated.

    Attributes:
        tolerance: evaluate only as many steps as bring the estimated error of an image's area below this many points, first where the
            curve bends; None: all steps. The estimate assumes a smooth curve: a run reports by how much its areas differ from exact ones on
            a sample.
    """

    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tolerance is not None and not 0 < self.tolerance <= 100:
            raise InputError(f"a tolerance is in points of area, above 0 and at most 100; got {self.tolerance}.")

    @property
    def curve(self) -> Curve:
        return replace(self.whole, tolerance=self.tolerance)

    @property
    def exact(self) -> Self:
        """The metric with every step evaluated."""
        return replace(self, tolerance=None)

    def of_curve(self, curve: CurveResponse) -> Tensor:
        return area(from_first_step(curve) if PROTOCOLS[self.protocol].from_first_step else curve)


class CurvesMetric(Metric):
    """A metric of the target's probability along one or several curves, which are not stored in runs."""

    kind = "curve"

    @property
    @abstractmethod
    def curves(self) -> tuple[Curve, ...]:
        """The curves."""

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return self.curves

    @abstractmethod
    def of_curves(self, *curves: CurveResponse) -> Tensor:
        """`(B,)` float64 of the probabilities along its curves, in their order."""

    def value(self, evidence: Evidence) -> Tensor:
        return self.of_curves(*(evidence.responses.curve(asked) for asked in self.curves))


def refuse_wrong_count(count: object, what: str, least: int = 1, most: int | None = None) -> None:
    """Raises if a setting that counts something is not a whole number, or is too small or too large.

    Args:
        count: the setting.
        what: the counted thing, in the plural.
        least: the smallest allowed number.
        most: the largest allowed number; None: no limit.

    Raises:
        InputError: the setting is one of these.
    """
    if not _is_whole(count) or count < least or (most is not None and count > most):
        allowed = f"from {least} to {most}" if most else f"of {least} or more"
        raise InputError(f"the number of {what} must be a whole number {allowed}; got {count!r:.40}.")


def from_first_step(curve: CurveResponse) -> CurveResponse:
    """The curve without its first point, with the other shares rescaled to [0, 1]; a curve of a single step is not changed."""
    if curve.p.shape[1] < 3:
        return curve
    first = curve.shares[:, 1:2]
    return CurveResponse((curve.shares[:, 1:] - first) / (1 - first), curve.p[:, 1:], curve.mask_means[:, 1:], curve.answers[:, 1:])


def area(curve: CurveResponse) -> Tensor:
    """100 · area under the probability against the share of pixels changed, trapezoid, both ends included. `(B,)`."""
    return 100 * torch.trapezoid(curve.p, curve.shares, dim=1)


def correlation(curve: CurveResponse, sign: float) -> Tensor:
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


@register("insertion", symbol="I", better="higher", source="Petsiuk et al. 2018")
@dataclass(frozen=True)
class Insertion(_Area, _Inserting):
    """How soon the target is recognised as the mask's pixels are inserted, highest first."""


@register("deletion", symbol="D", better="lower", source="Petsiuk et al. 2018")
@dataclass(frozen=True)
class Deletion(_Area, _Deleting):
    """How long the target is recognised as the mask's pixels are deleted, highest first."""


@register("insertion-correlation", symbol="IC", better="higher", limits=(-1, 1), unit="1", source="Gomez et al. 2022")
@dataclass(frozen=True)
class InsertionCorrelation(_Inserting):
    """Whether pixels of a higher mask value raise the target's probability more when they are inserted."""

    def of_curve(self, curve: CurveResponse) -> Tensor:
        return correlation(curve, 1.0)


@register("deletion-correlation", symbol="DC", better="higher", limits=(-1, 1), unit="1", source="Gomez et al. 2022")
@dataclass(frozen=True)
class DeletionCorrelation(_Deleting):
    """Whether pixels of a higher mask value lower the target's probability more when they are deleted."""

    def of_curve(self, curve: CurveResponse) -> Tensor:
        return correlation(curve, -1.0)


Fill: TypeAlias = "Tensor | Sequence[float] | None"


def insertion(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    blur: int | None = None,
    replace_with: InsertionFill | None = None,
    tolerance: float | None = None,
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · area under the target's probability while the mask's pixels are inserted into a blurred image. Definitions, Metrics.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`; for protocols "gomez" and "br-npa" maps of any resolution, whose cells are ranked.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None for "gomez", which uses black.
        protocol: "ca-stream", "rise", "gomez" or "br-npa".
        step: pixels (gomez, br-npa: cells) per step; None: the protocol's.
        blur: side of the blur's kernel, odd, or 0 for one colour; None: the protocol's.
        replace_with: what pixels show before they are inserted, instead of the protocol's blur: the setting `fill` of a run.
        tolerance: points of area that an image's estimated error may reach, to save forwards; None: every step is evaluated.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64, percent in [0, 100]; higher is better.

    Differs: pixels are ranked by the mask rounded to 2⁻¹⁶, so that rounding errors do not decide their order. The released code of "gomez"
    overshoots its last step; ours ends with a shorter one, and areas use the true shares. That of "br-npa" follows the predicted class,
    stores a head's N maps and the norm of the features as bytes of their own, the maps over the range of all N, and multiplies these in
    eight bits, which overflow; here the target is yours, and the map that is ranked (`raw-attention:rank=1`; for b-cnn the mean) becomes
    bytes as a whole. It changes one cell per step (`step=1`), or with an option 196 steps whose last one overshoots, and does not change
    the margin if cells do not divide the image.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> insertion(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5])
    tensor([25.], dtype=torch.float64)
    """
    metric = Insertion(protocol, step, blur, replace_with, tolerance)
    mean = as_fill(fill)
    return measured("insertion", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)


def deletion(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    replace_with: DeletionFill | None = None,
    tolerance: float | None = None,
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """100 · area under the target's probability while the mask's pixels are deleted. Definitions, Metrics.

    Arguments, range and differences as for `insertion`: `predict` gives logits. Lower is better.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> deletion(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5])
    tensor([25.], dtype=torch.float64)
    """
    metric = Deletion(protocol, step, replace_with, tolerance)
    mean = as_fill(fill)
    return measured("deletion", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)


def insertion_correlation(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    blur: int | None = None,
    replace_with: InsertionFill | None = None,
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Pearson r between each step's mean mask value and the rise of the target's probability per pixel. Definitions, Metrics.

    Arguments as for `insertion`: `predict` gives logits. `(B,)` float64 in [-1, 1], NaN for a constant curve or map; higher is better.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> insertion_correlation(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5])
    tensor([nan], dtype=torch.float64)
    """
    metric = InsertionCorrelation(protocol, step, blur, replace_with)
    return measured(
        "insertion-correlation",
        metric,
        predict,
        images,
        masks,
        targets,
        mean=as_fill(fill),
        multi_label=multi_label,
        chunk=chunk,
        outputs=outputs,
    )


def deletion_correlation(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    protocol: ProtocolName = "ca-stream",
    step: int | None = None,
    replace_with: DeletionFill | None = None,
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Pearson r between each step's mean mask value and the fall of the target's probability per pixel. Definitions, Metrics.

    Arguments as for `insertion`: `predict` gives logits. `(B,)` float64 in [-1, 1], NaN for a constant curve or map; higher is better.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 16, 16), lambda x: torch.zeros(len(x), 4)
    >>> deletion_correlation(constant, images, torch.rand(1, 16, 16), torch.tensor([0]), fill=[0.5, 0.5, 0.5])
    tensor([nan], dtype=torch.float64)
    """
    metric = DeletionCorrelation(protocol, step, replace_with)
    return measured(
        "deletion-correlation",
        metric,
        predict,
        images,
        masks,
        targets,
        mean=as_fill(fill),
        multi_label=multi_label,
        chunk=chunk,
        outputs=outputs,
    )
