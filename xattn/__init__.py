"""Visual explanation of image classifiers, with evidence.

    clf = xattn.load("torchvision:resnet50")
    maps = xattn.explain(clf, images, methods=["grad-cam", "score-cam"])
    rows = xattn.evaluate(clf, images, maps, metrics=["average-drop", "insertion"])

Names are loaded on first use: importing xattn does not import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.errors import XattnError
    from xattn.explainers import Maps, explain
    from xattn.fewshot import adapt
    from xattn.metrics import Similarity
    from xattn.models import Classifier, attach, load
    from xattn.study import Study, evaluate
    from xattn.study.expectation import why


def _refuse_mixed_checkouts() -> None:
    """Raises where `xattn.metrics` or `xattn.cli` would come from another checkout than this package, or from none.

    A checkout has them next to `xattn/`, an installed package inside it. With an editable install of one checkout, Python started in
    another would import `xattn` from one and the rest from the other, without a warning.
    """
    home = os.path.dirname(os.path.realpath(__file__))
    for name in ("metrics", "cli"):
        spec = importlib.util.find_spec(f"xattn.{name}")
        places = [] if spec is None else [os.path.realpath(place) for place in spec.submodule_search_locations or ()]
        if not places:
            raise ImportError(
                f"{home} is the folder of a checkout that is not installed: install it with pip install -e {os.path.dirname(home)}, or run "
                "from another folder."
            )
        if places[0] not in (os.path.join(home, name), os.path.join(os.path.dirname(home), name)):
            raise ImportError(
                f"two checkouts of xattn are mixed: xattn is {home}, xattn.{name} is {places[0]}. Install the one that you mean into this "
                f"environment (pip install -e {os.path.dirname(home)}), or run from a folder outside the other."
            )


_refuse_mixed_checkouts()

__version__ = "0.2.0"
__all__ = ["Classifier", "Maps", "Similarity", "Study", "XattnError", "adapt", "attach", "evaluate", "explain", "load", "why"]

_HOMES = {
    "Classifier": "xattn.models",
    "Maps": "xattn.explainers",
    "Similarity": "xattn.metrics",
    "Study": "xattn.study",
    "XattnError": "xattn.errors",
    "adapt": "xattn.fewshot",
    "attach": "xattn.models",
    "evaluate": "xattn.study",
    "explain": "xattn.explainers",
    "load": "xattn.models",
    "why": "xattn.study.expectation",
}
_PACKAGES = (
    "app",
    "attention",
    "birds",
    "data",
    "explainers",
    "fewshot",
    "figures",
    "heads",
    "inference",
    "metrics",
    "models",
    "patches",
    "report",
    "study",
    "tasks",
    "training",
)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"xattn.{name}")
    raise AttributeError(f"module 'xattn' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES, "__version__"])
