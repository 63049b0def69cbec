"""torch, pandas and numpy, imported on first use: what lists components or reads runs needs none or few of them, and they take seconds.

    from xattn.deferred import torch

For annotations `from torch import Tensor` stays below `TYPE_CHECKING`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["is_tensor", "names_of", "numpy", "pandas", "torch"]


class _Deferred(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


if TYPE_CHECKING:
    import numpy as numpy
    import pandas as pandas
    import torch as torch
else:
    numpy = _Deferred("numpy")
    pandas = _Deferred("pandas")
    torch = _Deferred("torch")


def names_of(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`, by which its public names are loaded on first use.

    Args:
        package: its name.
        homes: the module that each name is in.
    """

    def loaded(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(homes[name]), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return loaded


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a tensor of torch; where torch is not imported, nothing is."""
    return "torch" in sys.modules and isinstance(value, torch.Tensor)
