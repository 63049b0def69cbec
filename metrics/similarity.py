"""Similarity of two maps of the same picture, and entropy of one: the quantities that randomisation tests compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.perturbations import FLAT, LEVELS
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 11  # size in pixels to which Wang et al.'s Gaussian of σ = 1.5 is truncated


def pearson(maps: Tensor, others: Tensor) -> Tensor:
    """Pearson's correlation of the absolute values of two maps, over their cells.

    Args:
        maps: `(B, h, w)`.
        others: in the same form.

    Returns:
        `(B,)` float64 in [-1, 1]; NaN where a map is constant or not finite.

    >>> pearson(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]]]))
    tensor([1.], dtype=torch.float64)
    """
    return _correlation(*(_shares(some, maps.shape) for some in (maps, others)))


def spearman(maps: Tensor, others: Tensor) -> Tensor:
    """Spearman's rank correlation of the absolute values of two maps, over their cells; ties share their mean rank.

    Values are first rounded to 2⁻¹⁶ of the largest, so that rounding in a batch does not decide the order.

    Args:
        maps: `(B, h, w)`.
        others: in the same form.

    Returns:
        `(B,)` float64 in [-1, 1]; NaN where a map is constant or not finite.

    >>> spearman(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[1.0, -4.0], [9.0, 16.0]]]))
    tensor([1.], dtype=torch.float64)
    """
    return _correlation(*(_ranks(_shares(some, maps.shape)) for some in (maps, others)))


def _shares(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The absolute values as shares of the largest, `(B, h · w)` float64; NaN where a map is constant or not finite."""
    if maps.dim() != 3 or maps.shape != shape:
        raise InputError(f"two maps are compared cell by cell, (batch, height, width) each; got {tuple(shape)} and {tuple(maps.shape)}.")
    flat = widened(maps).abs().flatten(1)
    low, high = flat.aminmax(dim=1, keepdim=True)
    contrast = torch.isfinite(high) & (high - low > FLAT * high)
    return torch.where(contrast, flat / torch.where(contrast, high, 1), torch.nan)


def _ranks(values: Tensor) -> Tensor:
    from scipy.stats import rankdata

    found: Tensor = torch.as_tensor(rankdata((values * LEVELS).round().cpu().numpy(), axis=1, nan_policy="propagate"))
    return found.to(values)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (a, b.to(a.device)))
    found: Tensor = ((a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1))).clamp(-1, 1)
    return found


def ssim(masks: Tensor, others: Tensor) -> Tensor:
    """Structural similarity (SSIM) of two masks, with a Gaussian window of σ = 1.5. Source: Wang et al. 2004.

    Two masks that are near 0 almost everywhere have a high value, wherever their peaks are: it says little about sparse maps.

    Args:
        masks: `(B, H, W)` in [0, 1], 11 pixels or more on each side.
        others: in the same form.

    Returns:
        `(B,)` float64 in [-1, 1]; 1 for equal masks.

    >>> ssim(torch.eye(16)[None], torch.eye(16)[None])
    tensor([1.], dtype=torch.float64)
    """
    from skimage.metrics import structural_similarity

    if masks.dim() != 3 or masks.shape != others.shape or min(masks.shape[1:]) < WINDOW:
        raise InputError(
            f"structural similarity compares masks (batch, height, width) of {WINDOW} pixels or more per side; got "
            f"{tuple(masks.shape)} and {tuple(others.shape)}."
        )
    pairs = zip(*(some.double().cpu().numpy() for some in (masks, others)), strict=True)
    compare: Any = structural_similarity  # it has no types
    settings = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return torch.tensor([float(compare(a, b, **settings)) for a, b in pairs], dtype=torch.float64)


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the histogram of a map's values, in nats; it ignores their positions. Source: Hedström et al. 2024.

    **Differs**: the number of bins follows Rice's rule, 2 · ∛n for n cells, for every picture; the released code uses one number for a
    whole data set.

    Args:
        maps: `(B, h, w)`.

    Returns:
        `(B,)` float64 in [0, ln(bins)]; 0 where a map is constant, NaN where it is not finite.

    >>> entropy(torch.tensor([[[0.0, 0.0], [1.0, 1.0]]]))
    tensor([0.6931], dtype=torch.float64)
    """
    flat = widened(maps).flatten(1)
    bins = max(2, round(2 * flat.shape[1] ** (1 / 3)))
    low, high = flat.aminmax(dim=1, keepdim=True)
    span = high - low
    place = ((flat - low) / torch.where(span > 0, span, 1) * bins).nan_to_num(0.0).long().clamp(max=bins - 1)
    counts = flat.new_zeros(len(flat), bins).scatter_add_(1, place, torch.ones_like(flat)) / flat.shape[1]
    found = -torch.special.xlogy(counts, counts).sum(dim=1)
    return torch.where(torch.isfinite(span[:, 0]), found.clamp(min=0), torch.nan)
