"""Reads the tensors of a network as feature maps, by the shapes of its operations' results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.autograd.graph import Node

from xattn.models.graph import is_a, shape_of
from xattn.models.layout import Layout
from xattn.models.recorder import Event

FARTHEST_ASPECT = math.log(2) + 1e-9  # 3 × 10 cells are valid for an image of 48 × 160, and so are 1 × 5
CHANNELS_FIRST = (
    "ConvolutionBackward",
    "MaxPool2D",
    "AvgPool2D",
    "AdaptiveAvgPool2D",
    "AdaptiveMaxPool2D",
    "NativeBatchNorm",
    "CudnnBatchNorm",
    "MiopenBatchNorm",
    "NativeGroupNorm",
    "Upsample",
    "PixelShuffle",
)
NCHW, NHWC = Layout("NCHW"), Layout("NHWC")


class Map(NamedTuple):
    """A tensor read as a feature map."""

    layout: Layout
    channels: int
    height: int
    width: int


class Reader:
    """Reads shapes of tensors, for one image, as maps.

    The result of convolutions, poolings and their normalisations is a map with channels first; that of a layer norm over four axes has
    channels last, if its sides have the image's aspect. Another tensor of four axes (queries and values of an attention also have four) is
    a map if its sides are those of one of these maps, or, in a network without such maps, if they have the image's aspect. A tensor of
    three axes is a map of tokens if its shape is in `tokens`. Maps of several copies or pieces of an image, such as flips or tiles that the
    network creates, do not count.

    Args:
        aspect: height of the image divided by its width.
        pieces: whether maps of copies or pieces of an image also count.
    """

    def __init__(self, aspect: float, *, pieces: bool = False) -> None:
        self.aspect = aspect
        self.pieces = pieces
        self.first: set[tuple[int, ...]] = set()
        self.last: set[tuple[int, ...]] = set()
        self.tokens: dict[tuple[int, ...], Layout] = {}

    def learn(self, nodes: Iterable[Node]) -> None:
        """Records the sides of the maps among the results of a network's operations."""
        for node in nodes:
            shape = shape_of(node)
            if len(shape) != 4 or min(shape) < 1:
                continue
            if is_a(node, CHANNELS_FIRST):
                self.first.add(shape[2:])
            elif is_a(node, ("NativeLayerNorm",)) and self._off(Map(NHWC, shape[3], shape[1], shape[2])) <= FARTHEST_ASPECT:
                self.last.add(shape[1:3])

    def read(self, shape: tuple[int, ...]) -> Map | None:
        """The map of a shape; None if it is not a map."""
        if shape in self.tokens:
            layout = self.tokens[shape]
            return Map(layout, shape[1] if layout.axes == "NCL" else shape[2], *layout.grid)
        if not self._has_four_axes(shape):
            return None
        first, last = Map(NCHW, *shape[1:]), Map(NHWC, shape[3], shape[1], shape[2])
        if shape[2:] in self.first or (shape[2:] in self.last and shape[1:3] not in self.last):
            return first
        if shape[1:3] in self.last | self.first:
            return last
        return None if self.first or self.last else self.guess(shape, FARTHEST_ASPECT)

    def guess(self, shape: tuple[int, ...], farthest: float = math.inf) -> Map | None:
        """The reading of four axes whose aspect is nearest to the image's; channels first if both readings are equally near."""
        if not self._has_four_axes(shape):
            return None
        readings = (Map(NCHW, *shape[1:]), Map(NHWC, shape[3], shape[1], shape[2]))
        best = min(readings, key=self._off)
        return best if self._off(best) <= farthest else None

    def maps(self, nodes: Sequence[Node]) -> list[Node]:
        """The operations whose result is a map of more than one cell."""
        return [node for node in nodes if self.is_map(shape_of(node))]

    def is_map(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is that of a map of more than one cell."""
        found = self.read(shape)
        return found is not None and found.height * found.width > 1

    def signature(self, event: Event) -> tuple[int, int, int]:
        """Channels, height and width of the map that a call returned; zeros if it returned none."""
        found = self.read(event.shape)
        return (found.channels, found.height, found.width) if found else (0, 0, 0)

    def _has_four_axes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4 and min(shape) > 0 and (self.pieces or shape[0] == 1)

    def _off(self, found: Map) -> float:
        return abs(math.log(found.height / found.width / self.aspect))
