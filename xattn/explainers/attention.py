"""The head's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import UnsupportedError
from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace


@register("raw-attention", needs={Need.FEATURES, Need.ATTENTION}, source="Torres et al. 2024, Eq. 6; Gomez et al. 2021, Sec. 4.2")
@dataclass(frozen=True)
class RawAttention:
    """The head's own attention: the mean of its maps, in br-npa and b-cnn times the norm of the features; without a target.

    Attributes:
        attention: "softmax", the weights, which sum to 1 by whichever distribution the head has; or "logits", the scores before it, as the
            released CA-Stream code draws them.
    """

    attention: Literal["softmax", "logits"] = "softmax"

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0, except for the scores.

        Raises:
            UnsupportedError: the head has no attention, none at this stage, or none that is made by a softmax.
        """
        classifier, stage = trace.classifier, trace.stage.name
        maps = trace.attended.attention if self.attention == "softmax" else trace.attended.scores
        if not maps:
            what = "attention" if self.attention == "softmax" else "scores before a softmax"
            raise UnsupportedError(
                f"raw-attention shows the {what} of a head; {classifier.head_name} has none. Use ca-stream, or grad-cam."
            )
        if stage not in maps:
            raise UnsupportedError(f"{classifier.head_name} has no attention at stage '{stage}'. Choose one of: {', '.join(maps)}.")
        with torch.no_grad():
            found = maps[stage].detach()
            return classifier.head.saliency(trace.features, found if found.dtype == torch.float64 else found.float())
