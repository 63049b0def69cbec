"""BR-NPA: non-parametric attention maps, ordered by strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from xattn.errors import InputError, SettingError
from xattn.heads.base import Attended, ClassifierHead, HeadMetadata, HeadSettings, NetworkInfo, heads
from xattn.hidden import Width, check_width, last_layers
from xattn.registry import AtMost

Suppression = Literal["cosine", "weight"]
Selection = Literal["active", "random"]

FLOOR = 1e-12
PROBED = ((1, 2), (2, 3), (1,), (2,), (3,))


def representatives(
    features: Tensor,
    n: int = 3,
    *,
    suppression: Suppression = "cosine",
    selection: Selection = "active",
    refine: bool = True,
    rectify: bool = True,
    seeds: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """The strongest distinct feature vectors, each averaged with the vectors that resemble it.

    Each vector takes two passes over the features, one to compare and one to average, forward and backward; nothing of size `(N, C, h·w)`
    is created. Computed in float32 at least, in any surrounding precision.

    Args:
        features: `(B, C, h, w)`.
        n: number of vectors.
        suppression: what lowers the activation of vectors that resemble those already selected: their "cosine", as in the authors' code, or
            their "weight" in the average, as printed in Alg. 1, which has almost no effect for weights near 1/(h·w).
        selection: "active", the highest activation; "random", uniform (the ablation of Tables 4 and 7).
        refine: average each vector with those that resemble it; False leaves it unchanged, with the same maps (the same ablation).
        rectify: treat negative cosines as 0.
        seeds: one per image, for `selection="random"`; None: torch's generator.

    Returns:
        Vectors `(B, N, C)` and maps `(B, N, h, w)`, each map summing to 1, both in rank order. If all features of an image are 0, its
        vectors are 0 and its maps uniform.

    Raises:
        InputError: the features are not a map, or there are fewer positions than vectors.

    Source: Gomez et al. 2021, Alg. 1.

    Differs: activation is the norm, not its square; negative cosines are clamped (after a ReLU there are none); products of norms are
    floored at 1e-12 and remaining activations at 0.

    >>> import torch
    >>> vectors, maps = representatives(torch.rand(2, 16, 7, 7), n=3)
    >>> vectors.shape, maps.shape, bool(torch.allclose(maps.sum(dim=(2, 3)), torch.ones(2, 3)))
    (torch.Size([2, 3, 16]), torch.Size([2, 3, 7, 7]), True)
    """
    if features.dim() != 4 or not features.is_floating_point():
        raise InputError(f"representatives takes features (batch, channels, height, width); got {tuple(features.shape)} {features.dtype}.")
    height, width = features.shape[2:]
    if not 1 <= n <= height * width:
        raise InputError(f"{n} vectors cannot be told apart in a map of {height} × {width} positions: give n from 1 to {height * width}.")
    with torch.autocast(features.device.type, enabled=False):
        flat = (features if features.dtype == torch.float64 else features.float()).flatten(2)
        norms = torch.linalg.vector_norm(flat, dim=1)
        activation = norms.detach()
        picked, maps = [], []
        for rank in range(n):
            chosen = (activation if selection == "active" else _noise(activation, rank, seeds)).argmax(dim=1)[:, None]
            vector = flat.gather(2, chosen[:, None].expand(-1, flat.shape[1], 1))
            products = torch.bmm(vector.transpose(1, 2), flat)[:, 0]
            cosines = products / (norms * norms.gather(1, chosen)).clamp(min=FLOOR)
            if rectify:
                cosines = cosines.relu()
            weights = _normalised(cosines)
            taken = cosines if suppression == "cosine" else weights
            activation = activation * (1 - taken.detach()).clamp(min=0)
            picked.append(vector[:, :, 0])
            maps.append(weights)
        weights = torch.stack(maps, dim=1)
        vectors = torch.bmm(weights, flat.transpose(1, 2)) if refine else torch.stack(picked, dim=1)
    return vectors, weights.view(len(weights), n, height, width)


def _normalised(cosines: Tensor) -> Tensor:
    """Cosines divided by their sum; uniform if the sum is 0."""
    total = cosines.sum(dim=1, keepdim=True)
    empty = total.abs() < FLOOR
    return torch.where(empty, 1 / cosines.shape[1], cosines / torch.where(empty, 1, total))


def _noise(like: Tensor, rank: int, seeds: Sequence[int] | None) -> Tensor:
    if seeds is None:
        return torch.rand_like(like)
    drawn = [torch.rand(like.shape[1], generator=torch.Generator().manual_seed(seed + rank)) for seed in seeds]
    return torch.stack(drawn).to(like)


@heads.register("br-npa", HeadMetadata(source="Gomez et al. 2021, Alg. 1", replaces="classifier"))
@dataclass(frozen=True)
class BRNPA(HeadSettings):
    """The strongest distinct feature vectors, each averaged with those that resemble it; concatenated by rank → linear.

    Attributes:
        n: number of vectors, and of attention maps.
        suppression: "cosine", as in the authors' code, or "weight", as printed in Alg. 1.
        selection: "active" or "random".
        refine: average each vector with those that resemble it.
        rectify: treat negative cosines as 0.
        rank_probes: auxiliary classifiers on only some of the ranks, without a gradient into the features.
        dropout: share of the concatenated vector that is dropped in training.
        hidden: width of a hidden layer before the logits, for base classes of few shots; left out for new classes. 0: none.
    """

    n: Annotated[int, AtMost(1_024)] = 3
    suppression: Suppression = "cosine"
    selection: Selection = "active"
    refine: bool = True
    rectify: bool = True
    rank_probes: bool = False
    dropout: float = 0.0
    hidden: Width = 0

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.dropout < 1:
            raise SettingError(f"br-npa takes n of at least 1 and dropout in [0, 1); got n={self.n}, dropout={self.dropout}.")
        check_width(self.hidden, "br-npa")
        if self.rank_probes and self.n < 3:
            raise SettingError(f"br-npa's rank probes look at ranks 1 to 3; got n={self.n}. Give n of at least 3.")

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> BRNPAHead:
        """The module, with a new linear layer."""
        return BRNPAHead(channels[-1], classes, self)


class BRNPAHead(ClassifierHead):
    """BR-NPA as a module: features `(B, C, h, w)` → logits `(B, K)`.

    Args:
        channels: C.
        classes: K.
        settings: of the head.
    """

    grafts = True

    def __init__(self, channels: int, classes: int, settings: BRNPA | None = None) -> None:
        super().__init__()
        self.settings = settings or BRNPA()
        self.dropout = nn.Dropout(self.settings.dropout)
        self.linear = last_layers(self.settings.n * channels, classes, self.settings.hidden)
        self.grafts = not self.settings.hidden
        probed = PROBED if self.settings.rank_probes else ()
        self.probes = nn.ModuleDict({_probe(ranks): nn.Linear(len(ranks) * channels, classes) for ranks in probed})

    @property
    def is_random(self) -> bool:
        return self.settings.selection == "random"

    @property
    def ranks(self) -> int:
        return self.settings.n if self.settings.selection == "active" else 0

    @torch.no_grad()
    def graft(self, linear: nn.Linear) -> None:
        """Initialises it as a classifier on the pooled vector: the logits are the mean of that classifier's logits over the vectors.

        Args:
            linear: `(C → K)`.

        Source: the division by N is in the authors' DG-Net fork; the paper does not print it.
        """
        assert isinstance(self.linear, nn.Linear)
        self.linear.weight.copy_(linear.weight.repeat(1, self.settings.n) / self.settings.n)
        self.linear.bias.copy_(torch.zeros_like(self.linear.bias) if linear.bias is None else linear.bias)

    def attend(self, features: Tensor, stage: str = "", seeds: Sequence[int] | None = None) -> Attended:
        """Logits, maps and, if the settings request them, the probes' logits.

        Args:
            features: `(B, C, h, w)`.
            stage: name under which the maps are returned.
            seeds: one per image, for `selection="random"`.
        """
        s = self.settings
        vectors, maps = representatives(
            features, s.n, suppression=s.suppression, selection=s.selection, refine=s.refine, rectify=s.rectify, seeds=seeds
        )
        vectors = vectors.to(next(self.linear.parameters()).dtype)
        probes = {}
        for name, linear in self.probes.items():
            ranks = [int(digit) - 1 for digit in name.removeprefix("ranks_")]
            probes[name] = linear(vectors[:, ranks].detach().flatten(1))
        return Attended(self.linear(self.dropout(vectors.flatten(1))), {stage: maps}, probes=probes)


def _probe(ranks: Sequence[int]) -> str:
    return "ranks_" + "".join(map(str, ranks))
