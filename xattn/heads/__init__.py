"""Heads, which compute logits or the pooled vector from features: each is a plain module with settings in a frozen dataclass."""

from xattn.heads import abmilp, b_cnn, br_npa, ca_stream, dg_net, ep, gap, map, protopnet, simpool
from xattn.heads.abmilp import AbMILP, AbMILPHead
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
from xattn.heads.dg_net import DGNet, DGNetHead
from xattn.heads.ep import EfficientProbing, EfficientProbingHead
from xattn.heads.gap import Gap, GapHead
from xattn.heads.map import MAP, MAPHead
from xattn.heads.protopnet import ProtoPNet, ProtoPNetHead
from xattn.heads.simpool import SimPool, SimPoolHead
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = [
    "BCNN",
    "BRNPA",
    "MAP",
    "AbMILP",
    "AbMILPHead",
    "Attended",
    "BCNNHead",
    "BRNPAHead",
    "CAStream",
    "CAStreamHead",
    "ClassifierHead",
    "DGNet",
    "DGNetHead",
    "EfficientProbing",
    "EfficientProbingHead",
    "Gap",
    "GapHead",
    "Head",
    "HeadMaps",
    "HeadMetadata",
    "HeadSettings",
    "MAPHead",
    "NetworkInfo",
    "PoolingHead",
    "ProtoPNet",
    "ProtoPNetHead",
    "SimPool",
    "SimPoolHead",
    "StageInfo",
    "abmilp",
    "b_cnn",
    "br_npa",
    "ca_stream",
    "dg_net",
    "ep",
    "gap",
    "heads",
    "map",
    "protopnet",
    "representatives",
    "simpool",
]
