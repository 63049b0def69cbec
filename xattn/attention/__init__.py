"""Attention as functions: an alignment scores keys by a query, a distribution turns scores into weights, and values are summed by
weight."""

from xattn.attention.base import (
    Alignment,
    AlignmentMetadata,
    AlignmentSettings,
    Attention,
    Distribution,
    DistributionMetadata,
    align,
    alignments,
    attend,
    check_names,
    distribution,
    distributions,
)
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = [
    "Alignment",
    "AlignmentMetadata",
    "AlignmentSettings",
    "Attention",
    "Distribution",
    "DistributionMetadata",
    "align",
    "alignments",
    "attend",
    "check_names",
    "distribution",
    "distributions",
]
