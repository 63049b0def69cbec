"""Two-stream network: the whole picture, and patches that the network finds in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from xattn.boxes import cell_centres, crop, picked, squares
from xattn.errors import InputError
from xattn.focus.local_stream import LocalStream, Looked
from xattn.focus.settings import TwoStreamSettings
from xattn.metrics.seeds import content_seeds

GLOBAL, LOCAL = "global_stream", "local_stream"  # module names of the streams
OVERLAP = 0.25  # largest intersection over union of two boxes that the network finds


class Streams(NamedTuple):
    """Outputs of both streams.

    Attributes:
        logits: `(B, K)`, logits of the global stream.
        boxes: `(B, n, 4)`, x1, y1, x2, y2 in pixels of the picture.
        looked: outputs of the local stream for the B·n patches; patches of one picture are adjacent.
    """

    logits: Tensor
    boxes: Tensor
    looked: Looked


class GlobalStream(nn.Module):
    """Global stream: pictures `(B, 3, H, W)` → features `(B, C, h, w)` and logits `(B, K)`, a linear layer on their mean.

    Args:
        features: pictures → maps.
        channels: C.
        classes: K.

    Source: Shroff 2020, Sec. 3.1.3.1.

    Differs: the released code has two additional 1 × 1 convolutions, which the text does not mention.
    """

    def __init__(self, features: nn.Module, channels: int, classes: int) -> None:
        super().__init__()
        self.features = features
        self.classifier = nn.Linear(channels, classes)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features: Tensor = self.features(pictures)
        return features, self.classifier(features.mean(dim=(2, 3)))


class TwoStreams(nn.Module):
    """Two-stream network: pictures `(B, 3, H, W)` → logits `(B, K)`: g of the whole picture plus λ' times l of its patches.

    The network finds its patches itself, without gradients or labels: boxes around the local maxima of the norm of its global features. l
    is the mean over the patches.

    Args:
        whole: pictures → maps `(B, C, h, w)`, the backbone of the global stream.
        part: patches → maps `(P, C, h, w)`, the backbone of the local stream.
        channels: C.
        classes: K.
        settings: settings of the network.

    Source: Shroff 2020, Ch. 3 and 7.

    Differs: at test time, all patches that the network finds are classified and their logits averaged (`test_patch=mean`); the released
    code uses one random patch among boxes that were found with the true class.
    """

    def __init__(self, whole: nn.Module, part: nn.Module, channels: int, classes: int, settings: TwoStreamSettings) -> None:
        super().__init__()
        self.settings = settings
        self.global_stream = GlobalStream(whole, channels, classes)
        self.local_stream = LocalStream(part, channels, classes, settings)
        self.boxes = nn.Identity()  # so that hooks see the boxes of a forward

    @property
    def seen(self) -> int:
        """Number of patches per picture that the local stream uses in eval mode."""
        return self.settings.patches if self.settings.test_patch == "mean" else 1

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.streams(pictures)
        local = found.looked.logits.view(*found.boxes.shape[:2], -1).mean(dim=1)
        return found.logits + self.settings.weight * local

    def streams(self, pictures: Tensor, boxes: Tensor | None = None) -> Streams:
        """Returns the outputs of both streams.

        Args:
            pictures: `(B, 3, H, W)`.
            boxes: `(B, n, 4)`; None: boxes that the network finds. In training mode torch's generator selects one of them.

        Raises:
            InputError: the global features have fewer cells than the number of boxes to find.
        """
        features, logits = self.global_stream(pictures)
        boxes = self.find(features.detach(), pictures) if boxes is None else boxes
        if self.training:
            drawn = torch.randint(boxes.shape[1], (len(boxes),), device="cpu").to(boxes.device)
            boxes = boxes[torch.arange(len(boxes), device=boxes.device), drawn][:, None]
        boxes = self.boxes(boxes)
        side = self.settings.side or max(1, min(pictures.shape[2:]) // 2)
        return Streams(logits, boxes, self.local_stream(crop(pictures, boxes, side).flatten(0, 1)))

    def find(self, features: Tensor, pictures: Tensor) -> Tensor:
        """Boxes `(B, n, 4)` around the local maxima of the norm of global features `(B, C, h, w)`, strongest first; in eval mode those that
        count."""
        size, grid = (pictures.shape[2], pictures.shape[3]), (features.shape[2], features.shape[3])
        count = grid[0] * grid[1]
        wanted = 1 if self.settings.test_patch == "first" and not self.training else self.settings.patches
        if wanted > count:
            raise InputError(
                f"{wanted} patches cannot be told apart in a map of {grid[0]} × {grid[1]} cells: give larger pictures (input_size, "
                f"--input-size), or patches={count} or fewer."
            )
        centres = cell_centres(torch.arange(count, device=features.device), grid, size)
        candidates = squares(centres, max(1, round(self.settings.box * min(size))), size)
        norms: Tensor = torch.linalg.vector_norm(features.float(), dim=1)
        boxes = picked(norms, candidates, wanted, OVERLAP)
        if self.settings.test_patch == "random" and not self.training:
            drawn = [seed % wanted for seed in content_seeds(pictures.detach() * 0.25 + 0.5)]  # normalised: most values are in [−2, 2]
            boxes = boxes[torch.arange(len(boxes)), torch.tensor(drawn)][:, None]
        return boxes
