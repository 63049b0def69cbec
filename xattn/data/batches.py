"""Batches of decoded images, with the images that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from xattn.data.depth import Scaling
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import Frame
from xattn.deferred import is_tensor, torch
from xattn.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Decoded images.

    Attributes:
        number: position of the batch in the source.
        images: images that could be read.
        crops: uint8 `(B, C, H, W)`, the network's input crops.
        failed: images that could not be read, with the reason.
        scalings: for each image, how more than 8 bits were reduced to 8; None for 8 bits.
        frames: for each image, the position of its crop.
    """

    number: int
    images: list[NamedImage] = field(default_factory=list)
    crops: Tensor = field(default_factory=lambda: torch.empty(0, 3, 0, 0, dtype=torch.uint8))
    failed: list[tuple[NamedImage, str]] = field(default_factory=list)
    scalings: list[Scaling | None] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Copies the batch to pinned memory, from which a GPU copies while it computes; the loader calls this if there is a GPU."""
        return replace(self, crops=self.crops.pin_memory()) if len(self.crops) else self


Decoded: TypeAlias = "tuple[NamedImage, Tensor | str, Scaling | None, Frame | None]"
"""An image, its crop or the reason for its failure, how it was scaled, and the position of its crop."""


class Batches:
    """Batches by number, so that one worker decodes a whole batch.

    Args:
        images: images of the source, in its order.
        decode: an image → the image with its label, its crop, how it was scaled, and the crop's position; raises `ImageError`.
        batch_size: images per batch.
    """

    def __init__(
        self,
        images: list[NamedImage],
        decode: Callable[[NamedImage], tuple[NamedImage, Tensor, Scaling | None, Frame]],
        batch_size: int,
    ) -> None:
        self.images = images
        self.decode = decode
        self.batch_size = batch_size
        self.count = -(-len(images) // batch_size)

    def __getitem__(self, number: int) -> Batch:
        return self.joined(number, [self.decoded(image) for image in self.of(number)])

    def of(self, number: int) -> list[NamedImage]:
        """Returns the images of a batch."""
        return self.images[number * self.batch_size : (number + 1) * self.batch_size]

    def decoded(self, image: NamedImage) -> Decoded:
        """Decodes one image, or returns the reason why it fails."""
        try:
            return self.decode(image)
        except ImageError as error:
            return image, str(error).encode(errors="backslashreplace").decode(), None, None

    def joined(self, number: int, decoded: Sequence[Decoded]) -> Batch:
        """Collates decoded images into a batch."""
        read = [each for each in decoded if is_tensor(each[1])]
        failed = [(each[0], each[1]) for each in decoded if isinstance(each[1], str)]
        crops = {"crops": torch.stack([crop for _, crop, *_ in read if is_tensor(crop)])} if read else {}
        scalings, frames = [each[2] for each in read], [each[3] for each in read if each[3] is not None]
        return Batch(number, [each[0] for each in read], failed=failed, scalings=scalings, frames=frames, **crops)
