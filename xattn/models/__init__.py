"""A pretrained network behind one interface: source, stages, layout, resolution, head, normalisation, labels."""

from xattn.data.preprocessing import Preprocessing
from xattn.models.classifier import Classifier
from xattn.models.concurrency import evaluating
from xattn.models.layout import Layout, Stage
from xattn.models.loading import attach, load
from xattn.models.resolution import high_resolution
from xattn.models.sources import model_names

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
