"""Relation-aware global attention: a gate for each position, then for each channel, from its relations to all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from xattn.errors import InputError, SettingError
from xattn.registry import AtMost, Registry

PREFIX = "rga:"

networks: Registry[None, RelationAwareSettings] = Registry("relation-aware network")


@networks.register("rga", None)
@dataclass(frozen=True)
class RelationAwareSettings:
    """Settings of a network with relation-aware global attention.

    Attributes:
        height: of the pictures, in pixels; None: 224, for the shipped classifiers 64. The attention has weights for each position.
        width: of the pictures, in pixels; None: 224 or 64, as for the height.
        reduction: factor by which the embeddings are narrower than their inputs.
    """

    height: Annotated[int, AtMost(4_096)] | None = None
    width: Annotated[int, AtMost(4_096)] | None = None
    reduction: Annotated[int, AtMost(4_096)] = 8

    def __post_init__(self) -> None:
        if self.reduction < 1 or (self.height is not None and self.height < 1) or (self.width is not None and self.width < 1):
            raise SettingError(
                f"height, width and reduction are 1 or more; got height={self.height}, width={self.width}, reduction={self.reduction}."
            )


def parsed(model: str) -> tuple[str, RelationAwareSettings]:
    """The backbone and the settings in `rga:BACKBONE[:key=value,…]`; a backbone without a source is torchvision's.

    Raises:
        InputError: no backbone is named.
        SettingError: a value is out of range.
        NameUnknownError: there is no such setting.

    >>> parsed("rga:resnet50:height=256,width=128")
    ('torchvision:resnet50', RelationAwareSettings(height=256, width=128, reduction=8))
    """
    rest = model.removeprefix(PREFIX)
    before, _, last = rest.rpartition(":")
    backbone, settings = (before, last) if "=" in last else (rest, "")
    if not backbone:
        raise InputError(f"model '{model}' names no backbone: write rga:NAME of torchvision, rga:timm:NAME or rga:birds:gap.")
    instance = networks.create(f"rga:{settings}" if settings else "rga").instance
    return (backbone if ":" in backbone else f"torchvision:{backbone}"), instance


class RelationAttention(nn.Module):
    """Gates of n nodes with d features, `(B, d, n)` → `(B, 1, n)` in (0, 1).

    R_ij = θ(x_i)·φ(x_j). The gate of node i is computed from the mean of an embedding of x_i, concatenated with an embedding of its
    relations, R_i· and R_·i. Each embedding is a linear map, batch normalisation and ReLU; the last, to one number, has a sigmoid instead
    of the ReLU. The n × n relations are never stored: the map that embeds them is linear, W R = (W θᵀ) φ.

    Args:
        count: n.
        width: d.
        reduction: of the embeddings.

    Source: Zhang et al. 2020 (CVPR), Relation-aware global attention, Sec. 3.

    Differs: an embedding whose width would be 0 has a width of 1, as the last one has if n < 8 · 7.
    """

    def __init__(self, count: int, width: int, reduction: int = 8) -> None:
        super().__init__()
        narrow, related = max(1, width // reduction), max(1, count // reduction)
        self.theta, self.phi, self.own = (_embedding(width, narrow) for _ in range(3))
        self.relations = _embedding(2 * count, related)
        last = max(1, (1 + related) // reduction)
        self.gate = nn.Sequential(_embedding(1 + related, last), nn.Conv1d(last, 1, 1, bias=False), nn.BatchNorm1d(1))

    def forward(self, nodes: Tensor) -> Tensor:
        theta, phi = self.theta(nodes), self.phi(nodes)
        weight: Any = self.relations[0].weight
        of_rows, of_columns = weight[:, :, 0].split(nodes.shape[2], dim=1)
        embedded = (of_rows @ phi.transpose(1, 2)) @ theta + (of_columns @ theta.transpose(1, 2)) @ phi
        related = self.relations[1:](embedded)
        logits: Tensor = self.gate(torch.cat([self.own(nodes).mean(dim=1, keepdim=True), related], dim=1))
        return logits.sigmoid()


def _embedding(came: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(came, width, 1, bias=False), nn.BatchNorm1d(width), nn.ReLU())


class RelationAware(nn.Module):
    """Features `(B, C, h, w)` times a gate for each position, then times a gate for each channel.

    Args:
        channels: C.
        size: h and w.
        reduction: of the embeddings.
    """

    def __init__(self, channels: int, size: tuple[int, int], reduction: int = 8) -> None:
        super().__init__()
        self.size = size
        count = size[0] * size[1]
        self.spatial = RelationAttention(count, channels, reduction)
        self.channel = RelationAttention(channels, count, reduction)
        self.positions = nn.Identity()  # lets hooks see the gates of a forward

    def forward(self, features: Tensor) -> Tensor:
        if tuple(features.shape[2:]) != self.size:
            raise InputError(
                f"relation-aware attention has weights for each of {self.size[0]} × {self.size[1]} positions; got a map of "
                f"{features.shape[2]} × {features.shape[3]}: give pictures of the size that the network was made for, or make one "
                f"for these (rga:BACKBONE:height=…,width=…). Other values of input_size do not work, and strides can only be "
                f"removed when it is made (high_res)."
            )
        gates: Tensor = self.positions(self.spatial(features.flatten(2)).unflatten(2, self.size))
        features = gates * features
        of_channels: Tensor = self.channel(features.flatten(2).transpose(1, 2))
        return of_channels.transpose(1, 2)[..., None] * features
