"""Coherency, ADCC and ARCC: metrics of a method's map of the image masked by its own mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.base import Evidence, ExplanationMetric, register
from xattn.metrics.curves import Fill
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill, as_images, as_masks
from xattn.metrics.masking import average_drop_of, complexity, degenerate
from xattn.metrics.perturbations import KEPT, ORIGINAL, Curve, Perturbation
from xattn.metrics.probability import widened
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

ROAD_STEPS = 5  # 20, 40, 60 and 80 % of the pixels

Explain = Callable[["Tensor"], "Tensor"]
"""Images in pixel space `(B, 3, H, W)` → masks of them by the same method for the same targets, `(B, H, W)` in [0, 1]."""


@register("coherency", symbol="Coh", better="higher", limits=(0, 1), unit="1", source="Poppi et al. 2021, Eq. 4")
@dataclass(frozen=True)
class Coherency(ExplanationMetric):
    """Agreement of the method's maps of the masked and the whole image: (r(S, S(x ⊙ S)) + 1)/2."""

    @property
    def explained(self) -> tuple[Perturbation, ...]:
        return (KEPT,)

    def value(self, evidence: Evidence) -> Tensor:
        return _coherency(evidence.masks, evidence.explanations[KEPT])


@register("adcc", symbol="ADCC", better="higher", limits=(0, 1), unit="1", source="Poppi et al. 2021, Eq. 6")
@dataclass(frozen=True)
class ADCC(ExplanationMetric):
    """Harmonic mean of coherency, 1 − complexity and 1 − average drop."""

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, KEPT

    @property
    def explained(self) -> tuple[Perturbation, ...]:
        return (KEPT,)

    def value(self, evidence: Evidence) -> Tensor:
        drop = average_drop_of(evidence.responses.probability(ORIGINAL), evidence.responses.probability(KEPT)) / 100
        terms = torch.stack(
            [term.to(drop.device) for term in (_coherency(evidence.masks, evidence.explanations[KEPT]), 1 - complexity(evidence.masks))]
            + [1 - drop]
        )
        return _harmonic_mean(terms)


@register("arcc", symbol="ARCC", better="higher", limits=(0, 1), unit="1", source="Domeniconi et al. 2026")
@dataclass(frozen=True)
class ARCC(ExplanationMetric):
    """Harmonic mean of coherency, 1 − complexity and ROAD: how much less is lost without the mask's lowest pixels than without its highest.

    Attributes:
        fill: what removed pixels show, as for `deletion`.
    """

    fill: DeletionFill = "noisy-linear"

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return tuple(Curve(lowest_first, filled(self.fill), steps=ROAD_STEPS) for lowest_first in (True, False))

    @property
    def explained(self) -> tuple[Perturbation, ...]:
        return (KEPT,)

    def value(self, evidence: Evidence) -> Tensor:
        curves = [evidence.responses.curves[asked].p for asked in self.perturbations if isinstance(asked, Curve)]
        lowest_first, highest_first = (p[:, 1:-1].mean(dim=1) for p in curves)
        road = (lowest_first - highest_first).clamp(0, 1)
        others = _coherency(evidence.masks, evidence.explanations[KEPT]), 1 - complexity(evidence.masks)
        return _harmonic_mean(torch.stack([*(term.to(road.device) for term in others), road]))


def _harmonic_mean(terms: Tensor) -> Tensor:
    """Harmonic mean of terms `(n, B)`; 0 where one is 0 or less, NaN where one is NaN."""
    positive = (terms > 0).all(dim=0)
    harmonic = len(terms) / torch.where(positive, terms, 1).reciprocal().sum(dim=0)
    return torch.where(terms.isnan().any(dim=0), torch.nan, torch.where(positive, harmonic, 0))


def _coherency(masks: Tensor, again: Tensor) -> Tensor:
    """(r + 1)/2 with Pearson's r over the pixels; 0 where r is undefined."""
    undefined = (degenerate(masks) | degenerate(again.to(masks.device))).to(widened(masks).device)
    a, b = (widened(some.to(masks.device)).flatten(1) for some in (masks, again))
    a, b = (some - some.mean(dim=1, keepdim=True) for some in (a, b))
    r = (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))
    return torch.where(undefined, 0, (r.clamp(-1, 1) + 1) / 2)


def coherency(images: Tensor, masks: Tensor, explain: Explain) -> Tensor:
    """Agreement of a method's maps of the masked and the whole image: (r(S, S(x ⊙ S)) + 1)/2. Definitions, Metrics.

    Args:
        images: `(B, 3, H, W)` in pixel space.
        masks: S, `(B, H, W)` in [0, 1].
        explain: images → masks by the same method for the same targets.

    Returns:
        `(B,)` float64 in [0, 1], 0 where the correlation is undefined (a constant mask); higher is better.

    Raises:
        InputError: shapes or values that do not match, or `explain` returns masks of another shape, or that are not finite.

    >>> import torch
    >>> images, masks = torch.rand(1, 3, 4, 4), torch.rand(1, 4, 4)
    >>> coherency(images, masks, lambda masked: masks)
    tensor([1.], dtype=torch.float64)
    """
    images = as_images(images)
    masks = as_masks(masks, len(images))
    return _coherency(masks, _explained(images, masks, explain))


def adcc(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    explain: Explain,
    *,
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Harmonic mean of coherency, 1 − complexity and 1 − average drop. Definitions, Metrics.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: S, `(B, H, W)` in [0, 1].
        targets: class indices `(B,)`, or a target.
        explain: images → masks by the same method for the same targets.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [0, 1], 0 where one of the three is 0; higher is better.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 4, 4), lambda x: torch.zeros(len(x), 2)
    >>> quarter = torch.eye(4)[None]  # complexity 1/4, no drop, coherency 1
    >>> adcc(constant, images, quarter, torch.tensor([0]), lambda masked: quarter)
    tensor([0.9000], dtype=torch.float64)
    """
    images = as_images(images)
    masks = as_masks(masks, len(images))
    again: dict[Perturbation, Tensor] = {KEPT: _explained(images, masks, explain)}
    return measured(
        "adcc", ADCC(), predict, images, masks, targets, multi_label=multi_label, chunk=chunk, explanations=again, outputs=outputs
    )


def arcc(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    explain: Explain,
    *,
    fill: Fill = None,
    replace_with: DeletionFill = "noisy-linear",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """3 / (1/coherency + 1/(1 − complexity) + 1/ROAD): ADCC with ROAD instead of 1 − average drop.

    ROAD is the target's mean probability without the lowest 20, 40, 60, 80 % of the mask's pixels minus that without the highest, and 0
    where this is negative. Removed pixels are the weighted mean of their neighbours, with noise, as for `road_morf`.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: S, `(B, H, W)` in [0, 1].
        targets: class indices `(B,)`, or a target.
        explain: images → masks by the same method for the same targets.
        fill: the classifier's mean colour, for the fills that need it.
        replace_with: what removed pixels show, as for `deletion`, the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [0, 1], 0 where one of the three is 0, as ROAD is for a network with constant output; higher is better.

    Differs: the formula is that of the authors' code in pytorch-grad-cam. There, pixels are chosen by quantiles of the mask, so that all or
    none of several equal ones are removed, each term has 1e-8 added, and each call draws new noise.

    >>> import torch
    >>> images, constant = torch.rand(1, 3, 4, 4), lambda x: torch.zeros(len(x), 2)
    >>> quarter = torch.eye(4)[None]
    >>> arcc(constant, images, quarter, torch.tensor([0]), lambda masked: quarter)
    tensor([0.], dtype=torch.float64)
    """
    images = as_images(images)
    masks = as_masks(masks, len(images))
    again: dict[Perturbation, Tensor] = {KEPT: _explained(images, masks, explain)}
    metric, mean = ARCC(replace_with), as_fill(fill)
    return measured(
        "arcc",
        metric,
        predict,
        images,
        masks,
        targets,
        mean=mean,
        multi_label=multi_label,
        chunk=chunk,
        explanations=again,
        outputs=outputs,
    )


def _explained(images: Tensor, masks: Tensor, explain: Explain) -> Tensor:
    if masks.shape[1:] != images.shape[2:]:
        raise InputError(f"masks have the images' size {tuple(images.shape[2:])}; got {tuple(masks.shape)}.")
    return explained_again(images * masks.to(images)[:, None], masks, explain)


def explained_again(images: Tensor, masks: Tensor, explain: Explain) -> Tensor:
    """The masks that a method returns for changed images, checked.

    Args:
        images: `(B, C, H, W)`, changed.
        masks: of the unchanged images, `(B, H, W)`.
        explain: images → masks.

    Raises:
        InputError: `explain` returns masks of another shape, or that are not finite.
    """
    if not callable(explain):
        raise InputError(f"explain is a function from images to masks; got {type(explain).__name__}.")
    given = explain(images)
    again = as_masks(given, len(masks), "masks that explain gives") if hasattr(given, "__array__") else given
    if not isinstance(again, torch.Tensor) or again.shape != masks.shape:
        came = tuple(again.shape) if isinstance(again, torch.Tensor) else type(again).__name__
        raise InputError(f"explain must give masks {tuple(masks.shape)} for the images that it is given; got {came}.")
    return again
