"""What an explainer declares of itself."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from xattn.registry import Registry


class Need(enum.Enum):
    """What a method takes from a Trace, so that one forward and one backward of a batch serve all methods."""

    FEATURES = "features"
    GRADIENTS = "gradients"
    IMAGE_GRADIENTS = "image gradients"
    ATTENTION = "attention"


@dataclass(frozen=True)
class MethodFacts:
    """Facts of an explainer.

    Attributes:
        needs: what it takes from the trace.
        source: where it was published.
        control: it knows nothing of the network; a method that does not beat it shows nothing.
        direct: its raw map, at the image's size in [0, 1], is its mask.
        caution: what a reader of its maps should know.
    """

    needs: frozenset[Need]
    source: str
    control: bool = False
    direct: bool = False
    caution: str = ""


Method = TypeVar("Method", bound=Callable[..., Any])

methods: Registry[MethodFacts] = Registry("method")


def register(
    name: str,
    *,
    needs: Iterable[Need] = (),
    source: str,
    control: bool = False,
    direct: bool = False,
    caution: str = "",
) -> Callable[[Method], Method]:
    """Enters an explainer: a pure function of a Trace, or a frozen dataclass of settings with one `__call__(trace) → raw maps`."""
    return methods.register(name, MethodFacts(frozenset(needs), source, control, direct, caution))
