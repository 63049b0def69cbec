"""Reads the tensors of a network as feature maps, by what its operations give."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch.autograd.graph import Node

from xattn.models.graph import is_a, shape_of
from xattn.models.layout import Layout
from xattn.models.recorder import Event

FARTHEST_ASPECT = math.log(2) + 1e-9  # 3 × 10 cells are right for an image of 48 × 160; so are 1 × 5
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
    """Reads shapes, of one image each, as maps.

    What convolutions, poolings and their normalisations give is a map with channels first; what a layer norm gives over four axes is one
    with channels last, if its sides are as the image's. Another tensor of four axes (queries and values of an attention have four, too) is
    a map where its sides are those of one of these; in a network that has none of them, where they are as the image's. A tensor of three
    axes is a map of tokens where its shape is in `tokens`. Maps of several copies or pieces of an image, as flips or tiles that the network
    makes, are none of the image.

    Args:
        aspect: height of the image over its width.
        pieces: those are read, too.
    """

    def __init__(self, aspect: float, *, pieces: bool = False) -> None:
        self.aspect = aspect
        self.pieces = pieces
        self.first: set[tuple[int, ...]] = set()
        self.last: set[tuple[int, ...]] = set()
        self.tokens: dict[tuple[int, ...], Layout] = {}

    def learn(self, nodes: Iterable[Node]) -> None:
        """Takes note of the sides of the maps among what a network's operations gave."""
        for node in nodes:
            shape = shape_of(node)
            if len(shape) != 4 or min(shape) < 1:
                continue
            if is_a(node, CHANNELS_FIRST):
                self.first.add(shape[2:])
            elif is_a(node, ("NativeLayerNorm",)) and self._off(Map(NHWC, shape[3], shape[1], shape[2])) <= FARTHEST_ASPECT:
                self.last.add(shape[1:3])

    def read(self, shape: tuple[int, ...]) -> Map | None:
        """The map of a shape; None where it is none."""
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
        """The reading whose height over width is nearest to the image's, channels first where both are as near; of four axes alone."""
        if not self._has_four_axes(shape):
            return None
        readings = (Map(NCHW, *shape[1:]), Map(NHWC, shape[3], shape[1], shape[2]))
        best = min(readings, key=self._off)
        return best if self._off(best) <= farthest else None

    def maps(self, nodes: Sequence[Node]) -> list[Node]:
        """Those of some operations that give a map of more than one cell."""
        return [node for node in nodes if self.is_map(shape_of(node))]

    def is_map(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape is that of a map of more than one cell."""
        found = self.read(shape)
        return found is not None and found.height * found.width > 1

    def signature(self, event: Event) -> tuple[int, int, int]:
        """Channels, height and width of the map that a call gave; zeros if it gave none."""
        found = self.read(event.shape)
        return (found.channels, found.height, found.width) if found else (0, 0, 0)

    def _has_four_axes(self, shape: tuple[int, ...]) -> bool:
        return len(shape) == 4 and min(shape) > 0 and (self.pieces or shape[0] == 1)

    def _off(self, found: Map) -> float:
        return abs(math.log(found.height / found.width / self.aspect))
