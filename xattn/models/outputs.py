"""Finds the feature map in a module's return value, and replaces it by another tensor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(output: Any) -> Iterator[Tensor]:
    """The tensors in an output, in order, however deep in tuples, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors_in(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name))


def map_in(output: Any) -> Tensor | None:
    """The feature map in a module's output: its first tensor of four axes, else its first tensor; None if it has none."""
    found = list(tensors_in(output))
    return next((tensor for tensor in found if tensor.dim() == 4), found[0] if found else None)


def exchanged(output: Any, old: Tensor, new: Tensor) -> Any:
    """The output with one tensor replaced by another, everything else unchanged."""
    if output is old:
        return new
    if isinstance(output, Mapping):
        changed: Any = copy.copy(output)
        for key, value in output.items():
            if (found := exchanged(value, old, new)) is not value:
                changed[key] = found
        return changed
    if isinstance(output, (tuple, list)):
        values = [exchanged(value, old, new) for value in output]
        make: Callable[..., Any] = getattr(type(output), "_make", type(output))  # of a named tuple
        return make(values)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        changed = copy.copy(output)
        for field in dataclasses.fields(output):
            object.__setattr__(changed, field.name, exchanged(getattr(output, field.name), old, new))  # it may be frozen
        return changed
    return output
