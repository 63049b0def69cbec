"""Classifiers × methods × metrics over images: the plan, the engines that do its work, and the folder that it fills."""

from xattn.study.plan import Plan
from xattn.study.scoring import evaluate
from xattn.study.store import Store
from xattn.study.study import DEFAULT_METHODS, DEFAULT_METRICS, Outcome, Study

__all__ = ["DEFAULT_METHODS", "DEFAULT_METRICS", "Outcome", "Plan", "Store", "Study", "evaluate"]
