"""CA-Stream (Cross-Attention Stream): a query that attends to each stage in turn and replaces the pooled vector."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from xattn.attention import align, attend, check_names, distribution
from xattn.errors import InputError, SettingError
from xattn.heads.base import Attended, Head, HeadMetadata, HeadSettings, NetworkInfo, StageInfo, fixed_size, heads

Init = Literal["xavier", "released"]

GROUPS = 4  # groups of blocks of a network whose tokens keep their number and width

# The stages of the paper's two families, by the network's class, in torchvision and in timm.
RELEASED = (
    ("ResNet", ("maxpool", "layer1", "layer2", "layer3", "layer4")),
    ("ConvNeXt", ("features.0", "features.2", "features.4", "features.7")),
    ("ConvNeXt", ("stem", "stages.1.downsample", "stages.2.downsample", "stages.3")),
)


@heads.register("ca-stream", HeadMetadata(source="Torres et al. 2024, Sec. 3.3", replaces="pooling"))
@dataclass(frozen=True)
class CAStream(HeadSettings):
    """A learnt query attends to one stage after the other; the resulting vector replaces the pooled one before the network's classifier.

    With tokens, keys and values are the cells of the map: class token and registers are left out. The last query replaces the input of the
    classifier, which is the class token or the mean of the tokens; the network's own class token still passes through its blocks but is not
    read.

    Differs: the paper has only convolutional networks, whose stages end where the resolution changes. If the tokens of all blocks have one
    resolution and width, as in a vision transformer, the blocks are divided into four groups of equal length, up to rounding, and a stage
    is the end of a group: of twelve blocks the third, sixth, ninth and last. The outputs of the blocks are read without a norm, except the
    last, which is the network's last map, after its final norm if it has one.

    Attributes:
        start: the first stage that is attended to, counted from 0 (Table 5).
        bias: whether projections have a bias, as in the released code; the parameter counts in the paper's Table 5 have none.
        projection: key and value projections at each stage (Table 4).
        per_class: one query per class (Table 6): the target's in training, otherwise that of the class that the network predicts.
        init: "xavier", Xavier-uniform weights and zero biases; "released", as in the released code: on ConvNeXt normal weights (σ = 0.02)
            and zero biases, elsewhere Xavier-uniform weights and biases uniform in ±1/√C.
        align: how the query scores the features, `xattn list alignments`; one setting can follow, as in `align=additive:hidden=64`. The
            paper's is scaled-dot.
        distribution: how weights are computed from the scores, `xattn list distributions`; generalised-kernel takes only "sum".
    """

    start: int = 0
    bias: bool = True
    projection: bool = False
    per_class: bool = False
    init: Init = "xavier"
    align: str = "scaled-dot"
    distribution: str = "softmax"

    def __post_init__(self) -> None:
        check_names(self.align, self.distribution)
        if self.start < 0:
            raise SettingError(f"ca-stream starts at stage 0 or later; got start={self.start}.")

    def stages(self, info: NetworkInfo) -> tuple[str, ...]:
        """The paper's stages for ResNet and ConvNeXt; the ends of four groups of blocks where tokens keep their number and width; elsewhere
        the last map of each stride and number of channels.

        Raises:
            SettingError: `start` is after the last stage.
        """
        return self._started(_released(info) or _ends_of_groups(info.stages) or _last_of_each(info.stages), info)

    def unnamed_stages(self, info: NetworkInfo) -> tuple[str, ...]:
        """Only the last stage, if tokens keep their number and width."""
        return self._started(_released(info) or _last_of_each(info.stages), info)

    def _started(self, names: tuple[str, ...], info: NetworkInfo) -> tuple[str, ...]:
        if self.start >= len(names):
            raise SettingError(
                f"ca-stream starts at one of {len(names)} stages of {info.name} ({', '.join(names)}); got start={self.start}."
            )
        return names[self.start :]

    def build(self, channels: Sequence[int], classes: int, info: NetworkInfo) -> CAStreamHead:
        """The module, with new weights."""
        head = CAStreamHead(channels, classes, self, [height * width for height, width in info.sizes])
        if self.init == "released":
            head.start_as_released("ConvNeXt" in info.kinds)
        return head


def _released(info: NetworkInfo) -> tuple[str, ...]:
    for kind, names in RELEASED:
        if kind in info.kinds and info.modules.issuperset(names) and names[-1] == info.stages[-1].name:
            return names
    return ()


def _last_of_each(stages: Sequence[StageInfo]) -> tuple[str, ...]:
    kinds = [(stage.stride, stage.channels) for stage in stages]
    return tuple(stage.name for number, stage in enumerate(stages) if kinds[number] not in kinds[number + 1 :])


def _ends_of_groups(stages: Sequence[StageInfo]) -> tuple[str, ...]:
    """The last blocks of groups of equal length, after the last maps of a convolutional stem; empty unless all tokens have one size."""
    tokens = [stage for stage in stages if stage.tokens]
    if not tokens or tokens[-1] != stages[-1] or len({(stage.stride, stage.channels) for stage in tokens}) > 1:
        return ()
    kind = Counter(stage.kind for stage in tokens).most_common(1)[0][0]  # the blocks; others are an embedding or a final norm
    blocks = [stage.name for stage in tokens if stage.kind == kind]
    ends = [blocks[math.ceil(len(blocks) * group / GROUPS) - 1] for group in range(1, GROUPS)]
    *stem, last = _last_of_each(stages)
    return (*stem, *(name for name in dict.fromkeys(ends) if name != last), last)


class CAStreamHead(Head):
    """The stream as a module: a list of features `(B, C_ℓ, h_ℓ, w_ℓ)` → the vector `(B, C)` that replaces the pooled one.

    There is one query and one head, without residual and norm: α = softmax(q · F / √C), q ← W Σ α F; or with another alignment and
    distribution.

    Args:
        channels: C_ℓ of each stage; the last is C.
        classes: number of classes; with `per_class`, each has a query.
        settings: of the head.
        positions: h_ℓ · w_ℓ of each stage, for an alignment whose number of positions is fixed.
    """

    def __init__(self, channels: Sequence[int], classes: int = 1, settings: CAStream | None = None, positions: Sequence[int] = ()) -> None:
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
        counts: Sequence[int | None] = positions or [None] * len(channels)
        built = [align(self.settings.align, c, c, n) for c, n in zip(channels, counts, strict=True)]
        self.align = nn.ModuleList(each for each in built if isinstance(each, nn.Module))
        self.function = None if self.align else built[0]  # for an alignment without weights
        self.distribution = distribution(self.settings.distribution)

    @torch.no_grad()
    def start_as_released(self, convnext: bool) -> None:
        """Draws the weights as the authors' code does.

        Args:
            convnext: whether as for ConvNeXt, instead of ResNet.
        """
        for linear in [*self.project, *self.key, *self.value]:
            if convnext:
                nn.init.trunc_normal_(linear.weight, std=0.02)
            elif linear.bias is not None:
                nn.init.uniform_(linear.bias, -1 / math.sqrt(linear.in_features), 1 / math.sqrt(linear.in_features))

    @property
    def asks_class(self) -> bool:
        return self.settings.per_class

    @property
    def fixed_size(self) -> str:
        return fixed_size(self.settings.align)

    def start(self, batch: int, classes: Tensor | None = None) -> Attended:
        """The first query of each image, `(B, C_0)`, as the output.

        Args:
            batch: B.
            classes: `(B,)`; with `per_class`, their queries are used.

        Raises:
            InputError: there is one query per class, but no classes are given.
        """
        if not self.settings.per_class:
            return Attended(self.query.expand(batch, -1))
        if classes is None:
            raise InputError("ca-stream:per_class=true has one query per class: give the class of each image.")
        return Attended(self.query[classes])

    def read(self, attended: Attended, stage: str, features: Tensor, seeds: Sequence[int] | None = None) -> None:
        """Attends to one stage; the next query becomes the output."""
        attended.output, maps, scores = self.step(len(attended.attention), attended.output, features)
        attended.attention[stage], attended.scores[stage] = maps[:, None], scores[:, None]

    def step(self, number: int, query: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attends to one stage.

        Args:
            number: of the stage, from 0.
            query: `(B, C_ℓ)`.
            features: `(B, C_ℓ, h, w)`.

        Returns:
            The next query `(B, C_{ℓ+1})`, the attention `(B, h, w)`, which sums to 1, and the scores from which it was computed.
        """
        keys = values = features.flatten(2).transpose(1, 2)
        if self.settings.projection:
            keys, values = self.key[number](keys), self.value[number](values)
        found = attend(query, keys, values, self.align[number] if self.function is None else self.function, self.distribution)
        shape = (len(features), *features.shape[2:])
        return self.project[number](found.output), found.weights.view(shape), found.scores.view(shape)

    def forward(self, features: Sequence[Tensor], classes: Tensor | None = None) -> Tensor:
        """The vector `(B, C)`.

        Args:
            features: of each stage.
            classes: `(B,)`, for `per_class`.
        """
        attended = self.start(len(features[0]), classes)
        for number, found in enumerate(features):
            self.read(attended, str(number), found)
        return attended.output

    def saliency(self, features: Tensor, maps: Tensor) -> Tensor:
        """One map of the head: the unchanged attention, `(B, h, w)`.

        Args:
            features: not used.
            maps: `(B, 1, h, w)`.
        """
        return maps[:, 0]
