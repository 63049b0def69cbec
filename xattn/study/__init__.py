"""Classifiers × methods × metrics over images: the plan, the engines that do its work, and the folder that it fills.

Names are loaded on first use, so that code which only reads runs loads no networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xattn.deferred import names_of

if TYPE_CHECKING:
    from xattn.study.evaluation import evaluate
    from xattn.study.plan import Plan
    from xattn.study.store import Store
    from xattn.study.study import DEFAULT_METHODS, DEFAULT_METRICS, Outcome, Study

__all__ = ["DEFAULT_METHODS", "DEFAULT_METRICS", "Outcome", "Plan", "Store", "Study", "evaluate"]

_HOMES = {"Plan": "plan", "Store": "store", "evaluate": "evaluation"}


__getattr__ = names_of(__name__, {name: f"{__name__}.{_HOMES.get(name, 'study')}" for name in __all__})
