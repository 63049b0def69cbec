"""Metadata of an explainer, and the registry of explainers."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from torch import Tensor

from xattn.data.map_files import MapFiles
from xattn.errors import SettingError
from xattn.registry import Component, Registry, written


class Need(enum.Enum):
    """What a method needs from a Trace: one forward and one backward of a batch then serve all methods."""

    FEATURES = "features"
    GRADIENTS = "gradients"
    IMAGE_GRADIENTS = "image gradients"
    ATTENTION = "attention"
    LAYERS = "attention of the network's layers"
    LAYER_GRADIENTS = "gradients of the attention of the network's layers"
    STEPS = "the steps of a two-stream network"


@dataclass(frozen=True)
class MethodMetadata:
    """Metadata that a method is registered with.

    Attributes:
        needs: what it needs from the trace.
        source: where it was published.
        control: whether it ignores the network; a method that does not beat it explains nothing.
        direct: whether its raw map is already its mask, at the image's size and in [0, 1].
        planted: whether it is wrong on purpose: a metric that ranks it high does not detect that.
        bound: whether it searches for the best score that a map can have on a metric: a reference for other methods, not one of them.
        caution: a warning for readers of its maps.
    """

    needs: frozenset[Need]
    source: str
    control: bool = False
    direct: bool = False
    planted: bool = False
    bound: bool = False
    caution: str = ""

    @property
    def shows_head(self) -> bool:
        """Whether it shows the head's maps."""
        return Need.ATTENTION in self.needs


Method = Callable[..., Tensor]
"""A trace → raw maps `(B, h, w)`."""

MethodComponent = Component[MethodMetadata, Method]

Registered = TypeVar("Registered", bound=Callable[..., Any])


class RunsNetworkAgain(ABC):
    """Base class of methods that run the network on perturbed images."""

    @abstractmethod
    def forwards(self, channels: int, size: tuple[int, int]) -> int:
        """The largest number of forwards per image through `Trace.respond`; forwards with gradients, which tuning does not change, do not
        count.

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
    planted: bool = False,
    bound: bool = False,
    caution: str = "",
) -> Callable[[Registered], Registered]:
    """Decorator that registers an explainer: a pure function of a Trace, or a frozen dataclass of settings with one `__call__(trace)`."""
    return methods.register(name, MethodMetadata(frozenset(needs), source, control, direct, planted, bound, caution))


FILES = "maps"
"""Prefix of the names of methods whose maps other tools wrote into files: `maps:NAME`."""


def of_files(found: MapFiles) -> MethodComponent:
    """The method `maps:NAME` (or `maps:NAME:signed=true`) for maps that another tool wrote."""
    return Component(f"{FILES}:{found.name}{':signed=true' if found.signed else ''}", found, MethodMetadata(frozenset(), found.place))


def is_of_files(method: MethodComponent) -> bool:
    """Whether the maps of a method were written by another tool: it cannot explain other images."""
    return isinstance(method.instance, MapFiles)


def can_be_signed(method: MethodComponent) -> bool:
    """Whether a method has the setting `signed`."""
    return hasattr(method.instance, "signed")


def created(specs: Iterable[str], *, signed: bool = False) -> list[MethodComponent]:
    """Creates the methods that specs name, each once.

    Args:
        specs: names with settings, `name[:key=value,…]`.
        signed: with signed maps, except for controls.

    Raises:
        NameUnknownError: there is no such method or setting.
        SettingError: the maps of a method cannot be signed, or are in files.
    """
    if not isinstance(specs, str):  # a str is refused below
        specs = list(specs)
        if of_files := [spec for spec in specs if spec.startswith(f"{FILES}:")]:
            raise SettingError(
                f"{of_files[0]} names maps that another tool wrote: they explain no other images; give them as files to xattn score."
            )
    components = methods.create_all(specs)
    return list({component.spec: component for component in map(_signed, components)}.values()) if signed else components


def _signed(component: MethodComponent) -> MethodComponent:
    if component.metadata.control:
        return component
    if not can_be_signed(component):
        known = ", ".join(name for name, entry in sorted(methods.entries.items()) if "signed" in entry.settings)
        raise SettingError(f"{component.spec} has no signed map, which shows evidence against the target; these have one: {known}.")
    settings: Any = component.instance
    instance = replace(settings, signed=True)
    return Component(written(component.spec.partition(":")[0], instance), instance, component.metadata)
