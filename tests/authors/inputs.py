"""Networks, pictures and maps that are made by a formula, without a random generator: the same wherever they are made.

`benchmarks/authors.py` gives them to the authors' own code, `test_values.py` to xattn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 56
MEAN, STD = (0.45, 0.5, 0.55), (0.25, 0.2, 0.3)
TARGETS = (2, 1, 3, 2)


def scattered(count: int, start: int = 0) -> Tensor:
    """`(count,)` float64 in [0, 1), scattered as random numbers are."""
    waves = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + start * 78.233) * 43758.5453
    return waves - waves.floor()


@torch.no_grad()
def filled(network: nn.Module) -> nn.Module:
    """The network with weights of a formula, about as large as those of a trained one."""
    for number, module in enumerate(network.modules()):
        for place, (name, values) in enumerate(module.named_parameters(recurse=False)):
            spread = 2 * scattered(values.numel(), 2 * number + place) - 1
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                made = 1 + 0.2 * spread if name == "weight" else 0.1 * spread
            else:
                made = spread * (math.sqrt(3 / values[0].numel()) if values.dim() > 1 else 0.1)
            values.copy_(made.view(values.shape))
    return network.eval()


@torch.no_grad()
def fill(tensors: Iterable[Tensor]) -> None:
    """Fills weights in the order given, as large as makes attention far from uniform."""
    for number, values in enumerate(tensors):
        spread = 2 * scattered(values.numel(), 100 + number) - 1
        values.copy_((spread * (4 * math.sqrt(3 / values[0].numel()) if values.dim() > 1 else 1.0)).view(values.shape))


def pictures(count: int = 4, side: int = SIDE) -> Tensor:
    """Pictures in pixel space, `(count, 3, side, side)` in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    places = [(number, channel) for number in range(count) for channel in range(3)]
    waves = [
        torch.sin(7.0 * (n + 1) * x + 3.0 * c + n) * torch.cos((5.0 + 2 * c) * y - 1.3 * n) + 0.3 * torch.sin(40 * x * y) for n, c in places
    ]
    return (0.5 + 0.38 * torch.stack(waves)).view(count, 3, side, side)


def normalised(images: Tensor) -> Tensor:
    """Pictures as a network takes them."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


class Small(nn.Module):
    """Three blocks, pooling, linear: logits of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)).flatten(1)) * 12


def raw_maps(side: int, count: int = 4) -> Tensor:
    """Maps without equal values, `(count, side, side)`, each from 0 to 1."""
    maps = scattered(count * side * side, 7).view(count, side * side)
    low, high = maps.aminmax(dim=1, keepdim=True)
    return ((maps - low) / (high - low)).view(count, side, side).float()


def masks(side: int, size: int = SIDE) -> Tensor:
    """Smooth masks without equal values, `(4, size, size)`."""
    smooth = functional.interpolate(raw_maps(side)[:, None], size=(size, size), mode="bilinear")[:, 0]
    return 0.99 * smooth + 0.01 * raw_maps(size)


def features(channels: int = 12, side: int = 7, count: int = 3) -> Tensor:
    """Rectified features, `(count, channels, side, side)`."""
    return (scattered(count * channels * side * side, 11) - 0.4).clamp(min=0).view(count, channels, side, side).float()
