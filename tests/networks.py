"""Tiny random networks and pictures. `small` is also the factory that command-line tests load."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def seeded(make: Any, seed: int = 0) -> Any:
    """Builds with the generator seeded, in eval mode, with BatchNorm statistics that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def small(classes: int = 5) -> nn.Module:
    """Stem, two blocks, pooling, linear: 16 channels at 8 × 8 for an image of 32 × 32."""
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, classes),
        )
    )


class Branching(nn.Module):
    """A network whose steps depend on the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small()

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) if images.mean() > 0 else -self.inner(images)


def precise() -> nn.Module:
    """`small` in float64, with logits far apart, of which no class has the largest everywhere."""
    network = small().double()
    with torch.no_grad():
        network[6].weight.mul_(40)
        pooled = network[:6](pictures(16, seed=1).double().sub(0.45).div(0.225))
        network[6].bias.copy_(-(pooled.mean(dim=0) @ network[6].weight.T))
    return network


def slow() -> nn.Module:
    """`small`, slowed down, so that a run can be cut off in the middle."""

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small()

        def forward(self, images: Tensor) -> Tensor:
            time.sleep(float(os.environ.get("XATTN_TEST_SLEEP", "0")))
            return self.network(images)

    return Slow().eval()


def not_a_number() -> nn.Module:
    """`small`, but NaN for images that are dark."""

    class Dark(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = small()

        def forward(self, images: Tensor) -> Tensor:
            dark = images.mean(dim=(1, 2, 3), keepdim=True).flatten(1) < -1.9
            return torch.where(dark, torch.nan, self.network(images))

    return Dark().eval()


class Rectifiers(nn.Module):
    """One way of rectifying, between convolutions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second, self.third = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 6), (6, 6), (6, 6)))
        if kind.startswith("reused"):
            self.shared = nn.ReLU(inplace=kind == "reused in-place")
        if kind in ("module", "relu6"):
            self.own = nn.ModuleList(nn.ReLU6() if kind == "relu6" else nn.ReLU() for _ in range(3))
        self.last = nn.Linear(6, 5)

    def rectify(self, x: Tensor, number: int) -> Tensor:
        match self.kind:
            case "functional":
                return functional.relu(x)
            case "in-place":
                return functional.relu_(x)
            case "reused" | "reused in-place":
                return self.shared(x)
            case "clamp":
                return x.clamp(min=0)
            case "gelu":
                return functional.gelu(x)
            case _:
                return self.own[number](x)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate((self.first, self.second, self.third)):
            x = self.rectify(layer(x), number)
        return self.last(x.mean(dim=(2, 3)))


RECTIFIERS = ("module", "relu6", "functional", "in-place", "reused", "reused in-place", "clamp")


def pictures(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth noise in pixel space, `(count, 3, size, size)`."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 5, 5), generator=generator)
    return functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0, 1)
