"""Patch finder: maxima of the activation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xattn.boxes import cell_centres, picked, squares
from xattn.errors import SettingError
from xattn.models import Classifier
from xattn.patches.base import features_of, image_size, refuse_too_many, register, side_or_default


@register("activation", source="Felzenszwalb et al. 2010 for the suppression of overlapping boxes; the features' norm as the score")
@dataclass(frozen=True)
class ActivationPatches:
    """Square boxes at the local maxima of the features' norm; boxes that overlap a stronger one are suppressed.

    Attributes:
        stage: stage of the features; None: the input of the pooling.
        overlap: largest intersection over union of two boxes.

    A cell is a local maximum if none of its eight neighbours is larger. If fewer than n boxes remain, the strongest cells that are not
    maxima are added, and then the strongest suppressed ones. Ties are resolved by row order.
    """

    stage: str | None = None
    overlap: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 1:
            raise SettingError(f"activation takes an overlap in [0, 1]; got {self.overlap}.")

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
        norms: Tensor = torch.linalg.vector_norm(features_of(classifier, images, self.stage), dim=1)
        grid = (norms.shape[1], norms.shape[2])
        refuse_too_many(n, grid)
        centres = cell_centres(torch.arange(grid[0] * grid[1], device=norms.device), grid, size)
        candidates = squares(centres, side_or_default(side, size), size)
        return picked(norms, candidates, n, self.overlap).to(images.device, torch.float32)
