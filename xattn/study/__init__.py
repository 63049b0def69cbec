"""Classifiers × methods × metrics over images: the plan, its run, and the folder it fills."""

from xattn.study.scoring import evaluate
from xattn.study.store import Store
from xattn.study.study import DEFAULT_METHODS, DEFAULT_METRICS, Outcome, Study

__all__ = ["DEFAULT_METHODS", "DEFAULT_METRICS", "Outcome", "Store", "Study", "evaluate"]
