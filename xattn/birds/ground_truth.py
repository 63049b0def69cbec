"""Ground truth of a network on SketchBirds: the effect of each part on the target's logit, and how well a map agrees with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import factorial

import torch
from torch import Tensor

from xattn.birds.drawing import subsets
from xattn.birds.scene import Scene
from xattn.errors import InputError


@dataclass(frozen=True)
class Effects:
    """Effects of the parts on a network's answer.

    Attributes:
        values: `(B, 32)`, the target's logit with each subset of the parts shown, numbered as in `xattn.birds.drawing.subsets`.
        removal: `(B, 5)`, how far the logit falls when one part is removed from the whole bird.
        shapley: `(B, 5)`, Shapley values; they sum to the logit of the whole bird minus that of the bare body.
    """

    values: Tensor
    removal: Tensor
    shapley: Tensor


def effects(predict: Callable[[Tensor], Tensor], scenes: Sequence[Scene], targets: Sequence[int] | Tensor | None = None) -> Effects:
    """The true effect of each part on the target's logit, from renders of all 2⁵ subsets of the parts.

    Args:
        predict: images `(B, 3, 64, 64)` in pixel space, float in [0, 1] → logits `(B, K)`; for example `classifier.predict`.
        scenes: a list of scenes, as from `SketchBirds.scene`: whole birds, or birds that lack parts; a missing part has effect 0.
        targets: one class index per scene; None: each bird's own class.

    Returns:
        Float64, on the CPU, in units of the logit.

    Raises:
        InputError: the numbers of targets and scenes differ, or there are none.
    """
    if isinstance(scenes, Scene):
        raise InputError("effects takes a list of scenes: write [scene].")
    wanted = [scene.label for scene in scenes] if targets is None else [int(target) for target in targets]
    if not scenes or len(wanted) != len(scenes):
        raise InputError(f"effects needs a target for each of one scene or more; got {len(scenes)} scenes and {len(wanted)} targets.")
    values = torch.stack(
        [predict(subsets(scene).float() / 255)[:, target].double().cpu() for scene, target in zip(scenes, wanted, strict=True)]
    )
    return effects_of(values)


def effects_of(values: Tensor) -> Effects:
    """Effects from the values `(B, 2ᴺ)` of all subsets; part `i` is in subset `s` where bit `i` of `s` is set."""
    count = values.shape[1].bit_length() - 1
    every = torch.arange(values.shape[1])
    whole = values.shape[1] - 1
    removal, shapley = [], []
    for part in range(count):
        without = every[(every >> part & 1) == 0]
        gained = values[:, without | 1 << part] - values[:, without]
        sizes = [int(subset).bit_count() for subset in without]
        weights = [factorial(size) * factorial(count - size - 1) / factorial(count) for size in sizes]
        removal.append(values[:, whole] - values[:, whole & ~(1 << part)])
        shapley.append(gained @ torch.tensor(weights, dtype=values.dtype))
    return Effects(values, torch.stack(removal, dim=1), torch.stack(shapley, dim=1))


def in_parts(saliency: Tensor, visible: Tensor) -> Tensor:
    """Mean saliency in each part.

    Args:
        saliency: `(B, H, W)`, as masks of `xattn.explain` are.
        visible: `(B, 5, H, W)` bool, the visible masks of the parts: `masks(scene).visible[None]` for one scene.

    Returns:
        `(B, 5)` float64; NaN for a part that is not visible.

    Raises:
        InputError: shapes that do not match.
    """
    if visible.dim() != 4 or saliency.shape != (len(visible), *visible.shape[2:]):
        raise InputError(
            f"in_parts takes saliency (batch, height, width) and masks (batch, parts, height, width) of the same size; got "
            f"{tuple(saliency.shape)} and {tuple(visible.shape)}. Use maps[method], not raw maps, and .visible[None] of one scene."
        )
    weights = visible.to(saliency.device, torch.float64)
    total: Tensor = (saliency.double()[:, None] * weights).sum(dim=(2, 3))
    return total / weights.sum(dim=(2, 3))


def rank_correlation(found: Tensor, true: Tensor) -> Tensor:
    """Spearman's rank correlation of each row.

    Args:
        found: `(B, N)`; NaN where there is nothing to compare.
        true: `(B, N)`.

    Returns:
        `(B,)` in [-1, 1]; NaN for a row with fewer than three values, or whose values are all equal.
    """
    true = true.to(found.device)
    defined = ~found.isnan()
    a, b = (_ranks(values, defined) for values in (found, true))
    count = defined.sum(dim=1)
    a, b = (torch.where(defined, r - (torch.where(defined, r, 0).sum(1) / count)[:, None], 0) for r in (a, b))
    r: Tensor = (a * b).sum(dim=1) / (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return torch.where(count >= 3, r, torch.nan)


def _ranks(values: Tensor, defined: Tensor) -> Tensor:
    """Ranks from 0 among the defined values of a row; ties get their mean rank."""
    known = torch.where(defined, values, torch.inf).double()
    below = (known[:, None, :] < known[:, :, None]).sum(dim=2)
    level = (known[:, None, :] == known[:, :, None]).sum(dim=2)
    return below.double() + (level - 1).double() / 2


def share_inside(saliency: Tensor, inside: Tensor) -> Tensor:
    """Share of a map's energy that lies inside a mask.

    Args:
        saliency: `(B, H, W)`, ≥ 0.
        inside: `(B, H, W)` bool.

    Returns:
        `(B,)` float64 in [0, 1]; NaN for a map of zeros.
    """
    energy = saliency.double().clamp(min=0)
    share: Tensor = (energy * inside.to(energy.device)).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))
    return share
