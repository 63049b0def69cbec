"""Cross-Attention Stream: a query that looks at each stage in turn and replaces the pooled vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from xattn.errors import InputError, SettingError, UnsupportedError
from xattn.heads.facts import Head, HeadFacts, Place, Site, heads

# The places of the paper's two families, by the class of the network, in torchvision and in timm.
RELEASED = (
    ("ResNet", ("maxpool", "layer1", "layer2", "layer3", "layer4")),
    ("ConvNeXt", ("features.0", "features.2", "features.4", "features.7")),
    ("ConvNeXt", ("stem", "stages.1.downsample", "stages.2.downsample", "stages.3")),
)


@heads.register("ca-stream", HeadFacts(source="Torres et al. 2024, Sec. 3.3", replaces="pooling"))
@dataclass(frozen=True)
class CAStream:
    """A learnt query attends to stage after stage; what it has gathered replaces the pooled vector before the network's classifier.

    Attributes:
        start: the first place that is attended to, from 0 (Table 5).
        bias: whether projections have one, as released; the paper's counts of Table 5 are without.
        projection: key and value projections at each place (Table 4).
        per_class: a query for each class (Table 6): the target's in training, else that of the class which the network predicts.
    """

    start: int = 0
    bias: bool = True
    projection: bool = False
    per_class: bool = False

    def __post_init__(self) -> None:
        if self.start < 0:
            raise SettingError(f"ca-stream starts at a place from 0 on; got start={self.start}.")

    def places(self, site: Site) -> tuple[str, ...]:
        """The paper's for ResNet and ConvNeXt; elsewhere the last map of each stride and number of channels.

        Raises:
            UnsupportedError: the network's classifier takes no pooled vector.
            SettingError: it starts after the last place.
        """
        if not site.takes_vector:
            raise UnsupportedError(
                f"ca-stream replaces the pooled vector before the classifier, and that of {site.name} takes none of "
                f"{site.places[-1].channels} values (its pooling is not global, or comes after it). Use br-npa, b-cnn or gap."
            )
        names = _released(site) or _last_of_each(site.places)
        if self.start >= len(names):
            raise SettingError(
                f"ca-stream starts at one of {len(names)} places of {site.name} ({', '.join(names)}); got start={self.start}."
            )
        return names[self.start :]

    def build(self, channels: Sequence[int], classes: int) -> CAStreamHead:
        """The module, its weights fresh."""
        return CAStreamHead(channels, classes, self)


def _released(site: Site) -> tuple[str, ...]:
    for kind, names in RELEASED:
        if kind in site.kinds and site.modules.issuperset(names) and names[-1] == site.places[-1].name:
            return names
    return ()


def _last_of_each(places: Sequence[Place]) -> tuple[str, ...]:
    kinds = [(place.stride, place.channels) for place in places]
    return tuple(place.name for number, place in enumerate(places) if kinds[number] not in kinds[number + 1 :])


class CAStreamHead(Head):
    """The stream as a module: a list of features `(B, C_ℓ, h_ℓ, w_ℓ)` → the vector `(B, C)` in the place of the pooled one.

    One query, one head, no residual and no norm: α = softmax(q · F / √C), q ← W Σ α F.

    Args:
        channels: C_ℓ of each place; the last is C.
        classes: number of classes, of which each has a query with `per_class`.
        settings: of the head.
    """

    def __init__(self, channels: Sequence[int], classes: int = 1, settings: CAStream | None = None) -> None:
        super().__init__()
        self.settings = settings or CAStream()
        self.query = nn.Parameter(torch.randn(classes if self.settings.per_class else 1, channels[0]) + 1)
        following = [*channels[1:], channels[-1]]
        bias = self.settings.bias
        self.project = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(channels, following, strict=True))
        projected = channels if self.settings.projection else ()
        self.key = nn.ModuleList(nn.Linear(c, c, bias=bias) for c in projected)
        self.value = nn.ModuleList(nn.Linear(c, c, bias=bias) for c in projected)
        for linear in [*self.project, *self.key, *self.value]:
            nn.init.xavier_uniform_(linear.weight)
            if bias:
                nn.init.zeros_(linear.bias)

    def begin(self, batch: int, classes: Tensor | None = None) -> Tensor:
        """The first query of each image, `(B, C_0)`.

        Args:
            batch: B.
            classes: `(B,)`, whose queries are taken with `per_class`.

        Raises:
            InputError: there is a query for each class, and no classes came.
        """
        if not self.settings.per_class:
            return self.query.expand(batch, -1)
        if classes is None:
            raise InputError("ca-stream:per_class=true has a query for each class: give the class of each image.")
        return self.query[classes]

    def step(self, number: int, query: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attends to one place.

        Args:
            number: of the place, from 0.
            query: `(B, C_ℓ)`.
            features: `(B, C_ℓ, h, w)`.

        Returns:
            The next query `(B, C_{ℓ+1})`, the attention `(B, h, w)`, which sums to 1, and the scores before its softmax.
        """
        flat = features.flatten(2)
        keys = values = flat
        if self.settings.projection:
            keys, values = (linear(flat.transpose(1, 2)).transpose(1, 2) for linear in (self.key[number], self.value[number]))
        scaled = query / math.sqrt(flat.shape[1])  # before the product, which in half precision could overflow
        scores = torch.bmm(scaled[:, None].to(keys.dtype), keys)[:, 0]
        attention = (scores if scores.dtype == torch.float64 else scores.float()).softmax(dim=1)
        gathered = torch.bmm(values, attention[:, :, None].to(values.dtype))[:, :, 0]
        shape = (len(features), *features.shape[2:])
        return self.project[number](gathered), attention.view(shape), scores.view(shape)

    def forward(self, features: Sequence[Tensor], classes: Tensor | None = None) -> Tensor:
        """The vector `(B, C)`.

        Args:
            features: of each place.
            classes: `(B,)`, for `per_class`.
        """
        query = self.begin(len(features[0]), classes)
        for number, found in enumerate(features):
            query = self.step(number, query, found)[0]
        return query

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """One map of the head: its attention as it is, `(B, h, w)`.

        Args:
            features: not used.
            maps: `(B, 1, h, w)`.
        """
        return maps[:, 0]
