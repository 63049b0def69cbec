"""The probability of the target, and of everything else, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from xattn.errors import InputError

Predict = Callable[[Tensor], Tensor]
"""Images in pixel space `(B, 3, H, W)` → logits `(B, K)`."""


class Probability(NamedTuple):
    """Probability of the target and its complement, which near 1 holds digits that `1 - p` has lost.

    Attributes:
        p: `(B,)` float64.
        rest: `(B,)` float64, 1 − p, summed from the other classes.
    """

    p: Tensor
    rest: Tensor


def widened(values: Tensor) -> Tensor:
    """In float64; on the CPU where the device has none (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def probability(logits: Tensor, targets: Tensor, *, multi_label: bool = False) -> Probability:
    """Probability of each image's target. Definitions, Conventions.

    Args:
        logits: `(B, K)`.
        targets: `(B,)` class indices.
        multi_label: sigmoid of the target's logit instead of the softmax.

    Returns:
        NaN where a logit is NaN or +∞; a logit of −∞, of a class that the network masks, is a probability of 0.
    """
    wide = widened(logits)
    targets = targets.to(wide.device)
    column = targets.view(-1, 1)
    own = wide.gather(1, column).squeeze(1)
    if multi_label:
        return Probability(torch.sigmoid(own), torch.sigmoid(-own))
    if wide.shape[1] < 2:
        raise InputError("a softmax over one class is always 1: a network with a single logit needs multi_label=True.")
    others = wide.scatter(1, column, -torch.inf).logsumexp(dim=1)
    whole = torch.logaddexp(own, others)
    p, rest = (own - whole).exp(), (others - whole).exp()
    undefined = ~torch.isfinite(p + rest)
    return Probability(p.masked_fill(undefined, torch.nan), rest.masked_fill(undefined, torch.nan))
