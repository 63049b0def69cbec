"""A pretrained network behind one face: source, stages, layout, resolution, head, normalisation, labels."""

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.concurrency import evaluating
from xattn.classifiers.forwards import Predictor, Tuning
from xattn.classifiers.loading import attach, load, model_names
from xattn.classifiers.preprocessing import Preprocessing
from xattn.classifiers.resolution import high_resolution
from xattn.classifiers.stages import Stage
from xattn.classifiers.tuning import fastest, tuned

__all__ = [
    "Classifier",
    "Predictor",
    "Preprocessing",
    "Stage",
    "Tuning",
    "attach",
    "evaluating",
    "fastest",
    "high_resolution",
    "load",
    "model_names",
    "tuned",
]
