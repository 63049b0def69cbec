"""What an explainer declares of itself, and the registry of explainers."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from torch import Tensor

from xattn.registry import Registry


class Need(enum.Enum):
    """What a method takes from a Trace, so that one forward and one backward of a batch serve all methods."""

    FEATURES = "features"
    GRADIENTS = "gradients"
    IMAGE_GRADIENTS = "image gradients"
    ATTENTION = "attention"


@dataclass(frozen=True)
class MethodMetadata:
    """What a method declares of itself.

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

    @property
    def shows_head(self) -> bool:
        """Whether it shows the maps of the head."""
        return Need.ATTENTION in self.needs


Method = Callable[..., Tensor]
"""A trace → raw maps `(B, h, w)`."""

Registered = TypeVar("Registered", bound=Callable[..., Any])


class RunsNetworkAgain(ABC):
    """Settings of a method that runs the network on perturbed images."""

    @abstractmethod
    def forwards(self, channels: int) -> int:
        """Forwards per image, at most.

        Args:
            channels: of the stage.
        """

    @property
    def exact(self) -> Self:
        """The same without a short cut; itself, where it takes none."""
        return self


methods: Registry[MethodMetadata, Method] = Registry("method")


def register(
    name: str,
    *,
    needs: Iterable[Need] = (),
    source: str,
    control: bool = False,
    direct: bool = False,
    caution: str = "",
) -> Callable[[Registered], Registered]:
    """Decorator that enters an explainer: a pure function of a Trace, or a frozen dataclass of settings with one `__call__(trace)`."""
    return methods.register(name, MethodMetadata(frozenset(needs), source, control, direct, caution))
