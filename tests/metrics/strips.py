"""Pictures whose parts are known, without any drawing: strips of any images."""

from __future__ import annotations

import torch
from torch import Tensor

from xattn.metrics import KnownParts


def known(images: Tensor, targets: Tensor) -> KnownParts:
    """Known parts of images: in these tests four strips of them, with two objects and a cue, and outputs by their brightness."""
    count, (height, width) = len(images), images.shape[2:]
    where = torch.zeros(6, height, width, dtype=torch.bool)
    for number in range(6):
        where[number, number * height // 6 : (number + 1) * height // 6] = True
    light = torch.stack([images.double().mean(dim=1)[:, area].mean(dim=1) for area in where], dim=1)
    shown = (torch.arange(16)[:, None] >> torch.arange(4) & 1).double()
    own = (1 + light[:, :4] @ shown.T)[:, :, None]
    logits = torch.zeros(count, 16, 5, dtype=torch.float64).scatter(2, targets[:, None, None].expand(-1, 16, 1), own)
    without = logits[:, -1].gather(1, targets[:, None]) - torch.tensor([[0.01, 3.0]])
    rivals = torch.stack([(targets + 1) % 5, (targets + 2) % 5], dim=1)
    shared = torch.tensor([[True, False, False, True], [False, True, False, False]]).expand(count, -1, -1)
    visible, objects = where[:4].expand(count, -1, -1, -1), where[4:].expand(count, -1, -1, -1)
    return KnownParts(visible, logits, targets, objects, without, torch.ones(count, dtype=torch.long), rivals, shared)
