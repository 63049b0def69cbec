"""Visual explanation of image classifiers, with evidence.

    clf = xattn.load("torchvision:resnet50")
    maps = xattn.explain(clf, images, methods=["grad-cam", "score-cam"])
    rows = xattn.evaluate(clf, images, maps, metrics=["average-drop", "insertion"])

Names are loaded on first use: importing xattn loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.classifiers import Classifier, attach, load
    from xattn.errors import XattnError
    from xattn.explainers import Maps, explain
    from xattn.study import Study, evaluate

if importlib.util.find_spec("xattn.metrics") is None:
    raise ImportError(
        f"{__path__[0]} is the folder of a checkout, found before the installed package, whose metrics and cli lie elsewhere: install the "
        "checkout with pip install -e, or run from another folder."
    )

__version__ = "0.1.0"
__all__ = ["Classifier", "Maps", "Study", "XattnError", "attach", "evaluate", "explain", "load"]

_HOMES = {
    "Classifier": "xattn.classifiers",
    "Maps": "xattn.explainers",
    "Study": "xattn.study",
    "XattnError": "xattn.errors",
    "attach": "xattn.classifiers",
    "evaluate": "xattn.study",
    "explain": "xattn.explainers",
    "load": "xattn.classifiers",
}


_PACKAGES = ("birds", "classifiers", "explainers", "figures", "heads", "metrics", "study", "training")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"xattn.{name}")
    raise AttributeError(f"module 'xattn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__"])
