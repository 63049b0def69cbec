"""A pretrained network behind one interface: source, stages, layout, resolution, head, normalisation, labels.

Names are loaded on first use: the names of networks are listed without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.deferred import names_of

if TYPE_CHECKING:
    from xattn.data.preprocessing import Preprocessing
    from xattn.models.classifier import Classifier
    from xattn.models.concurrency import evaluating
    from xattn.models.layout import Layout, Stage
    from xattn.models.loading import attach, load
    from xattn.models.names import model_names
    from xattn.models.resolution import high_resolution

__all__ = [
    "Classifier",
    "Layout",
    "Preprocessing",
    "Stage",
    "attach",
    "evaluating",
    "high_resolution",
    "load",
    "model_names",
]

_HOMES = {
    "Classifier": "models.classifier",
    "Layout": "models.layout",
    "Preprocessing": "data.preprocessing",
    "Stage": "models.layout",
    "attach": "models.loading",
    "evaluating": "models.concurrency",
    "high_resolution": "models.resolution",
    "load": "models.loading",
    "model_names": "models.names",
}


__getattr__ = names_of(__name__, {name: f"xattn.{home}" for name, home in _HOMES.items()})
