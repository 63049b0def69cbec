"""Captures the attention of a network's own layers during a forward, for every implementation of attention."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from xattn.models.capture import captured
from xattn.models.layout import Stage

_MULTI_HEAD = inspect.signature(functional.multi_head_attention_forward)


class _Layers(TorchFunctionMode):
    """Computes attention by an explicit softmax, and stores it with its graph.

    It sees `scaled_dot_product_attention`, `nn.MultiheadAttention` and softmaxes over the last axis, only in this thread. It switches off
    the fast paths of torch's own modules, which call none of these.

    Args:
        keep: called with each attention, `(…, queries, keys)`.
        isolated: every token attends only to itself, if there are as many queries as keys.
    """

    def __init__(self, keep: Callable[[Tensor], None], *, isolated: bool = False) -> None:
        super().__init__()
        self.keep = keep
        self.isolated = isolated

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") == "softmax" and isinstance(result, Tensor) and _over_last(result, args, kwargs):
            if self.isolated and result.shape[-2] == result.shape[-1]:
                result = torch.eye(result.shape[-1], dtype=result.dtype, device=result.device).expand_as(result)
            self.keep(result)
        return result

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (found.repeat_interleave(query.shape[-3] // found.shape[-3], dim=-3) for found in (key, value))
        scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        if self.isolated and scores.shape[-2] == scores.shape[-1]:
            scores = scores + _itself_alone(scores)
        attention = scores.softmax(dim=-1)
        self.keep(attention)
        return functional.dropout(attention, dropout_p) @ value

    def _multi_head(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        given = _MULTI_HEAD.bind(*args, **kwargs)
        given.apply_defaults()
        wanted, averaged = given.arguments["need_weights"], given.arguments["average_attn_weights"]
        query, key = given.arguments["query"], given.arguments["key"]
        if self.isolated and len(query) == len(key):
            given.arguments["attn_mask"] = _itself_alone(query.new_empty(len(query), len(key)))
            given.arguments["is_causal"] = False
        given.arguments["need_weights"], given.arguments["average_attn_weights"] = True, False
        output, weights = functional.multi_head_attention_forward(*given.args, **given.kwargs)
        assert weights is not None
        self.keep(weights if weights._base is None else weights._base)  # the output was computed from the base, not from this view
        if not wanted:
            return output, None
        return output, weights.mean(dim=1) if averaged else weights


def _over_last(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return result.dim() >= 3 and axis in (-1, result.dim() - 1)


def _itself_alone(scores: Tensor) -> Tensor:
    mask = torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype, device=scores.device)
    return mask.fill_diagonal_(0)


@contextmanager
def attention_kept() -> Iterator[list[Tensor]]:
    """Stores the attention `(…, queries, keys)` of every layer that runs in the block, in order, each in the graph of the output."""
    kept: list[Tensor] = []
    with _Layers(kept.append):
        yield kept


def between_tokens(kept: Sequence[Tensor], batch: int, count: int, queries: int | None = None) -> list[Tensor]:
    """Selects the attentions from all tokens of an image to all, or from a number of queries to all; they are not changed."""
    sides = (count if queries is None else queries, count)
    return [found for found in kept if found.shape[-2:] == sides and found.shape[:-2].numel() % batch == 0]


def by_head(attention: Tensor, batch: int) -> Tensor:
    """Attention as `(B, heads, queries, keys)`, a view."""
    return attention.reshape(batch, -1, *attention.shape[-2:])


def attention_layers(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, first: Stage, last: Stage) -> int:
    """Number of a network's layers with attention between all tokens; 0 if anything else also mixes its tokens.

    If every token attends only to itself, a token of the last map must change only if the token at the same position of the first map does.

    Args:
        network: the network.
        forward: images `(B, 3, H, W)` → output, running `network`.
        image: `(1, 3, H, W)`.
        first: the first map of tokens.
        last: the last one, with the same tokens.
    """
    changed = image.clone()
    high, wide = (max(1, round(side / cells)) for side, cells in zip(image.shape[-2:], last.size, strict=True))
    changed[:, :, : high // 2 + 1, : wide // 2 + 1] = 1
    kept: list[Tensor] = []
    with torch.no_grad(), _Layers(kept.append, isolated=True), captured(network, [first, last]) as found:
        forward(torch.cat([image, changed]))
    tokens = [stage.layout.tokens(found[stage.name]) for stage in (first, last)]
    moved = [(each[0] != each[1]).any(dim=1) for each in tokens]
    if moved[0].shape != moved[1].shape or bool((moved[1] & ~moved[0]).any()):
        return 0
    return len(between_tokens(kept, 2, tokens[1].shape[1]))
