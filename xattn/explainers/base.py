"""What an explainer declares, and the registry of explainers."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from torch import Tensor

from xattn.registry import Registry


class Need(enum.Enum):
    """What a method needs from a Trace, so that one forward and one backward of a batch serve all methods."""

    FEATURES = "features"
    GRADIENTS = "gradients"
    IMAGE_GRADIENTS = "image gradients"
    ATTENTION = "attention"
    LAYERS = "attention of the network's layers"
    LAYER_GRADIENTS = "gradients of the attention of the network's layers"


@dataclass(frozen=True)
class MethodMetadata:
    """What a method declares.

    Attributes:
        needs: what it needs from the trace.
        source: where it was published.
        control: it does not use the network; a method that does not beat it shows nothing.
        direct: its raw map is already its mask, at the image's size and in [0, 1].
        caution: what a reader of its maps should know.
    """

    needs: frozenset[Need]
    source: str
    control: bool = False
    direct: bool = False
    caution: str = ""

    @property
    def shows_head(self) -> bool:
        """Whether it shows the head's maps."""
        return Need.ATTENTION in self.needs


Method = Callable[..., Tensor]
"""A trace → raw maps `(B, h, w)`."""

Registered = TypeVar("Registered", bound=Callable[..., Any])


class RunsNetworkAgain(ABC):
    """Settings of a method that runs the network on perturbed images."""

    @abstractmethod
    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """The most forwards per image through `Trace.respond`; forwards with gradients, which no tuning changes, do not count.

        Args:
            channels: of the stage.
            size: height and width of the image.
        """

    @property
    def exact(self) -> Self:
        """The method without its shortcut; itself if it has none."""
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
    """Decorator that registers an explainer: a pure function of a Trace, or a frozen dataclass of settings with one `__call__(trace)`."""
    return methods.register(name, MethodMetadata(frozenset(needs), source, control, direct, caution))
