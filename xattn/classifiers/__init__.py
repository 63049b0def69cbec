"""A pretrained network behind one face: source, stages, layout, resolution, head, normalisation, labels."""

from xattn.classifiers.classifier import Classifier, evaluating
from xattn.classifiers.loading import attach, load, model_names
from xattn.classifiers.preprocessing import Preprocessing
from xattn.classifiers.resolution import high_resolution
from xattn.classifiers.stages import Stage

__all__ = ["Classifier", "Preprocessing", "Stage", "attach", "evaluating", "high_resolution", "load", "model_names"]
