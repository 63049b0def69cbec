"""What stands between the features and the logits: each head a plain module, with its settings in a frozen dataclass."""

from xattn.heads import b_cnn, br_npa, ca_stream, gap
from xattn.heads.b_cnn import BCNN, BCNNHead
from xattn.heads.br_npa import BRNPA, BRNPAHead, representatives
from xattn.heads.ca_stream import CAStream, CAStreamHead
from xattn.heads.facts import Attended, ClassifierHead, Head, HeadFacts, Place, Site, heads
from xattn.heads.gap import Gap, GapHead

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
    "HeadFacts",
    "Place",
    "Site",
    "b_cnn",
    "br_npa",
    "ca_stream",
    "gap",
    "heads",
    "representatives",
]
