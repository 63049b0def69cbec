"""The last part of a classifier: one linear layer on a vector, or two with a hidden layer between them."""

from __future__ import annotations

from typing import Annotated

from torch import nn

from xattn.errors import SettingError
from xattn.registry import AtMost

Width = Annotated[int, AtMost(65_536)]


class Hidden(nn.Sequential):
    """Linear, ReLU, linear, on a vector.

    Args:
        in_features: D, of the vector.
        hidden: width of the hidden layer.
        classes: K.
    """

    def __init__(self, in_features: int, hidden: int, classes: int) -> None:
        super().__init__(nn.Linear(in_features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def last_layers(in_features: int, classes: int, hidden: int = 0) -> nn.Linear | Hidden:
    """Vectors `(B, D)` → logits `(B, K)`.

    Args:
        in_features: D.
        classes: K.
        hidden: width of the hidden layer; 0: there is none.
    """
    return Hidden(in_features, hidden, classes) if hidden else nn.Linear(in_features, classes)


def check_width(hidden: int, name: str) -> None:
    """Checks the width of a hidden layer.

    Raises:
        SettingError: it is below 0.
    """
    if hidden < 0:
        raise SettingError(f"{name} takes hidden of 0 (no hidden layer) or more; got hidden={hidden}.")
