"""The head's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace
from xattn.models.layout import to_nchw
from xattn.models.streams import LOCAL_STAGE


@register(
    "raw-attention",
    needs={Need.FEATURES, Need.ATTENTION},
    source="Torres et al. 2024, Eq. 6; Gomez et al. 2021, Sec. 4.2; Shroff 2020, Ch. 7",
)
@dataclass(frozen=True)
class RawAttention:
    """The head's own attention: the mean of its maps, in br-npa and b-cnn times the norm of the features; without a target.

    Attributes:
        attention: "softmax", the weights, which sum to 1 by whichever distribution the head has; or "logits", the scores before it, as the
            released CA-Stream code draws them.
        step: of a two-stream network with self-attention, the step whose map is shown; None: the mean of all, each weighted by the weight
            of its step.
    """

    attention: Literal["softmax", "logits"] = "softmax"
    step: int | None = None

    def __post_init__(self) -> None:
        if self.step is not None and self.step < 1:
            raise SettingError(f"steps are counted from 1; got step={self.step}.")

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0, except for the scores.

        Raises:
            UnsupportedError: the head has no attention, none at this stage, none that is made by a softmax, or no such step.
        """
        if self.step is not None or trace.looks is not None:
            return self._of_steps(trace)
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

    def _of_steps(self, trace: Trace) -> Tensor:
        """Where the self-attention of a two-stream network looks: `(B, n·h, w)`, the map of each patch sums to 1."""
        looks = trace.looks_of("raw-attention:step", self.step or 1)
        if looks.attention is None or self.attention == "logits":
            raise UnsupportedError(
                f"raw-attention shows where the self-attention of a two-stream network looks; {trace.classifier.name} has none: build it "
                "with self_attention=true."
            )
        if trace.stage.name != LOCAL_STAGE:
            raise UnsupportedError(f"{trace.classifier.name} attends at stage '{LOCAL_STAGE}', not at '{trace.stage.name}'.")
        attention = looks.attention.detach()
        attention = attention if attention.dtype == torch.float64 else attention.float()
        alpha = looks.alpha.detach().flatten(0, 1)
        weights = (alpha / alpha.sum(dim=1, keepdim=True))[:, :, None, None].to(attention)
        shown = (weights * attention).sum(dim=1, keepdim=True) if self.step is None else attention[:, self.step - 1, None]
        return to_nchw(shown, trace.stage.layout)[:, 0]
