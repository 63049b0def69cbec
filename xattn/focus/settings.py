"""Settings of a two-stream network, and its name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from xattn.errors import InputError, SettingError
from xattn.registry import AtMost, Registry

PREFIX = "focus:"
Local = Literal["cnn", "lstm", "attention"]
TestPatch = Literal["mean", "first", "random"]

networks: Registry[None, TwoStreamSettings] = Registry("two-stream network")


@networks.register("focus", None)
@dataclass(frozen=True)
class TwoStreamSettings:
    """Settings of a two-stream network.

    Attributes:
        local: how the local stream uses the pooled features of a patch: "cnn", directly; "lstm", it classifies the last output of an LSTM
            that receives them at each step; "attention", a sum of the outputs, weighted by attention over the steps.
        steps: T, number of LSTM steps per patch.
        sum_to: instead of the attention, the plain sum of the outputs of steps 1 to this one.
        only_step: instead of the attention, the output of this step alone.
        self_attention: the input of each step is attended in the feature map, with a query from the output of the previous step.
        keys: number of feature-map channels used as keys of the self-attention; the others are values. None: a quarter.
        basis: number of channels of the spatial basis of the self-attention, a square number.
        scaled: divide the scores of the self-attention by the square root of their number of channels.
        patches: n, boxes per picture.
        test_patch: patches used in eval mode: "mean", the mean of the logits of all; "first", the patch with the strongest features; or
            "random", one that the picture's content selects.
        box: side of the boxes that the network finds, as a share of the picture's shorter side.
        side: side of the local stream's patches in pixels; None: half of the picture's shorter side.
        weight: λ', weight of the local stream's logits in the sum, and of its loss in training.
    """

    local: Local = "attention"
    steps: Annotated[int, AtMost(1_000)] = 10
    sum_to: int | None = None
    only_step: int | None = None
    self_attention: bool = False
    keys: int | None = None
    basis: Annotated[int, AtMost(4_096)] = 64
    scaled: bool = True
    patches: Annotated[int, AtMost(1_000)] = 10
    test_patch: TestPatch = "mean"
    box: float = 0.5
    side: int | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        chosen = [name for name in ("sum_to", "only_step") if getattr(self, name) is not None]
        wrong = [
            f"{name}={getattr(self, name)}"
            for name, fine in (
                ("steps", self.steps >= 1),
                ("keys", self.keys is None or self.keys >= 1),
                ("basis", self.basis >= 1 and math.isqrt(self.basis) ** 2 == self.basis),
                ("patches", self.patches >= 1),
                ("box", 0 < self.box <= 1),
                ("side", self.side is None or self.side >= 1),
                ("weight", 0 <= self.weight < math.inf),
                *((name, 1 <= getattr(self, name) <= self.steps) for name in chosen),
            )
            if not fine
        ]
        if wrong:
            raise SettingError(
                f"a two-stream network cannot have {', '.join(wrong)}: steps, keys, patches and side are 1 or more, basis is a square "
                "number, box is in (0, 1], weight is 0 or more, and sum_to and only_step are steps."
            )
        if chosen and (self.local != "attention" or len(chosen) > 1):
            raise SettingError(f"{' and '.join(chosen)} replace the attention over the steps: give only one, with local=attention.")
        if self.self_attention and self.local == "cnn":
            raise SettingError("self_attention connects the steps of the LSTM, but local=cnn has no LSTM: give local=attention or lstm.")


def parsed(model: str) -> tuple[str, TwoStreamSettings]:
    """Parses the backbone and the settings in `focus:BACKBONE[:key=value,…]`; a backbone without a source is torchvision's.

    Raises:
        InputError: no backbone is named.
        SettingError: a value is not valid.
        NameUnknownError: a setting does not exist.

    >>> parsed("focus:vgg19:steps=5")
    ('torchvision:vgg19', TwoStreamSettings(local='attention', steps=5, sum_to=None, only_step=None, self_attention=False, keys=None, \
basis=64, scaled=True, patches=10, test_patch='mean', box=0.5, side=None, weight=1.0))
    """
    rest = model.removeprefix(PREFIX)
    before, _, last = rest.rpartition(":")
    backbone, settings = (before, last) if "=" in last else (rest, "")
    if not backbone:
        raise InputError(f"model '{model}' names no backbone: write focus:NAME of torchvision, focus:timm:NAME or focus:birds:gap.")
    instance = networks.create(f"focus:{settings}" if settings else "focus").instance
    return (backbone if ":" in backbone else f"torchvision:{backbone}"), instance
