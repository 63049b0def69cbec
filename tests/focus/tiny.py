"""A tiny two-stream network, the same at each call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import xattn
from tests import networks
from xattn.focus import TwoStreams, TwoStreamSettings
from xattn.models import Classifier

CHANNELS, CLASSES = 16, 3


def network(**settings: Any) -> TwoStreams:
    """Backbones of 16 channels whose maps have a quarter of the side; three patches of half the side, three steps."""
    chosen = TwoStreamSettings(**{"steps": 3, "patches": 3, "basis": 4, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = TwoStreams(_trunk(1), _trunk(2), CHANNELS, CLASSES, chosen)
        for weight in made.local_stream.parameters():
            if weight.dim() < 3:
                weight.data.mul_(3)  # so that steps and places differ
    return made.eval()


def _trunk(seed: int) -> nn.Module:
    trunk: nn.Module = networks.seeded(networks.small, seed)[:4]
    return trunk


def classifier(**settings: Any) -> Classifier:
    return xattn.attach(network(**settings), input_size=32, resize=(32, 32), name="two", labels=["blue", "green", "red"])
