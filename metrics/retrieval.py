"""Retrieval metrics for re-identification: cumulative matching characteristic (CMC) and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.statistics import CONFIDENCE, Interval, proportion_interval

if TYPE_CHECKING:
    from torch import Tensor

JUNK = -1
RANKS = (1, 5, 10)
AT_ONCE = 2**24  # similarities that are sorted at once


@dataclass(frozen=True)
class Ranking:
    """The rank of each query's first match in the gallery, and its average precision.

    Attributes:
        first: `(Q,)` int64, rank of the first match, from 1; 0 for a query without a match in the gallery.
        average_precision: `(Q,)` float64 in [0, 1]; NaN for a query without a match.
    """

    first: Tensor
    average_precision: Tensor

    def scores(self, *, resamples: int = 2000, seed: int = 0) -> dict[str, Interval]:
        """The share of queries whose first match is among the first 1, 5 and 10, and the mean average precision, by their names.

        Intervals are over queries: Wilson's for the shares, the percentile bootstrap's for the mean average precision. Queries without a
        match are left out, as in the published evaluation, and not counted in n.

        Args:
            resamples: number of bootstrap resamples.
            seed: of the bootstrap.
        """
        known = self.first > 0
        first, precision = self.first[known].cpu(), self.average_precision[known].cpu()
        found = {f"rank-{rank}": proportion_interval((first <= rank).double()) for rank in RANKS}
        n = len(first)
        if not n:
            return found | {"mAP": Interval(float("nan"), float("nan"), float("nan"), 0)}
        drawn = torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))
        tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
        low, high = precision[drawn].mean(dim=1).quantile(tails).tolist()
        return found | {"mAP": Interval(float(precision.mean()), low, high, n)}


def comparable(query: Tensor, query_cameras: Tensor | None, gallery: Tensor, gallery_cameras: Tensor | None) -> Tensor:
    """Which pictures of a gallery count for which query, `(Q, G)` bool, by the rules of Market-1501.

    Pictures of the query's identity by the query's camera do not count, and neither does junk (identity -1). Distractors (an identity that
    no query has, 0 in Market-1501) count.

    Args:
        query: identities `(Q,)`.
        query_cameras: `(Q,)`; None: cameras are ignored.
        gallery: identities `(G,)`.
        gallery_cameras: `(G,)`, or None.

    Source: Zheng et al. 2015, Sec. 3.2.
    """
    counts = (gallery != JUNK)[None].expand(len(query), -1)
    if query_cameras is None or gallery_cameras is None:
        return counts
    return counts & ~((query[:, None] == gallery) & (query_cameras[:, None] == gallery_cameras))


def rank_gallery(
    similarities: Tensor,
    query: Tensor,
    gallery: Tensor,
    query_cameras: Tensor | None = None,
    gallery_cameras: Tensor | None = None,
) -> Ranking:
    """Ranks a gallery for each query by similarity.

    Among equal similarities matches come last, so that neither the order of the gallery nor a constant network gains a score.

    Args:
        similarities: `(Q, G)`; larger means more similar.
        query: identities `(Q,)`.
        gallery: identities `(G,)`; -1 is junk.
        query_cameras: `(Q,)`; with `gallery_cameras`, pictures of the same identity by the same camera do not count, see `comparable`.
        gallery_cameras: `(G,)`.

    Raises:
        InputError: the sizes do not match, or similarities are not finite.

    Differs: average precision is the mean of the precisions at the matches; Market-1501's own script averages each precision with the
    previous one (trapezoids), and breaks ties by the order of the gallery.

    >>> import torch
    >>> rank_gallery(torch.tensor([[0.9, 0.8, 0.1]]), torch.tensor([7]), torch.tensor([3, 7, 7])).average_precision
    tensor([0.5833], dtype=torch.float64)
    """
    sizes = (len(query), len(gallery))
    cameras = tuple(None if seen is None else len(seen) for seen in (query_cameras, gallery_cameras))
    if tuple(similarities.shape) != sizes or cameras not in ((None, None), sizes):
        raise InputError(
            f"similarities are (queries, gallery), with one identity per picture, and one camera per picture or none; got "
            f"{tuple(similarities.shape)}, "
            f"{sizes[0]} and {sizes[1]} identities, {cameras[0]} and {cameras[1]} cameras."
        )
    if not bool(torch.isfinite(similarities).all()):
        raise InputError("similarities must be finite; got NaN or infinity: the network gave a vector that is not finite.")
    step = max(1, AT_ONCE // max(1, sizes[1]))
    found = []
    for start in range(0, sizes[0], step):
        part = slice(start, start + step)
        own = None if query_cameras is None else query_cameras[part]
        found.append(_ranked(similarities[part], query[part], comparable(query[part], own, gallery, gallery_cameras), gallery))
    empty = similarities.new_empty(0)
    first, precision = (torch.cat(column) for column in zip(*found, strict=True)) if found else (empty.long(), empty.double())
    return Ranking(first, precision)


def _ranked(similarities: Tensor, query: Tensor, counts: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Rank of the first match and average precision of some queries."""
    matches = (query[:, None] == gallery) & counts
    values = similarities.masked_fill(~counts, -torch.inf)  # after all that count
    others_first = matches.to(torch.uint8).argsort(dim=1, stable=True)
    order = others_first.gather(1, values.gather(1, others_first).argsort(dim=1, descending=True, stable=True))
    hits = matches.gather(1, order)
    places = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    precisions = torch.where(hits, hits.cumsum(dim=1).double() / places, 0.0)
    first = (hits.cumsum(dim=1) == 0).sum(dim=1) + 1
    return first.where(hits.any(dim=1), torch.zeros_like(first)), precisions.sum(dim=1) / hits.sum(dim=1)  # 0/0 without a match
