"""torch, pandas and numpy, imported on first use: they take seconds, and code that lists components or reads runs needs few of them.

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
    """A module that is imported when one of its attributes is first used."""

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
    """Creates a package's `__getattr__`, which loads its public names on first use.

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
    """Whether a value is a torch tensor; always False while torch is not imported."""
    return "torch" in sys.modules and isinstance(value, torch.Tensor)
