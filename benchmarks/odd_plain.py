"""The plain network from which odd ones are made, and the expected results of an odd one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

SIDE = 24
CLASSES = 5
Plainly = Callable[[Tensor], tuple[Tensor, Tensor]]  # normalised images → features and logits


class Plain(nn.Module):
    """The network from which the odd ones are made: features `(B, 8, 12, 12)`, their mean, logits `(B, 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.ReLU()
        )
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean(dim=(2, 3)))


def plain(change: Callable[[Plain], object] = lambda network: None) -> Plain:
    """Returns a `Plain`, always the same, in eval mode.

    Args:
        change: change of the network, before it is returned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Plain()
        network.body[1].running_mean.uniform_(-0.1, 0.1)
        network.body[1].running_var.uniform_(0.5, 1.5)
        with torch.no_grad():
            network.fc.weight.mul_(8)
    network.eval()
    change(network)
    return network


def of_plain(output: Callable[[Tensor], Tensor] = lambda z: z, dtype: torch.dtype = torch.float32) -> Plainly:
    """Returns the plain computation of a network that outputs a function of a `Plain`'s logits.

    Args:
        output: logits of `Plain` → those of the odd network.
        dtype: precision of its convolutions.
    """
    network = plain().to(dtype)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        features = network.body(x.to(dtype))
        return features, output(network.fc(features.mean(dim=(2, 3))).float())

    return run


class Around(Plain):
    """A `Plain` with something before it and something after it.

    Args:
        before: images → images.
        after: logits → what the network returns.
    """

    def __init__(self, before: Callable[[Tensor], Any] = lambda x: x, after: Callable[[Tensor], Any] = lambda z: z) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.load_state_dict(plain().state_dict())
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.after(super().forward(self.before(x)))


@dataclass(frozen=True)
class Odd:
    """An odd network.

    Attributes:
        name: what is odd.
        make: builds it.
        plainly: the plain computation of the same; None: there is nothing to compare with.
        ends: "right"; "warned", the log reports it as unstable, or it is refused; "reported", each row has an error instead of a value;
            "refused"; "any" of these, if it may be either.
        tolerance: tolerance of logits and maps, as a share of the largest.
        images: its input images.
        keeps: whether its weights are unchanged after a forward.
    """

    name: str
    make: Callable[[], Any]
    plainly: Plainly | None = None
    ends: Literal["right", "warned", "reported", "refused", "any"] = "right"
    tolerance: float = 1e-4
    images: Callable[[Tensor], Tensor] = lambda images: images
    keeps: bool = True


def frozen_by(make: Callable[[Plain], object]) -> Callable[[], nn.Module]:
    """Builds a `Plain` with its convolutions changed."""
    return lambda: plain(make)
