"""Class activation maps from what the network says to each feature map's view of the image."""

from __future__ import annotations

from dataclasses import dataclass
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
    not run.

    Attributes:
        weighting: "probability", the authors'; "logit-softmax", softmax over the channels of the logits, as pytorch-grad-cam has it.
        chunk: masked images a forward; None: the run's.
    """

    weighting: Weighting = "probability"
    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise SettingError(f"score-cam runs at least one masked image a forward; got chunk={self.chunk}.")

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, ≥ 0, at the stage's resolution."""
        features, size = trace.features, trace.images.shape[-2:]
        channels = features.shape[1]
        alive = ~degenerate(features.flatten(0, 1)).view(len(features), channels)
        image, channel = alive.nonzero(as_tuple=True)
        scores = widened(features.new_zeros(alive.shape))
        chunk = self.chunk or trace.chunk
        for start in range(0, len(image), chunk):
            i, c = image[start : start + chunk], channel[start : start + chunk]
            maps = functional.interpolate(features[i, c][:, None], size=size, mode="bilinear", align_corners=False)
            low, high = (extreme[:, None, None, None] for extreme in maps.flatten(1).aminmax(dim=1))
            masked = trace.images.detach()[i] * ((maps - low) / (high - low))
            logits = trace.classifier.predict(functional.pad(masked, (0, 0) * 3 + (0, chunk - len(i))))[: len(i)]
            found = self._score(logits, trace.targets[i], trace.classifier.multi_label)
            scores[i.to(scores.device), c.to(scores.device)] = found
        if self.weighting == "logit-softmax":
            scores = scores.masked_fill(~alive.to(scores.device), -torch.inf).softmax(dim=1).nan_to_num(0.0)
        weights = scores.to(features)[:, :, None, None]
        return (weights * features).sum(dim=1).relu()

    def _score(self, logits: Tensor, targets: Tensor, multi_label: bool) -> Tensor:
        if self.weighting == "probability":
            return probability(logits, targets, multi_label=multi_label).p
        return widened(logits.gather(1, targets[:, None]).squeeze(1))
