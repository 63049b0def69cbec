"""Class activation maps from what the network says to each feature map's view of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from xattn.errors import SettingError
from xattn.explainers.facts import Need, register
from xattn.explainers.trace import Trace
from xattn.metrics.masking import degenerate
from xattn.metrics.probability import probability, widened

Weighting = Literal["probability", "logit-softmax"]


@register("score-cam", needs={Need.FEATURES}, source="Wang et al. 2020, Alg. 1")
@dataclass(frozen=True)
class ScoreCAM:
    """Feature maps weighted by the target's score when only they are left to see.

    Masks are made inside each chunk of forwards: nothing of size channels × H × W is ever held. A constant channel weighs 0 and is
    not run; channels whose masks are the same are run once.

    Attributes:
        weighting: "probability", the authors'; "logit-softmax", softmax over the channels of the logits, as pytorch-grad-cam has it.
        chunk: masked images a forward; None: the run's.
        top: run only the channels with the largest sum of |F|; the others weigh 0. With "probability" a cell of the raw map is then
            off by at most what |F| adds up to there over the channels left out; a run says how far its scores lie off on a sample.
            None: all.
    """

    weighting: Weighting = "probability"
    chunk: int | None = None
    top: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise SettingError(f"score-cam runs at least one masked image a forward; got chunk={self.chunk}.")
        if self.top is not None and self.top < 1:
            raise SettingError(f"score-cam runs at least one channel; got top={self.top}.")

    @property
    def exact(self) -> ScoreCAM:
        """Every channel run."""
        return replace(self, top=None)

    def forwards(self, channels: int) -> int:
        """Forwards of an image, at most."""
        return channels if self.top is None else min(self.top, channels)

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, ≥ 0, at the stage's resolution."""
        features = trace.features
        wanted = ~degenerate(features.flatten(0, 1)).view(features.shape[:2])
        if self.top is not None and self.top < features.shape[1]:
            energy = features.abs().sum(dim=(2, 3)).masked_fill(~wanted, -1.0)
            wanted &= torch.zeros_like(wanted).scatter_(1, energy.topk(self.top, dim=1).indices, True)
        scores = widened(features.new_full(wanted.shape, -torch.inf))
        scores[wanted.to(scores.device)] = self._scores(trace, *wanted.nonzero(as_tuple=True))
        scores = scores.softmax(dim=1).nan_to_num(0.0) if self.weighting == "logit-softmax" else scores.clamp(min=0)
        return (scores.to(features)[:, :, None, None] * features).sum(dim=1).relu()

    def _scores(self, trace: Trace, image: Tensor, channel: Tensor) -> Tensor:
        """What the target gets when an image is seen through a channel, for each pair; for a family of heads once."""
        key = repr(self)
        if key not in trace.shared:
            family = trace.family or [trace]
            for each, found in zip(family, self._run(trace, family, image, channel), strict=True):
                each.shared[key] = found
        return trace.shared[key]

    def _run(self, trace: Trace, family: list[Trace], image: Tensor, channel: Tensor) -> list[Tensor]:
        image, channel, back = _distinct(trace.features, image, channel)
        size, chunk, owners = trace.images.shape[-2:], self.chunk or trace.predictor.chunk, image.tolist()
        rows, columns = (outermost(*sides).to(image.device) for sides in zip(trace.features.shape[-2:], size, strict=True))
        found = [widened(trace.features.new_empty(len(image))) for _ in family]  # one block: many small ones would break memory up
        for start in range(0, len(image), chunk):
            i, c = image[start : start + chunk], channel[start : start + chunk]
            maps = functional.interpolate(trace.features[i, c][:, None], size=size, mode="bilinear", align_corners=False)
            corners = maps[:, :, rows[:, None], columns].flatten(1)
            low, high = (extreme[:, None, None, None] for extreme in corners.aminmax(dim=1))
            of_one = owners[start] == owners[start + len(i) - 1]
            shown = trace.images.detach()[owners[start], None] if of_one else trace.images.detach()[i]
            masked = shown * maps.sub_(low).div_(high - low)
            padded = functional.pad(masked, (0, 0) * 3 + (0, chunk - len(i))) if len(i) < chunk else masked
            logits = trace.joint(padded) if trace.joint is not None else [trace.predictor(padded)]
            for each, said, scores in zip(family, logits, found, strict=True):
                scores[start : start + len(i)] = self._score(said[: len(i)], each.targets[i], each.classifier.multi_label)
        return [scores[back.to(scores.device)] for scores in found]

    def _score(self, logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
        if self.weighting == "probability":
            return probability(logits, targets, multi_label=multi_label).p
        return widened(logits.gather(1, targets[:, None]).squeeze(1))


def outermost(cells: int, pixels: int) -> Tensor:
    """The places along a side of a map of so many cells, upsampled to so many pixels, among which its extremes are.

    Between two neighbouring cells' centres a bilinear map is straight along either side, so no pixel there exceeds the first and the last.
    """
    between = ((torch.arange(pixels) + 0.5) * cells / pixels - 0.5).clamp(min=0).floor()
    changes = between.diff() != 0
    ends = torch.ones(1, dtype=torch.bool)
    return (torch.cat([ends, changes]) | torch.cat([changes, ends])).nonzero()[:, 0]


def _distinct(features: Tensor, image: Tensor, channel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of image and channel whose masks differ, and for each pair given the place of its like among them.

    Channels that fire at one and the same cell alone are the usual case.
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
        places = torch.arange(len(kind), device=kind.device)
        first = places.new_full((int(kind.max()) + 1,), len(kind)).scatter_reduce_(0, kind, places, "amin")
        kept = first.sort().values
        back.append(torch.searchsorted(kept, first[kind]) + sum(len(some) for some in chosen))
        chosen.append(pairs[kept])
    if not chosen:
        return image, channel, image
    together = torch.cat(chosen)
    return image[together], channel[together], torch.cat(back)
