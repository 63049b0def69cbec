"""Score-CAM: class activation maps weighted by the network's response to the image masked by each feature map."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import Need, RunsNetworkAgain, register
from xattn.explainers.bilinear import Interpolation, interpolated
from xattn.explainers.regression import Budget, Masks, estimates, log_odds
from xattn.explainers.trace import Trace
from xattn.metrics.masking import degenerate
from xattn.metrics.probability import widened
from xattn.metrics.stream import PerturbedImages, of_rows
from xattn.metrics.target_base import Target
from xattn.registry import AtMost

Weighting = Literal["probability", "logit-softmax", "increase"]


@register("score-cam", needs={Need.FEATURES}, source="Wang et al. 2020, Alg. 1")
@dataclass(frozen=True)
class ScoreCAM(RunsNetworkAgain):
    """Feature maps weighted by the target's probability for the image masked by each of them.

    Masks are made within each chunk of forwards: no tensor of size channels × H × W is ever stored. A constant channel has weight 0 and is
    not run; channels with the same mask are run once.

    Attributes:
        weighting: "probability", as in the authors' code; "logit-softmax", softmax over the channels of the scores, as in pytorch-grad-cam;
            "increase", softmax over the channels of the increase in probability over a baseline, as printed in the paper's Alg. 1 (the
            baseline cancels in the softmax and is not run).
        chunk: masked images per forward; None: the run's.
        top: run only the channels with the largest sum of |F|; the others have weight 0. With "probability", a cell of the raw map then
            differs by at most the sum of |F| there over the skipped channels; a run reports by how much its scores differ on a sample.
            None: all.
        budget: share of the channels' passes that are run; the other responses are predicted by a Gaussian process over the masks, see
            `explainers/regression.py`. The maps' `errors` hold each cell's standard error. None: all.
        tolerance: end the passes of an image once the map's predicted error, the root mean square over its cells, is below this share of
            the map's range; with `budget`, whichever comes first.
        unbiased: draw half of the budget's passes at random, so that the weighted sum of the features, before its negative cells are set to
            0, is unbiased over draws. A single map differs more from the exact one than without this setting.
        align_corners: upsample feature maps with aligned corners, as pytorch-grad-cam and the CA-Stream release do.
    """

    weighting: Weighting = "probability"
    chunk: Annotated[int, AtMost(4_096)] | None = None
    top: int | None = None
    budget: float | None = None
    tolerance: float | None = None
    unbiased: bool = False
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise SettingError(f"score-cam runs at least one masked image per forward; got chunk={self.chunk}.")
        if self.top is not None and self.top < 1:
            raise SettingError(f"score-cam runs at least one channel; got top={self.top}.")
        if self._limit is None:
            return
        if self.weighting != "probability":
            raise SettingError(
                f"score-cam with a budget or a tolerance weights by probability; got weighting={self.weighting}: leave one out."
            )
        if self.top is not None:
            raise SettingError(f"top={self.top} leaves channels out, but a budget or a tolerance predicts them: give only one.")

    @property
    def _limit(self) -> Budget | None:
        return Budget.of("score-cam", self.budget, self.tolerance, self.unbiased)

    @property
    def exact(self) -> ScoreCAM:
        """The method with every channel run."""
        return replace(self, top=None, budget=None, tolerance=None, unbiased=False)

    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """The most forwards per image."""
        if self._limit is not None:
            return self._limit.passes(channels)
        return channels if self.top is None else min(self.top, channels)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, ≥ 0, at the stage's resolution.

        Raises:
            UnsupportedError: the weights are probabilities, but the target has none; or a budget or a tolerance is set at a stage of
                patches.
        """
        if self.weighting != "logit-softmax" and not trace.target.has_probability:
            raise UnsupportedError(
                f"score-cam weights channels by the target's probability, and {trace.target.kind} has none: use "
                "score-cam:weighting=logit-softmax, which takes the score."
            )
        if self._limit is not None and trace.patches is not None:
            raise UnsupportedError("score-cam predicts only maps of whole images; got a stage of patches: leave budget and tolerance out.")
        features = trace.features
        wanted = ~degenerate(features.flatten(0, 1)).view(features.shape[:2])
        if self.top is not None and self.top < features.shape[1]:
            energy = features.abs().sum(dim=(2, 3)).masked_fill(~wanted, -1.0)
            wanted &= torch.zeros_like(wanted).scatter_(1, energy.topk(self.top, dim=1).indices, True)
        scores = widened(features.new_full(wanted.shape, -torch.inf))
        scores[wanted.to(scores.device)] = self._scores(trace, *wanted.nonzero(as_tuple=True))
        weights = scores.masked_fill(scores == -torch.inf, 0) if self.weighting == "probability" else scores.softmax(dim=1).nan_to_num(0.0)
        return (weights.to(features)[:, :, None, None] * features).sum(dim=1).relu()

    def _scores(self, trace: Trace, image: Tensor, channel: Tensor) -> Tensor:
        """The target's score or probability for each pair of image and channel."""
        features, of = trace.features, (image, channel)
        image, channel, back = _distinct(features if trace.patches is None else _with_outside(features), image, channel)
        if not len(image):
            return widened(features.new_empty(0))
        if self._limit is None:
            found = trace.respond(repr(self), self._masked(trace, image, channel), self._read, self.chunk)
        else:
            given = widened(features[of].flatten(1))
            effects = given.new_zeros(len(image), given.shape[1]).index_add_(0, back.to(given.device), given)
            found = self._estimated(trace, self._limit, image, channel, effects)
        return found[back.to(found.device)]

    def _estimated(self, trace: Trace, limit: Budget, image: Tensor, channel: Tensor, effects: Tensor) -> Tensor:
        """The responses to the masks of some channels, those beyond the budget predicted; each cell's error goes to the trace.

        Args:
            trace: of the batch.
            limit: when the passes end.
            image: `(n,)`, the image of each mask.
            channel: `(n,)`, the channel of each mask.
            effects: `(n, h·w)`, sum of the features of the channels that have this mask.
        """
        maps = widened(trace.features[image, channel].flatten(1))
        low, high = (extreme[:, None] for extreme in maps.aminmax(dim=1))
        masks = (maps - low) / (high - low)
        places = [(image == own).nonzero()[:, 0] for own in range(len(trace.features))]
        of_images = [Masks(masks[own.to(masks.device)], effects[own.to(effects.device)], rectified=True) for own in places]

        def ask(wanted: Sequence[list[int]]) -> list[Tensor]:
            chosen = torch.cat([own[numbers] for own, numbers in zip(places, wanted, strict=True)])
            run = self._masked(trace, image[chosen], channel[chosen])
            found = trace.respond(f"{self!r}, masks {wanted}", run, log_odds, self.chunk)
            return list(found.split([len(numbers) for numbers in wanted]))

        found = estimates(of_images, ask, torch.sigmoid, limit, trace.seeds)
        trace.errors[repr(self)] = torch.stack([one.error for one in found]).view(-1, *trace.features.shape[2:]).to(trace.features)
        return torch.cat([one.responses for one in found])

    def _masked(self, trace: Trace, image: Tensor, channel: Tensor) -> PerturbedImages:
        images = trace.images.detach()
        masks = self._masks(trace, image, channel)

        def make(part: slice) -> tuple[Tensor, Tensor]:
            owner = image[part]
            return of_rows(images, owner) * masks(part), owner

        return PerturbedImages(len(image), make)

    def _masks(self, trace: Trace, image: Tensor, channel: Tensor) -> Callable[[slice], Tensor]:
        """The min-maxed upsampled maps of some channels: a slice of them → `(n, 1, H, W)`."""
        features, size = trace.features.detach(), (trace.images.shape[2], trace.images.shape[3])

        def bilinear(maps: Tensor) -> list[Interpolation]:
            return [Interpolation.between(*sides, maps, self.align_corners) for sides in zip(maps.shape[1:], size, strict=True)]

        if trace.patches is not None:  # as large as the image, once they are placed on it, so that only a part of them is made at a time

            def of_part(part: slice) -> Tensor:
                maps = trace.on_image(features[image[part], channel[part]], image[part])
                maps = interpolated(maps, bilinear(maps))
                return _min_maxed(maps, maps)[:, None]

            return of_part
        maps = features[image, channel]
        fully = bilinear(maps)
        scaled = _min_maxed(maps, interpolated(maps, [one.outermost() for one in fully]))
        return lambda part: interpolated(scaled[part], fully)[:, None]

    def _read(self, target: Target, output: Tensor) -> Tensor:
        return widened(target.score(output)) if self.weighting == "logit-softmax" else target.probability(output).p


def _min_maxed(maps: Tensor, among: Tensor) -> Tensor:
    """Maps `(n, ...)` scaled so that the extremes of `among`, `(n, ...)`, become 0 and 1; 0 where these are equal."""
    low, high = (extreme.view(-1, *[1] * (maps.dim() - 1)) for extreme in among.flatten(1).aminmax(dim=1))
    span = high - low  # 0 where a channel shows nothing on the image
    return (maps - low) / torch.where(span > 0, span, 1)


def _with_outside(features: Tensor) -> Tensor:
    """Maps of patches `(B, C, n·h, w)` with a row of zeros, their value outside all boxes."""
    return functional.pad(features, (0, 0, 0, 1))


def _distinct(features: Tensor, image: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The (image, channel) pairs whose masks differ, and for each given pair the position of the one with its mask.

    Channels with the same mask are usually active at the same single cell.
    """
    chosen: list[Tensor] = []
    back: list[Tensor] = []
    for own in range(len(features)):
        pairs = (image == own).nonzero()[:, 0]
        if not len(pairs):
            continue
        maps = features[own, channel[pairs]].flatten(1)
        low, high = (extreme[:, None] for extreme in maps.aminmax(dim=1))
        _, kind = ((maps - low) / (high - low)).unique(dim=0, return_inverse=True)
        positions = torch.arange(len(kind), device=kind.device)
        first = positions.new_full((int(kind.max()) + 1,), len(kind)).scatter_reduce_(0, kind, positions, "amin")
        kept = first.sort().values
        back.append(torch.searchsorted(kept, first[kind]) + sum(len(some) for some in chosen))
        chosen.append(pairs[kept])
    if not chosen:
        return image, channel, image
    kept_pairs = torch.cat(chosen)
    return image[kept_pairs], channel[kept_pairs], torch.cat(back)
