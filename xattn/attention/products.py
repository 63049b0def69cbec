"""Alignments by a product of query and key."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.attention.base import AlignmentMetadata, AlignmentSettings, alignments, check_shapes, product, widened

SMALLEST_NORM = 1e-12


@alignments.register("similarity", AlignmentMetadata(formula="qᵀkᵢ / (‖q‖ ‖kᵢ‖)", source="Graves et al. 2014a"))
def similarity(query: Tensor, keys: Tensor) -> Tensor:
    """Cosine of query and key.

    Args:
        query: `(B, d)`.
        keys: `(B, n, d)`.

    Returns:
        Scores `(B, n)` in [−1, 1], which do not change if query or keys are scaled; 0 if one of them is 0. Norms are floored at 1e-12.
    """
    check_shapes("similarity", query, keys)
    query, keys = (functional.normalize(vectors, dim=-1, eps=SMALLEST_NORM) for vectors in widened(query, keys))
    return product(query, keys)


@alignments.register("dot", AlignmentMetadata(formula="qᵀkᵢ", source="Luong et al. 2015a"))
def dot(query: Tensor, keys: Tensor) -> Tensor:
    """Dot product of query and key.

    Args:
        query: `(B, d)`.
        keys: `(B, n, d)`.

    Returns:
        Scores `(B, n)`.
    """
    check_shapes("dot", query, keys)
    return product(query, keys)


@alignments.register("scaled-dot", AlignmentMetadata(formula="qᵀkᵢ / √d", source="Vaswani et al. 2017"))
def scaled_dot(query: Tensor, keys: Tensor) -> Tensor:
    """Dot product of query and key, divided by the square root of their width.

    Args:
        query: `(B, d)`.
        keys: `(B, n, d)`.

    Returns:
        Scores `(B, n)`, in the precision of the keys.
    """
    check_shapes("scaled-dot", query, keys)
    scaled = query / math.sqrt(keys.shape[2])  # scaled before the product, which could overflow in half precision
    return torch.bmm(scaled[:, None].to(keys.dtype), keys.transpose(1, 2)).squeeze(1)


@alignments.register("general", AlignmentMetadata(formula="qᵀW kᵢ", source="Luong et al. 2015a"))
@dataclass(frozen=True)
class General(AlignmentSettings):
    """Bilinear form of query and key; with W the identity, their dot product."""

    def build(self, d_q: int, d_k: int, n: int | None = None) -> BilinearForm:
        """The module, W Xavier-uniform."""
        return BilinearForm(d_q, d_k)


@alignments.register("activated-general", AlignmentMetadata(formula="tanh(qᵀW kᵢ + b)", source="Ma et al. 2017b"))
@dataclass(frozen=True)
class ActivatedGeneral(AlignmentSettings):
    """Bilinear form of query and key with a bias, through tanh.

    The scores lie in (−1, 1), so that after a softmax no weight is more than e² times another.
    """

    def build(self, d_q: int, d_k: int, n: int | None = None) -> BilinearForm:
        """The module, W Xavier-uniform, b zero."""
        return BilinearForm(d_q, d_k, activated=True)


class BilinearForm(nn.Module):
    """`general` and `activated-general` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        d_q: width of the query.
        d_k: width of the keys.
        activated: add a bias and take the tanh.
    """

    def __init__(self, d_q: int, d_k: int, activated: bool = False) -> None:
        super().__init__()
        self.name = "activated-general" if activated else "general"
        self.weight = nn.Parameter(torch.empty(d_q, d_k))
        self.bias = nn.Parameter(torch.zeros(1)) if activated else None
        nn.init.xavier_uniform_(self.weight)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes(self.name, query, keys, (self.weight.shape[0], self.weight.shape[1]))
        with torch.autocast(query.device.type, enabled=False):
            query, weight = widened(query, self.weight)
            scores = product(query @ weight, keys)
        return scores if self.bias is None else (scores + self.bias).tanh()


@alignments.register("biased-general", AlignmentMetadata(formula="kᵢᵀ(W q + b)", source="Sordoni et al. 2016"))
@dataclass(frozen=True)
class BiasedGeneral(AlignmentSettings):
    """Dot product of the key and a projection of the query with a bias."""

    def build(self, d_q: int, d_k: int, n: int | None = None) -> ProjectedQuery:
        """The module, W Xavier-uniform, b zero."""
        return ProjectedQuery(d_q, d_k)


class ProjectedQuery(nn.Module):
    """`biased-general` as a module: query `(B, d_q)`, keys `(B, n, d_k)` → scores `(B, n)`.

    Args:
        d_q: width of the query.
        d_k: width of the keys.
    """

    def __init__(self, d_q: int, d_k: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_q, d_k)
        nn.init.xavier_uniform_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        check_shapes("biased-general", query, keys, (self.linear.in_features, self.linear.out_features))
        return product(self.linear(query), keys)
