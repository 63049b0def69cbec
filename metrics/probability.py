"""Probabilities in float64, each with its complement."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from xattn.deferred import torch
from xattn.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUM_TOLERANCE = 1e-3  # tolerance of the sum of probabilities, also in half precision


class Probability(NamedTuple):
    """A probability and its complement, which is accurate near 1, where `1 - p` loses digits.

    Attributes:
        p: `(B,)` float64.
        rest: `(B,)` float64, 1 − p, summed from the other classes.
    """

    p: Tensor
    rest: Tensor


def widened(values: Tensor) -> Tensor:
    """The values in float64; on the CPU if the device has no float64 (MPS)."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def softmax_probability(logits: Tensor, classes: Tensor) -> Probability:
    """Softmax probability of one class per row. Definitions, Conventions.

    Args:
        logits: `(B, K)`, K ≥ 2.
        classes: `(B,)` class indices.

    Returns:
        NaN where a logit is NaN or +∞; a logit of −∞ (a class that the network masks) gives a probability of 0.

    Raises:
        InputError: there is only one class, whose softmax is always 1.
    """
    wide = widened(logits)
    if wide.shape[1] < 2:
        raise InputError("a softmax over one class is always 1: a network with a single logit needs multi_label=True.")
    column = classes.to(wide.device).view(-1, 1)
    own = wide.gather(1, column).squeeze(1)
    others = wide.scatter(1, column, -torch.inf).logsumexp(dim=1)
    whole = torch.logaddexp(own, others)
    p, rest = (own - whole).exp(), (others - whole).exp()
    undefined = ~torch.isfinite(p + rest)
    return Probability(p.masked_fill(undefined, torch.nan), rest.masked_fill(undefined, torch.nan))


def sigmoid_probability(scores: Tensor) -> Probability:
    """Sigmoid of a score, and of its negative as the complement.

    Args:
        scores: `(B,)`.
    """
    wide = widened(scores)
    return Probability(torch.sigmoid(wide), torch.sigmoid(-wide))


def log_odds(probabilities: Tensor) -> Tensor:
    """The logits of independent probabilities, log p − log(1 − p), finite at 0 and 1."""
    limits = torch.finfo(probabilities.dtype)
    return probabilities.clamp(min=limits.tiny).log() - torch.log1p(-probabilities.clamp(max=1 - limits.eps))
