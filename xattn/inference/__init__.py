"""Execution of forwards: predictors, their tuning on a machine, several heads on one backbone, memory."""

from xattn.inference.predictor import Predictor
from xattn.inference.settings import Tuning
from xattn.inference.tuning import fastest, tuned

__all__ = ["Predictor", "Tuning", "fastest", "tuned"]
