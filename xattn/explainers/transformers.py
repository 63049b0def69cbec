"""Methods for vision transformers: attention of their layers, propagated from the classified tokens back to those of the image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.errors import SettingError
from xattn.explainers.base import Need, register
from xattn.explainers.relevance import attention_relevance
from xattn.explainers.trace import Trace
from xattn.models.attention import attention_kept, between_tokens, by_head
from xattn.models.capture import tapped
from xattn.models.concurrency import evaluating
from xattn.models.layout import Stage, to_nchw

CLASS_FREE = "uses no class: its map is the same for every target"
LAYERS = frozenset({Need.LAYERS})
WITH_GRADIENTS = frozenset({Need.LAYERS, Need.LAYER_GRADIENTS})


@register("attention", needs=LAYERS, source="Vaswani et al. 2017, Eq. 1", caution=CLASS_FREE)
@dataclass(frozen=True)
class LayerAttention:
    """Attention of one layer, from the classified tokens to those of the image.

    Attributes:
        layer: counted from 0; negative from the end.
        head: counted from 0; None: the mean of all.
    """

    layer: int = -1
    head: int | None = None

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, in [0, 1].

        Raises:
            SettingError: there is no such layer or head.
            UnsupportedError: the network has no attention between tokens that can be followed.
        """
        layers = trace.layers
        if not -len(layers) <= self.layer < len(layers):
            raise SettingError(f"{trace.classifier.name} has {len(layers)} layers of attention; got layer={self.layer}.")
        attention = layers[self.layer]
        if self.head is not None and not 0 <= self.head < attention.shape[1]:
            raise SettingError(f"layer {self.layer} of {trace.classifier.name} has {attention.shape[1]} heads; got head={self.head}.")
        chosen = attention.mean(dim=1) if self.head is None else attention[:, self.head]
        return _map(trace, (trace.pooled_tokens[:, None] @ chosen)[:, 0])


@register("rollout", needs=LAYERS, source="Abnar and Zuidema 2020, Sec. 3", caution=CLASS_FREE)
def rollout(trace: Trace) -> Tensor:
    """Product over the layers of ½(A + I), A the mean over heads, from the classified tokens back to the image.

    Returns:
        Raw map `(B, h, w)`, in [0, 1].
    """
    return _map(trace, _followed(trace, (attention.mean(dim=1) for attention in reversed(trace.layers)), halved=True))


@register("grad-rollout", needs=WITH_GRADIENTS, source="Gildenblat 2020, attention rollout with gradients")
def grad_rollout(trace: Trace) -> Tensor:
    """Rollout in which each head's attention is weighted by the positive part of its gradient; rows of A + I are divided by their sums.

    Returns:
        Raw map `(B, h, w)`, in [0, 1].
    """
    pairs = zip(reversed(trace.layers), reversed(trace.layer_gradients), strict=True)
    steps = ((attention * gradient.relu()).mean(dim=1) for attention, gradient in pairs)
    return _map(trace, _followed(trace, (step / (1 + step.sum(dim=-1, keepdim=True)) for step in steps), normalised=True))


@register("generic-attention", needs=WITH_GRADIENTS, source="Chefer et al. 2021b (ICCV), Eq. 5–6")
def generic_attention(trace: Trace) -> Tensor:
    """Relevance of tokens, R ← R + Ā R over the layers from R = I, where Ā is the mean over heads of (∇A ⊙ A)⁺.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, of the rows of the tokens that are classified.
    """
    pairs = zip(reversed(trace.layers), reversed(trace.layer_gradients), strict=True)
    return _map(trace, _followed(trace, ((attention * gradient).relu().mean(dim=1) for attention, gradient in pairs)))


@register("chefer", needs=WITH_GRADIENTS, source="Chefer et al. 2021a (CVPR), Sec. 3")
def chefer(trace: Trace) -> Tensor:
    """Product over the layers of I + Ā, where Ā is the mean over heads of (∇A ⊙ R)⁺ and R the relevance of A by LRP.

    The rules of relevance are those of `xattn.explainers.relevance`.

    Returns:
        Raw map `(B, h, w)`, ≥ 0, of the rows of the tokens that are classified.

    Raises:
        UnsupportedError: the network has no attention that can be followed, or an operation without a rule for relevance.
    """
    pairs = zip(reversed(attention_relevance(trace)), reversed(trace.layer_gradients), strict=True)
    return _map(trace, _followed(trace, ((relevance * gradient).relu().mean(dim=1) for relevance, gradient in pairs)))


@register("legrad", needs=LAYERS, source="Bousselham et al. 2024")
def legrad(trace: Trace) -> Tensor:
    """Mean over layers, heads and queries of the positive gradient, with respect to a layer's attention, of that layer's own score.

    A layer's score is computed from its output tokens by the network's last norm, pooling and classifier. All layers' scores come from one
    forward and one backward, in which no gradient passes from a layer to the one before.

    Returns:
        Raw map `(B, h, w)`, ≥ 0.
    """
    outputs, attentions, scores, joined = _read_out(trace)
    (gradients,) = torch.autograd.grad(scores.sum(), joined)
    batch_axis = 1 if trace.classifier.token_stages[-1].layout.axes == "LNC" else 0
    own = torch.autograd.grad(outputs, attentions, gradients.chunk(len(outputs), dim=batch_axis))
    received = [by_head(gradient, len(trace.images)).relu().mean(dim=(1, 2)) for gradient in own]
    return _map(trace, torch.stack(received).mean(dim=0))


def _read_out(trace: Trace) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """The output of each layer, its attention, its score, and the joined outputs, to which the scores have a graph."""
    classifier, count = trace.classifier, len(trace.layers)
    last = classifier.token_stages[-1].layout
    outputs: list[Tensor] = []
    attentions: list[Tensor] = []
    joined: list[Tensor] = []

    def tap(stage: Stage, tensor: Tensor) -> Tensor | None:
        found = between_tokens(kept, len(trace.images), last.count)
        if len(found) == len(attentions) or joined:
            return None
        attentions.extend(found[len(attentions) :])
        outputs.append(tensor)
        if len(attentions) < count:
            return tensor.detach().requires_grad_()
        joined.append(torch.cat([output.detach() for output in outputs], dim=1 if last.axes == "LNC" else 0).requires_grad_())
        return joined[0]

    with torch.inference_mode(False), torch.enable_grad(), evaluating(classifier), attention_kept() as kept:
        images = trace.images.detach().clone().requires_grad_()
        with tapped(classifier.network, classifier.token_stages, tap):
            output = classifier.run(images).output
        index = torch.arange(len(images), device=images.device).repeat(len(outputs))
        return outputs, attentions, trace.target[index].score(output), joined[0]


def _followed(trace: Trace, steps: Iterable[Tensor], *, halved: bool = False, normalised: bool = False) -> Tensor:
    """Contribution of each token to the classified tokens: their shares times I + A of each layer, from the last to the first.

    Args:
        trace: of the images.
        steps: A of each layer, `(B, N, N)`, the last layer first.
        halved: ½(I + A) instead.
        normalised: A has been divided by the sums of rows of I + A, and I is, too.

    Returns:
        `(B, N)`.
    """
    row = trace.pooled_tokens[:, None]
    for step in steps:
        through = row @ step
        kept = row * (1 - step.sum(dim=-1))[:, None] if normalised else row
        row = (kept + through) / 2 if halved else kept + through
    return row[:, 0]


def _map(trace: Trace, tokens: Tensor) -> Tensor:
    """The map `(B, h, w)` of a value `(B, N)` for each token."""
    layout = trace.classifier.token_stages[-1].layout
    values = tokens[:, :, None]
    return to_nchw(values.transpose(0, 1) if layout.axes == "LNC" else values, layout)[:, 0]
