"""Raw attention: the attention maps of the head, or of the network, without a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import Need, register
from xattn.explainers.trace import Trace
from xattn.heads.base import Head
from xattn.metrics.targets import Region
from xattn.models.gates import gate_at
from xattn.models.layout import to_nchw
from xattn.models.streams import LOCAL_STAGE

OF_CLASSES = "its attention is a map per class, without ranks and kept scores: leave the setting out, and name the class as the target"


@register(
    "raw-attention",
    needs={Need.FEATURES, Need.ATTENTION},
    source="Torres et al. 2024, Eq. 6; Gomez et al. 2021, Sec. 4.2, C and D.2; Shroff 2020, Ch. 7",
)
@dataclass(frozen=True)
class RawAttention:
    """The head's own attention, without a target: the mean of its maps, for br-npa and b-cnn times the norm of the features.

    For a network with relation-aware attention (rga:BACKBONE) and no head that attends: the gate of each position times the norm of the
    features, at any of its stages. The source does not say which features: stage `layer4` has those after the gates, `layer4.features`
    those before the gates.

    For an OCR network (ocr:BACKBONE): the weights of the positions in the region vector of the target's class, which sum to 1, at any
    stage; with regions=representatives the map of the class's representative. As in the source, they are not multiplied by the norm of the
    features. The classes have no order, so there are no ranks.

    Attributes:
        attention: "softmax", the weights, which sum to 1 (whatever distribution the head uses); or "logits", the scores before it, as the
            released CA-Stream code draws them.
        step: of a two-stream network with self-attention, the step whose map is shown; None: the mean of all, each weighted by the weight
            of its step.
        rank: of a head with ranked maps (br-npa), only the map of this rank (1 is the strongest), times the norm of the features; "mean":
            the mean of all. The maps of other heads have no order (those of b-cnn are the outputs of a convolution), so only their mean is
            shown.
    """

    attention: Literal["softmax", "logits"] = "softmax"
    step: int | None = None
    rank: int | Literal["mean"] = "mean"

    def __post_init__(self) -> None:
        if self.step is not None and self.step < 1:
            raise SettingError(f"steps are counted from 1; got step={self.step}.")
        if self.rank != "mean" and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise SettingError(f"ranks are counted from 1, and 'mean' is the mean of all; got rank={self.rank}.")
        if self.rank != "mean" and self.step is not None:
            raise SettingError(
                "rank selects a head's map and step a step of a two-stream network, which takes no head: give only one of them."
            )

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)` at the stage's resolution; ≥ 0, except for the scores.

        Raises:
            UnsupportedError: the head has no attention, has none at this stage or none from a softmax, or has no such rank or step.
        """
        if self.step is not None or trace.looks is not None:
            return self._of_steps(trace)
        classifier, stage = trace.classifier, trace.stage.name
        if trace.gates and not trace.attended.attention:
            return self._of_gates(trace)
        if trace.regions is not None:
            return self._of_regions(trace, trace.regions)
        maps = trace.attended.attention if self.attention == "softmax" else trace.attended.scores
        if not maps:
            what = "attention" if self.attention == "softmax" else "scores before a softmax"
            raise UnsupportedError(
                f"raw-attention shows the {what} of a head; {classifier.head_name} has none. Use ca-stream, or grad-cam."
            )
        if lacks := without_rank(classifier.head, self.rank):
            raise UnsupportedError(f"raw-attention:rank={self.rank} on {classifier.name} · {classifier.head_name}: {lacks}.")
        if stage not in maps:
            raise UnsupportedError(f"{classifier.head_name} has no attention at stage '{stage}'. Choose one of: {', '.join(maps)}.")
        with torch.no_grad():
            found = maps[stage].detach()
            found = found[:, self.rank - 1, None] if isinstance(self.rank, int) else found
            return classifier.head.saliency(trace.features, found if found.dtype == torch.float64 else found.float())

    def _of_gates(self, trace: Trace) -> Tensor:
        """The gate of each position times the norm of the features, for a network with relation-aware attention."""
        name = trace.classifier.name
        if self.rank != "mean" or self.attention == "logits":
            raise UnsupportedError(f"the gates of {name} are one map per stage, without ranks and kept scores: leave the setting out.")
        gated = gate_at(trace.stage.name, tuple(trace.gates))
        if gated is None:
            raise UnsupportedError(f"{name} has no attention at stage '{trace.stage.name}'. Choose one of: {', '.join(trace.gates)}.")
        gates = trace.gates[gated].detach()[:, 0]
        with torch.no_grad():
            norms: Tensor = torch.linalg.vector_norm(trace.features, dim=1)
            return (gates if gates.dtype == torch.float64 else gates.float()) * norms

    def _of_regions(self, trace: Trace, weights: Tensor) -> Tensor:
        """The weights of the positions in the region vector of the target's class, for an OCR network."""
        name, target = trace.classifier.name, trace.target
        if self.rank != "mean" or self.attention == "logits":
            raise UnsupportedError(f"{name}: {OF_CLASSES}.")
        if not isinstance(target, Region):
            raise UnsupportedError(
                f"raw-attention of {name} explains the class of a region, but the target is {target.kind}: give 'predicted', an "
                f"index, a name "
                "or a Region."
            )
        found = weights.detach()[torch.arange(len(weights)), target.classes.to(weights.device)]
        return found if found.dtype == torch.float64 else found.float()

    def _of_steps(self, trace: Trace) -> Tensor:
        """The self-attention of a two-stream network, `(B, n·h, w)`; the map of each patch sums to 1."""
        if self.rank != "mean":
            raise UnsupportedError(
                f"raw-attention:rank={self.rank} shows a head's map, and {trace.classifier.name} takes no head: leave rank out."
            )
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


def without_rank(head: Head, rank: int | Literal["mean"]) -> str | None:
    """The reason why a head has no map of a rank, and what it has instead; None if it has one.

    Args:
        head: the module.
        rank: from 1; "mean": of all, which every head has.
    """
    if not isinstance(rank, int) or rank <= head.ranks:
        return None
    if head.ranks:
        return f"it has {head.ranks} ranked maps: give rank=1{f' to rank={head.ranks}' * (head.ranks > 1)}, or leave it out for their mean"
    return "its maps have no ranks (those of br-npa have): leave rank out, which shows the mean of its maps"
