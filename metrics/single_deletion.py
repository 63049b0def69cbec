"""In-domain single-deletion score (IDSDS): whether the map orders patches like the fall of the target's logit without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.metrics.base import Evidence, Metric, register
from xattn.metrics.curves import Fill, refuse_wrong_count
from xattn.metrics.functions import measured
from xattn.metrics.inputs import Outputs, as_fill
from xattn.metrics.known_parts import rank_correlation
from xattn.metrics.perturbations import ORIGINAL, Patches, Perturbation
from xattn.metrics.probability import widened
from xattn.metrics.protocols import DeletionFill, filled
from xattn.metrics.removals import at_image_size, grid_patches
from xattn.metrics.targets import Predict, Targets

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_GRID = 32
SAME_SCORE = 1e-6  # differences of two scores below this share of the largest are rounding
SAME_SUM = 1e-6  # differences of two sums of the map below this share of the largest are rounding


@register("idsds", symbol="IDSDS", better="higher", limits=(-1, 1), unit="1", source="Hesse et al. 2024, Sec. 3")
@dataclass(frozen=True)
class IDSDS(Metric):
    """Spearman's rank correlation between the map's sum over patches of the image and the fall of the target's logit without them.

    Attributes:
        grid: patches along each side of the image.
        fill: what a deleted patch shows, as for `deletion`.
    """

    kind = "responses"
    grid: int = 4
    fill: DeletionFill = "mean"

    def __post_init__(self) -> None:
        refuse_wrong_count(self.grid, "patches along a side", 2, LARGEST_GRID)

    @property
    def asked(self) -> Patches:
        """The patches."""
        return Patches(self.grid, filled(self.fill))

    @property
    def perturbations(self) -> tuple[Perturbation, ...]:
        return ORIGINAL, self.asked

    def value(self, evidence: Evidence) -> Tensor:
        found = evidence.responses.patches[self.asked]
        size = (evidence.masks.shape[1], evidence.masks.shape[2])
        maps = widened(evidence.raw_maps if evidence.signed_maps is None else evidence.signed_maps)
        maps = at_image_size(maps, size).to(found.score.device)
        patches = grid_patches(size, self.grid).to(maps.device).flatten().expand(len(maps), -1)
        sums = maps.new_zeros(len(maps), self.grid**2).scatter_add_(1, patches, maps.flatten(1))
        largest = torch.maximum(found.score.abs().amax(dim=1), found.whole.abs())
        agreement = rank_correlation(_levels(sums, SAME_SUM * sums.abs().amax(dim=1)), _levels(-found.score, SAME_SCORE * largest))
        return torch.where(largest.isfinite(), agreement, torch.nan)


def _levels(values: Tensor, unit: Tensor) -> Tensor:
    """Rows as whole multiples of the rounding unit, so that rounding in a batch does not decide the order."""
    return (values / torch.where(unit > 0, unit, 1)[:, None]).round()


def idsds(
    predict: Predict,
    images: Tensor,
    masks: Tensor,
    targets: Targets,
    *,
    fill: Fill,
    grid: int = 4,
    replace_with: DeletionFill = "mean",
    multi_label: bool = False,
    chunk: int = 8,
    outputs: Outputs | None = None,
) -> Tensor:
    """Spearman's rank correlation, over the patches of a grid, of the map's sum in a patch with the fall of the target's score without it.

    ρ(Σ_patch S, z(x) − z(x without the patch)), where z is the target's score, for a class its logit. Each patch is deleted separately. The
    metric is in-domain if the network was fine-tuned on images with a patch deleted (`xattn train --preset idsds`); for other networks it
    is the single-deletion score.

    Args:
        predict: images in pixel space `(B, 3, H, W)` → logits `(B, K)`, before any softmax or sigmoid.
        images: `(B, 3, H, W)` in pixel space.
        masks: `(B, H, W)`: masks, or raw maps of this size, with their sign.
        targets: class indices `(B,)`, or a target.
        fill: the classifier's mean colour, three values in pixel space; may be None where it is not needed.
        grid: patches along each side, 4 in the paper.
        replace_with: what a deleted patch shows: "mean", "black", "blur", "noise" or "noisy-linear", the setting `fill` of a run.
        multi_label: sigmoid instead of softmax.
        chunk: images per forward.
        outputs: what `predict` gives, "logits" or "probabilities"; None: logits, and rows that are all probabilities are refused.

    Returns:
        `(B,)` float64 in [-1, 1], 1 for a linear network and its own terms, -1 for the negative of these; NaN for a map whose sums are all
        equal, or if no patch changes the score; higher is better.

    Differs: the paper's zeros after normalisation are the mean colour here. If the grid does not divide the image, patches differ by one
    pixel; the released code leaves a margin out. Scores and sums tie if they differ by at most 1e-6 of the largest. Pictures without a
    value are left out and counted; in the released code one such picture makes the mean NaN.

    >>> import torch
    >>> images, masks = torch.ones(1, 3, 4, 4), torch.arange(16.0).view(1, 4, 4)
    >>> weighed = lambda x: torch.stack([(x[:, 0] * masks).sum((1, 2)), 0 * x[:, 0, 0, 0]], dim=1)
    >>> idsds(weighed, images, masks, torch.tensor([0]), fill=None, replace_with="black").round(decimals=6)
    tensor([1.], dtype=torch.float64)
    """
    metric = IDSDS(grid, replace_with)
    mean = as_fill(fill)
    return measured("idsds", metric, predict, images, masks, targets, mean=mean, multi_label=multi_label, chunk=chunk, outputs=outputs)
