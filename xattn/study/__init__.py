"""Classifiers × methods × metrics over images: the plan, the engines that do its work, and the folder that it fills.

Names are loaded on first use: what reads runs alone loads no networks.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xattn.study.evaluation import evaluate
    from xattn.study.plan import Plan
    from xattn.study.store import Store
    from xattn.study.study import DEFAULT_METHODS, DEFAULT_METRICS, Outcome, Study

__all__ = ["DEFAULT_METHODS", "DEFAULT_METRICS", "Outcome", "Plan", "Store", "Study", "evaluate"]

_HOMES = {"Plan": "plan", "Store": "store", "evaluate": "evaluation"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"xattn.study.{_HOMES.get(name, 'study')}"), name)
    raise AttributeError(f"module 'xattn.study' has no attribute '{name}'")
