"""What a module or a network returns: the tensor in it that matters, and the same output with another tensor in its place."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from xattn.errors import UnsupportedError

OUTPUT_KEYS = ("logits", "out")  # of transformers, and of torchvision's segmentation networks


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
    """The output with one tensor in the place of another, everything else as it was."""
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


def read_output(output: Any, name: str) -> Tensor:
    """The output that is explained in what a network returns: logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`.

    Args:
        output: of the network.
        name: how messages call it.

    Raises:
        UnsupportedError: there is none.
    """
    found = output
    if not isinstance(found, Tensor):
        if isinstance(found, Mapping):
            found = next((found[key] for key in OUTPUT_KEYS if key in found), None)
        elif hasattr(found, "logits"):
            found = found.logits
        elif isinstance(found, (tuple, list)):
            found = next((item for item in found if isinstance(item, Tensor) and item.dim() == 2), None)
    if isinstance(found, Tensor) and found.dim() == 4 and found.shape[2:] == (1, 1):
        found = found.flatten(1)
    if not isinstance(found, Tensor) or found.dim() not in (2, 4):
        came = tuple(found.shape) if isinstance(found, Tensor) else type(output).__name__
        raise UnsupportedError(
            f"{name} must give logits (batch, classes), or a map of logits (batch, classes, height, width), alone or as 'logits' or in a "
            f"tuple; it gave {came}."
        )
    return found
