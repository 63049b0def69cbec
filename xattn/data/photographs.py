"""The pictures that crops were made from, at their own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing, Region

__all__ = ["Photographs"]


@dataclass(frozen=True)
class Photographs:
    """The pictures that crops were made from.

    Attributes:
        source: of the pictures.
        preprocessing: of the network that saw the crops.
    """

    source: ImageSource
    preprocessing: Preprocessing

    def of(self, names: Sequence[str]) -> Iterator[tuple[Image.Image, Region]]:
        """Pictures in RGB at their own size, by their names, and the part of each that the network saw.

        Raises:
            ImageError: one cannot be read, with the reason.
        """
        known = {image.name: image for image in self.source.images}
        for name in names:
            yield self.source.photograph(known[name], self.preprocessing)
