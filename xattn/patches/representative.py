"""Patch finder: representative vectors of BR-NPA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.boxes import cell_centres, squares
from xattn.heads.br_npa import representatives
from xattn.models import Classifier
from xattn.patches.base import features_of, image_size, refuse_too_many, register, side_or_default


@register("representative", source="Gomez et al. 2021, Alg. 1")
@dataclass(frozen=True)
class RepresentativePatches:
    """Square boxes around the strongest feature vectors that differ from each other, selected as in br-npa and in its order.

    Attributes:
        stage: stage of the features; None: the input of the pooling.
    """

    stage: str | None = None

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
        """Returns boxes `(B, n, 4)`.

        Raises:
            InputError: n exceeds the number of cells of the map, or the side does not fit into the image.
        """
        size = image_size(images, n)
        features = features_of(classifier, images, self.stage)
        grid = (features.shape[2], features.shape[3])
        refuse_too_many(n, grid)
        picked, _ = representatives(features, n, refine=False)
        cells = (features.flatten(2)[:, None] == picked[..., None]).all(dim=2).long().argmax(dim=2)  # first of equal vectors, as in br-npa
        return squares(cell_centres(cells, grid, size), side_or_default(side, size), size).to(images.device, torch.float32)
