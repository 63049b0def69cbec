"""Pictures with known parts: the effect of each subset of the parts, and of each background object, on a network's output.

A picture of this kind can be drawn again without a part, as those of SketchBirds (`xattn.birds.known_parts`) or of FunnyBirds (Hesse et al.
2023). The effect of a part is then measured, and a map can be compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import factorial
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.perturbations import LEVELS
from xattn.metrics.probability import widened

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 1e-5  # share of the largest logit: effects that differ by less are equal
UNKNOWN = -1  # instead of an index


@dataclass(frozen=True)
class Effects:
    """Effects of the parts on a network's output.

    Attributes:
        values: `(B, 2ᴺ)`, the target's logit with each subset of the N parts shown; part `i` is in subset `s` where bit `i` of `s` is set.
        removal: `(B, N)`, the fall of the logit when one part is removed from the whole picture.
        shapley: `(B, N)`, Shapley values; they sum to the logit of the whole picture minus that without any part.
    """

    values: Tensor
    removal: Tensor
    shapley: Tensor


@dataclass(frozen=True, eq=False)
class KnownParts:
    """The known parts of a batch of pictures, and their effects.

    A picture without known parts has no visible part, and no metric has a value for it.

    Attributes:
        visible: `(B, N, H, W)` bool, where each part is visible, at the size of the masks.
        logits: `(B, 2ᴺ, K)`, the network's output for each subset of the parts, numbered as in `Effects`.
        targets: `(B,)`, the class whose logit the effects are of.
        objects: `(B, T, H, W)` bool, where each object of the background is visible, padded with empty ones.
        without: `(B, T)`, the target's logit when one of the objects is removed from the whole picture.
        cue: `(B,)`, which of the objects is a cue that a network may have learnt instead of the parts; −1: none.
        rivals: `(B, 2)`, two classes that each have some parts of the picture, but different ones; −1: there are none.
        shared: `(B, 2, N)` bool, which parts each rival has.

    Raises:
        InputError: the shapes do not match.
    """

    visible: Tensor
    logits: Tensor
    targets: Tensor
    objects: Tensor | None = None
    without: Tensor | None = None
    cue: Tensor | None = None
    rivals: Tensor | None = None
    shared: Tensor | None = None

    def __post_init__(self) -> None:
        fits = self.visible.dim() == 4 and self.logits.dim() == 3
        if not fits or tuple(self.logits.shape[:2]) != (self.visible.shape[0], 2 ** self.visible.shape[1]):
            raise InputError(
                "known parts are visible (batch, parts, height, width) and logits (batch, 2 to the power of parts, classes); got "
                f"{tuple(self.visible.shape)} and {tuple(self.logits.shape)}."
            )
        if any(value is not None and len(value) != len(self) for value in (getattr(self, each.name) for each in fields(self))):
            raise InputError(f"known parts describe {len(self)} pictures, but one of their tensors has another length.")
        self._check_objects()
        targets, known = self.targets.cpu(), self.known.cpu()
        if bool((((targets < 0) | (targets >= self.logits.shape[2])) & known).any()):
            raise InputError(f"the targets of known parts are indices of the {self.logits.shape[2]} classes of their logits; got others.")

    def _check_objects(self) -> None:
        """Raises if objects, a cue or rivals do not fit the pictures."""
        classes = self.logits.shape[2]
        if (self.objects is None) != (self.without is None):
            raise InputError("the objects of the background need the target's logit without each of them: give both, or neither.")
        if self.objects is not None and self.without is not None:
            fits = self.objects.dim() == 4 and self.objects.shape[2:] == self.visible.shape[2:]
            if not fits or self.objects.shape[:2] != self.without.shape:
                raise InputError(
                    "objects are (batch, objects, height, width) at the size of the parts, without (batch, objects); got "
                    f"{tuple(self.objects.shape)} and {tuple(self.without.shape)}."
                )
        count = 0 if self.objects is None else self.objects.shape[1]
        if self.cue is not None and bool(((self.cue < UNKNOWN) | (self.cue >= count)).any()):
            raise InputError(f"a cue is the number of one of the {count} objects, or −1; got {self.cue.tolist()}.")
        if self.rivals is not None and bool(((self.rivals < UNKNOWN) | (self.rivals >= classes)).any()):
            raise InputError(f"rivals are indices of the {classes} classes of the logits, or −1; got {self.rivals.tolist()}.")

    def __len__(self) -> int:
        return len(self.visible)

    def part(self, part: slice) -> KnownParts:
        """The known parts of some of the pictures."""
        given: dict[str, Tensor] = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        return KnownParts(**{name: value[part] for name, value in given.items()})

    @property
    def known(self) -> Tensor:
        """`(B,)` bool: a part of the picture is visible, and the network's outputs are finite."""
        found = self.visible.flatten(1).any(dim=1) & self.logits.isfinite().flatten(1).all(dim=1).to(self.visible.device)
        if self.objects is None or self.without is None:
            return found
        shown = self.objects.flatten(2).any(dim=2)
        return found & (self.without.isfinite().to(shown.device) | ~shown).all(dim=1).to(found.device)

    @property
    def values(self) -> Tensor:
        """`(B, 2ᴺ)` float64, the target's logit with each subset of the parts."""
        logits = widened(self.logits)
        column = self.targets.to(logits.device).clamp(0, logits.shape[2] - 1)[:, None, None].expand(-1, logits.shape[1], 1)
        return logits.gather(2, column)[:, :, 0]

    @property
    def rounding(self) -> Tensor:
        """`(B, 1)` float64: effects that differ by less are equal, so that rounding in a batch does not decide the order of parts."""
        return (ROUNDING * self.values.abs().amax(dim=1, keepdim=True)).clamp(min=torch.finfo(torch.float64).tiny)


def effects_of(values: Tensor) -> Effects:
    """Effects from the values `(B, 2ᴺ)` of all subsets; part `i` is in subset `s` where bit `i` of `s` is set."""
    count = values.shape[1].bit_length() - 1
    every = torch.arange(values.shape[1], device=values.device)
    whole = values.shape[1] - 1
    removal, shapley = [], []
    for part in range(count):
        without = every[(every >> part & 1) == 0]
        gained = values[:, without | 1 << part] - values[:, without]
        sizes = [int(subset).bit_count() for subset in without]
        weights = [factorial(size) * factorial(count - size - 1) / factorial(count) for size in sizes]
        removal.append(values[:, whole] - values[:, whole & ~(1 << part)])
        shapley.append(gained @ torch.tensor(weights, dtype=values.dtype, device=values.device))
    return Effects(values, torch.stack(removal, dim=1), torch.stack(shapley, dim=1))


def in_parts(saliency: Tensor, visible: Tensor) -> Tensor:
    """Mean saliency in each part.

    Args:
        saliency: `(B, H, W)`, as masks of `xattn.explain` are.
        visible: `(B, N, H, W)` bool, where the parts are visible: `masks(scene).visible[None]` for one scene of SketchBirds.

    Returns:
        `(B, N)` float64; NaN for a part that is not visible.

    Raises:
        InputError: shapes that do not match.
    """
    total, area = _sums(saliency, visible)
    return total / area


def in_shares(saliency: Tensor, visible: Tensor) -> Tensor:
    """Share of the map's energy in each part: Σ_part S / Σ S, `(B, N)` float64; NaN for a map of zeros. Arguments as `in_parts`."""
    total, _ = _sums(saliency, visible)
    return total / widened(saliency).sum(dim=(1, 2))[:, None]


def _sums(saliency: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of the saliency in each part, and the number of its pixels, `(B, N)` float64."""
    if visible.dim() != 4 or saliency.shape != (len(visible), *visible.shape[2:]):
        raise InputError(
            f"in_parts takes saliency (batch, height, width) and masks (batch, parts, height, width) of the same size; got "
            f"{tuple(saliency.shape)} and {tuple(visible.shape)}. Use maps[method], not raw maps, and .visible[None] of one scene."
        )
    wide = widened(saliency)
    weights = visible.to(wide.device, torch.float64)
    return (wide[:, None] * weights).sum(dim=(2, 3)), weights.sum(dim=(2, 3))


def rounded(values: Tensor) -> Tensor:
    """Values of masks as multiples of 2⁻¹⁶, so that rounding that differs between batches or devices does not decide an order."""
    return (values * LEVELS).round() / LEVELS


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
    return torch.where(count >= 3, r.clamp(-1, 1), torch.nan)


def _ranks(values: Tensor, defined: Tensor) -> Tensor:
    """Ranks from 0 among the defined values of a row; ties get their mean rank."""
    known = torch.where(defined, values, torch.inf).double()
    below = (known[:, None, :] < known[:, :, None]).sum(dim=2)
    level = (known[:, None, :] == known[:, :, None]).sum(dim=2)
    return below.double() + (level - 1).double() / 2
