"""Loads the original pictures of crops, at their own size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing, Region

__all__ = ["Photographs"]


@dataclass(frozen=True)
class Photographs:
    """The original pictures of crops.

    Attributes:
        source: source of the pictures.
        preprocessing: preprocessing of the network that used the crops.
    """

    source: ImageSource
    preprocessing: Preprocessing

    def of(self, names: Sequence[str]) -> Iterator[tuple[Image.Image, Region]]:
        """Loads pictures in RGB at their own size, by name, with the region of each that the network used.

        Raises:
            ImageError: a picture cannot be read; gives the reason.
        """
        known = {image.name: image for image in self.source.images}
        for name in names:
            yield self.source.photograph(known[name], self.preprocessing)
