"""`Layout`: how a tensor inside a network is read as a feature map; `Stage`: a place where features are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from xattn.errors import UnsupportedError

Axes = Literal["NCHW", "NHWC", "NLC", "LNC", "NCL"]


@dataclass(frozen=True)
class Layout:
    """How a tensor inside a network is read as a feature map.

    Attributes:
        axes: N is the image, C the channel, H and W are height and width, L are tokens.
        prefix: number of tokens before those of the map: class, distillation, registers.
        suffix: number of tokens after them.
        grid: height and width of the tokens' map at the classifier's input size.
        order: the index of each cell, row by row, among the tokens of the map; empty if they are in that order.
        patches: number of patches per image along N; the image's map is then that of its patches, one below the other.
    """

    axes: Axes = "NCHW"
    prefix: int = 0
    suffix: int = 0
    grid: tuple[int, int] = (0, 0)
    order: tuple[int, ...] = ()
    patches: int = 1

    def tokens(self, features: Tensor) -> Tensor:
        """All tokens, `(B, L, C)`, a view."""
        if self.axes == "LNC":
            return features.transpose(0, 1)
        return features.transpose(1, 2) if self.axes == "NCL" else features

    @property
    def count(self) -> int:
        """Number of tokens at the classifier's input size; 0 for maps of four axes."""
        return self.prefix + self.grid[0] * self.grid[1] + self.suffix if self.grid != (0, 0) else 0

    def grid_of(self, count: int) -> tuple[int, int]:
        """Height and width of a map with this number of tokens, with the aspect that it has at the classifier's input size.

        Raises:
            UnsupportedError: there is no such map.
        """
        height, width = self.grid
        if count != height * width:
            height = max(1, round(math.sqrt(count * height / width)))
            width = count // height
        if height * width != count or (self.order and (height, width) != self.grid):
            raise UnsupportedError(
                f"{count} tokens do not form a map with the aspect ratio of {self.grid[0]} × {self.grid[1]}, which they had when "
                f"the network was attached."
            )
        return height, width


class Place(Protocol):
    """The place where a tensor is computed in a forward: the output of a module, or of a function after it."""

    @property
    def name(self) -> str: ...
    @property
    def module(self) -> str: ...
    @property
    def call(self) -> int: ...
    @property
    def offset(self) -> int | None: ...


@dataclass(frozen=True)
class Stage:
    """A place where features are taken.

    Attributes:
        name: as the user writes it: a module's dotted name, `name#2` for its second call, `name+relu` for a function applied to it.
        channels: number of channels.
        size: height and width of the map at the classifier's input size.
        stride: input height over map height.
        layout: of the tensor inside the network.
        module: dotted name of the hooked module.
        call: number of the call of that module, from 1.
        offset: for a function, its number among the torch functions after the module's call; None for the module's own output.
        calls: number of runs of the module in one forward.
        found: how it was found, in words.
        boxes: whether its maps are of patches of the image, whose positions are boxes.
    """

    name: str
    channels: int
    size: tuple[int, int]
    stride: int
    layout: Layout
    module: str
    call: int = 1
    offset: int | None = None
    calls: int = 1
    found: str = ""
    boxes: bool = False

    def __str__(self) -> str:
        return f"{self.name} ({self.channels} × {self.size[0]} × {self.size[1]})"


def other_tokens(features: Tensor, layout: Layout) -> Tensor:
    """The tokens that are not cells of the map, `(B, prefix + suffix, C)`; none for maps of four axes."""
    if layout.axes in ("NCHW", "NHWC"):
        return features.new_empty(len(features), 0, 1)
    tokens = layout.tokens(features)
    return torch.cat([tokens[:, : layout.prefix], tokens[:, tokens.shape[1] - layout.suffix :]], dim=1)


def to_nchw(features: Tensor, layout: Layout) -> Tensor:
    """Converts a tensor of a layout to a feature map `(B, C, h, w)`: a view, unless tokens are reordered or the map is of patches.

    Tokens without a position in the image are left out. With n patches per image it is `(B, C, n·h, w)`, one below the other.
    """
    if layout.patches > 1:
        maps = to_nchw(features, replace(layout, patches=1))
        return maps.view(-1, layout.patches, *maps.shape[1:]).transpose(1, 2).flatten(2, 3)
    if layout.axes == "NCHW":
        return features
    if layout.axes == "NHWC":
        return features.permute(0, 3, 1, 2)
    tokens = layout.tokens(features)
    cells = tokens[:, layout.prefix : tokens.shape[1] - layout.suffix]
    if layout.order:
        cells = cells[:, list(layout.order)]
    height, width = layout.grid_of(cells.shape[1])
    return cells.transpose(1, 2).reshape(len(cells), -1, height, width)
