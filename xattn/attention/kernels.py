"""Alignment by a kernel, whose values are divided by their sum instead of a softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from xattn.attention.base import AlignmentMetadata, AlignmentSettings, alignments, check_shapes, product, widened
from xattn.errors import SettingError
from xattn.registry import AtMost


@alignments.register(
    "generalised-kernel",
    AlignmentMetadata(formula="φ(q)ᵀφ(kᵢ), φ = elu + 1 or random features", source="Choromanski et al. 2021", kernel=True),
)
@dataclass(frozen=True)
class GeneralisedKernel(AlignmentSettings):
    """Product of positive features of query and key, a kernel; divided by the sum, without a softmax.

    Attributes:
        random_features: number of positive orthogonal random features (FAVOR+), whose kernel approaches exp(qᵀk/√d), that of scaled-dot
            with a softmax, as their number grows; they are drawn when the module is built and stored with its weights. None: φ(x) = elu(x)
            + 1.
    """

    random_features: Annotated[int, AtMost(65_536)] | None = None

    def __post_init__(self) -> None:
        if self.random_features is not None and self.random_features < 1:
            raise SettingError(f"generalised-kernel takes random_features of at least 1, or none; got {self.random_features}.")

    def build(self, d_q: int, d_k: int, n: int | None = None) -> Kernel:
        """The module, which has no trainable weights."""
        return Kernel(d_k, self.random_features)


class Kernel(nn.Module):
    """`generalised-kernel` as a module: query `(B, d)`, keys `(B, n, d)` → values of the kernel `(B, n)`, ≥ 0.

    Args:
        d: width of query and keys.
        random_features: their number; None: elu(x) + 1.

    Differs: with random features, the values of a query are divided by the largest of them to avoid overflow; the division by their sum
    cancels this.
    """

    projection: Tensor | None

    def __init__(self, d: int, random_features: int | None = None) -> None:
        super().__init__()
        self.register_buffer("projection", None if random_features is None else orthogonal_gaussian(random_features, d))

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes("generalised-kernel", query, keys)
        query, keys = widened(query, keys)
        if self.projection is None:
            return product(elu_features(query), elu_features(keys))
        with torch.autocast(query.device.type, enabled=False):
            scale = keys.shape[2] ** -0.25  # on both: exp(qᵀk/√d)
            of_query, of_keys = (log_random_features(vectors * scale, self.projection) for vectors in (query, keys))
            logarithms = (of_query[:, None] + of_keys).logsumexp(dim=2)
            return (logarithms - logarithms.amax(dim=1, keepdim=True)).exp()


def elu_features(vectors: Tensor) -> Tensor:
    """elu(x) + 1, which is x + 1 above 0 and eˣ below: positive features `(…, d)` of vectors `(…, d)`.

    >>> elu_features(torch.tensor([2.0, 0.0]))
    tensor([3., 1.])
    """
    return torch.where(vectors > 0, vectors + 1, vectors.clamp(max=0).exp())


def log_random_features(vectors: Tensor, projection: Tensor) -> Tensor:
    """Logarithms of the positive random features of FAVOR+: ωⱼᵀx − ‖x‖²/2 − log(m)/2, so that E[φ(x)ᵀφ(y)] = exp(xᵀy).

    Args:
        vectors: x, `(…, d)`.
        projection: rows ωⱼ, `(m, d)`, each normally distributed.

    Returns:
        `(…, m)`.

    Source: Choromanski et al. 2021 (arXiv 2009.14794).

    >>> log_random_features(torch.zeros(1, 2), torch.ones(1, 2))
    tensor([[0.]])
    """
    vectors, projection = widened(vectors, projection)
    return vectors @ projection.T - vectors.square().sum(dim=-1, keepdim=True) / 2 - math.log(len(projection)) / 2


def orthogonal_gaussian(rows: int, d: int) -> Tensor:
    """Normally distributed rows `(rows, d)` that are orthogonal to each other in blocks of d, drawn from torch's generator."""
    blocks = math.ceil(rows / d)
    directions, triangles = torch.linalg.qr(torch.randn(blocks, d, d))
    directions = directions * triangles.diagonal(dim1=1, dim2=2).sign()[:, None]  # makes the directions uniformly distributed
    lengths = torch.linalg.vector_norm(torch.randn(blocks, d, d), dim=2, keepdim=True)
    drawn: Tensor = (lengths * directions.mT).flatten(0, 1)[:rows]
    return drawn
