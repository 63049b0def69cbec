"""Patch finder: random boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.boxes import squares
from xattn.metrics.seeds import content_seeds
from xattn.models import Classifier
from xattn.patches.base import image_size, register, side_or_default


@register("random", source="control", control=True)
@dataclass(frozen=True)
class RandomPatches:
    """Square boxes at random positions in the image, seeded by its content: the same in every batch.

    Attributes:
        seed: changes the boxes.
    """

    seed: int = 0

    def __call__(
        self,
        classifier: Classifier,
        images: Tensor,
        n: int = 10,
        side: int | None = None,
        *,
        classes: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> Tensor:
        """Returns boxes `(B, n, 4)`; every position has the same probability.

        Raises:
            InputError: the side does not fit into the image.
        """
        height, width = size = image_size(images, n)
        square = side_or_default(side, size)
        drawn = [torch.rand((n, 2), generator=torch.Generator().manual_seed(seed)) for seed in content_seeds(images, self.seed)]
        share = torch.stack(drawn) if drawn else torch.empty(0, n, 2)
        places = share * torch.tensor((float(width - square + 1), float(height - square + 1)))
        return squares(places.floor() + square / 2, square, size).to(images.device)
