"""Methods that show where a classifier looks: each a pure function of a Trace, in one registry."""

from xattn.explainers.api import explain
from xattn.explainers.base import MethodMetadata, Need, RunsNetworkAgain, methods, register
from xattn.explainers.maps import Maps
from xattn.explainers.trace import Trace, trace
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = ["Maps", "MethodMetadata", "Need", "RunsNetworkAgain", "Trace", "explain", "methods", "register", "trace"]
