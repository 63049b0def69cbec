"""Attention as functions: an alignment scores keys against a query, a distribution makes weights of the scores, their sum is the answer."""

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
