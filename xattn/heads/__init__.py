"""Heads, which stand between features and logits: each is a plain module, with its settings in a frozen dataclass."""

from xattn.heads import b_cnn, br_npa, ca_stream, gap
from xattn.heads.b_cnn import BCNN, BCNNHead
from xattn.heads.base import (
    Attended,
    ClassifierHead,
    Head,
    HeadMaps,
    HeadMetadata,
    HeadSettings,
    NetworkInfo,
    PoolingHead,
    StageInfo,
    heads,
)
from xattn.heads.br_npa import BRNPA, BRNPAHead, representatives
from xattn.heads.ca_stream import CAStream, CAStreamHead
from xattn.heads.gap import Gap, GapHead
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = [
    "BCNN",
    "BRNPA",
    "Attended",
    "BCNNHead",
    "BRNPAHead",
    "CAStream",
    "CAStreamHead",
    "ClassifierHead",
    "Gap",
    "GapHead",
    "Head",
    "HeadMaps",
    "HeadMetadata",
    "HeadSettings",
    "NetworkInfo",
    "PoolingHead",
    "StageInfo",
    "b_cnn",
    "br_npa",
    "ca_stream",
    "gap",
    "heads",
    "representatives",
]
