"""Methods that show where a classifier looks: each a pure function of a Trace, entered in one registry."""

from xattn.explainers import activation, attention, cam, controls, doors, guided, score_cam
from xattn.explainers.facts import MethodFacts, Need, methods, register
from xattn.explainers.maps import Maps, explain
from xattn.explainers.trace import Trace, trace

__all__ = [
    "Maps",
    "MethodFacts",
    "Need",
    "Trace",
    "activation",
    "attention",
    "cam",
    "controls",
    "doors",
    "explain",
    "guided",
    "methods",
    "register",
    "score_cam",
    "trace",
]
