"""Object-contextual representations (OCR) for segmentation, with region vectors of the classes by mean or by representatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from xattn.errors import InputError, SettingError
from xattn.registry import AtMost, Registry

PREFIX = "ocr:"
Regions = Literal["mean", "representatives"]

networks: Registry[None, OCRSettings] = Registry("OCR network")


@networks.register("ocr", None)
@dataclass(frozen=True)
class OCRSettings:
    """Settings of an OCR network.

    Attributes:
        regions: how the region vectors of the classes are computed, see `region_weights`; "none": pixels are classified by their own
            features, without object context.
        width: channels of the features that are classified.
        keys: width of the attention to the region vectors.
    """

    regions: Literal["mean", "representatives", "none"] = "mean"
    width: Annotated[int, AtMost(8_192)] = 512
    keys: Annotated[int, AtMost(8_192)] = 256

    def __post_init__(self) -> None:
        if self.width < 1 or self.keys < 1:
            raise SettingError(f"width and keys are 1 or more; got width={self.width}, keys={self.keys}.")


def parsed(model: str) -> tuple[str, OCRSettings]:
    """The backbone and the settings in `ocr:BACKBONE[:key=value,…]`; a backbone without a source is torchvision's.

    Raises:
        InputError: no backbone is named.
        SettingError: a value is out of range.
        NameUnknownError: there is no such setting.

    >>> parsed("ocr:resnet50:regions=representatives")
    ('torchvision:resnet50', OCRSettings(regions='representatives', width=512, keys=256))
    """
    rest = model.removeprefix(PREFIX)
    before, _, last = rest.rpartition(":")
    backbone, settings = (before, last) if "=" in last else (rest, "")
    if not backbone:
        raise InputError(f"model '{model}' names no backbone: write ocr:NAME of torchvision, ocr:timm:NAME or ocr:birds:gap.")
    instance = networks.create(f"ocr:{settings}" if settings else "ocr").instance
    return (backbone if ":" in backbone else f"torchvision:{backbone}"), instance


def region_weights(features: Tensor, logits: Tensor, regions: Regions = "mean") -> Tensor:
    """Weights of the positions in the region vector of each class.

    "mean": the softmax over the positions of the class's logit. "representatives": with m the position of the largest logit of the class,
    the cosine of each position's feature vector with that at m, times the probability of the class there (softmax over the classes of the
    logits), divided by the sum over positions.

    Args:
        features: F `(B, C, h, w)`.
        logits: of the auxiliary classifier, `(B, L, h, w)`.
        regions: "mean" or "representatives".

    Returns:
        `(B, L, h, w)` ≥ 0; the weights of each class sum to 1, or are all 0 where no feature vector resembles the representative.

    Raises:
        SettingError: `regions` has another value.

    Source: Yuan et al. 2020 (OCR), Sec. 3.2; Gomez et al. 2021 (BR-NPA), App. C.

    Differs: negative cosines count as 0. The paper refines each vector by the others and does not say what a negative weight means.
    """
    _refuse_others(regions)
    if regions == "mean":
        return logits.flatten(2).softmax(dim=2).view_as(logits)
    unit = functional.normalize(features.flatten(2), dim=1)
    strongest = logits.flatten(2).argmax(dim=2)  # (B, L)
    picked = unit.gather(2, strongest[:, None].expand(-1, unit.shape[1], -1))  # (B, C, L)
    similar = (picked.transpose(1, 2) @ unit).relu() * logits.softmax(dim=1).flatten(2)
    total: Tensor = similar.sum(dim=2, keepdim=True)
    return (similar / total.clamp(min=1e-12)).view_as(logits)


class ObjectContext(nn.Module):
    """Features and auxiliary logits → logits: pixels attend to the region vectors of the classes.

    With R_l = Σ_i w_li F_i, the context of position i is Σ_l softmax_l(ψ(F_i)·δ(R_l) / √d) ρ(R_l), which an output layer brings to the
    width of F; it is concatenated with F, and a 1 × 1 convolution gives the features of the classifier.

    Args:
        channels: C of the features.
        classes: L.
        keys: d, width of the attention.
        regions: how region vectors are computed, see `region_weights`.

    Raises:
        SettingError: `regions` has another value.
    """

    def __init__(self, channels: int, classes: int, keys: int = 256, regions: Regions = "mean") -> None:
        super().__init__()
        _refuse_others(regions)
        self.regions: Regions = regions
        self.keys = keys
        self.query, self.key, self.value = (_layers(channels, keys) for _ in range(3))
        self.context = _layers(keys, channels)
        self.joined = _layers(2 * channels, channels)
        self.classifier = nn.Conv2d(channels, classes, 1)
        self.weights = nn.Identity()  # lets hooks see the weights of a forward

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """Logits `(B, L, h, w)`.

        Args:
            features: `(B, C, h, w)`.
            logits: of the auxiliary classifier, `(B, L, h, w)`.
        """
        weights: Tensor = self.weights(region_weights(features, logits, self.regions))
        vectors = features.flatten(2) @ weights.flatten(2).transpose(1, 2)  # (B, C, L)
        query = self.query(features).flatten(2).transpose(1, 2)
        keys, values = (part(vectors[..., None]).flatten(2) for part in (self.key, self.value))
        attention = (query @ keys / self.keys**0.5).softmax(dim=2)  # (B, h·w, L)
        context = (values @ attention.transpose(1, 2)).view(len(features), self.keys, *features.shape[2:])
        found: Tensor = self.classifier(self.joined(torch.cat([self.context(context), features], dim=1)))
        return found


class OCRNetwork(nn.Module):
    """A network for segmentation: images `(B, 3, H, W)` → `{"out", "aux"}`, maps of logits `(B, L, H, W)`.

    Args:
        early: images → the map before the last stage, which the auxiliary classifier reads.
        last: the last stage.
        channels: of the maps of both.
        classes: L.
        settings: width of the features, and kind of object context.

    Source: Yuan et al. 2020 (OCR), Sec. 3; with representatives Gomez et al. 2021 (BR-NPA), App. C.

    Differs: without object context (regions=none) the classifier reads the features themselves, a baseline of ours.

    >>> import torch
    >>> from torch import nn
    >>> network = OCRNetwork(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 8, 3, 1, 1), (4, 8), 5, OCRSettings(width=8, keys=4))
    >>> network.eval()(torch.rand(1, 3, 16, 16))["out"].shape
    torch.Size([1, 5, 16, 16])
    """

    def __init__(
        self,
        early: nn.Module,
        last: nn.Module,
        channels: tuple[int, int],
        classes: int,
        settings: OCRSettings | None = None,
    ) -> None:
        super().__init__()
        chosen = settings or OCRSettings()
        self.settings = chosen
        self.early = early
        self.last = last
        self.reduce = _layers(channels[1], chosen.width, 3)
        self.aux = nn.Sequential(_layers(channels[0], channels[0], 3), nn.Conv2d(channels[0], classes, 1))
        if chosen.regions == "none":
            self.classifier = nn.Conv2d(chosen.width, classes, 1)
        else:
            self.object_context = ObjectContext(chosen.width, classes, chosen.keys, chosen.regions)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        before = self.early(images)
        features = self.reduce(self.last(before))
        aux = self.aux(before)
        if aux.shape[2:] != features.shape[2:]:
            aux = functional.interpolate(aux, size=features.shape[2:], mode="bilinear", align_corners=False)
        logits = self.classifier(features) if self.settings.regions == "none" else self.object_context(features, aux)
        found = {"out": logits, "aux": aux}
        return {
            name: functional.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)
            for name, logits in found.items()
        }


def _refuse_others(regions: str) -> None:
    if regions not in get_args(Regions):
        raise SettingError(f"regions is 'mean' or 'representatives'; got '{regions}'.")


def _layers(came: int, width: int, kernel: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(came, width, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
