"""Networks and photographs of the benchmarks."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

import xattn
from xattn.birds.network import SmallResNet
from xattn.data.images import ImageSource
from xattn.data.preprocessing import pixels

WEIGHTS = ("squeezenet1_0", "mobilenet_v2")
TIMM = {"vit_tiny_patch16_224": {"mean": [0.5], "std": [0.5], "resize": 248}}  # timm's networks, and their preprocessing
TINY, TINY_TOKENS = "tiny", "tiny_vit"  # with random weights, for --smoke


@dataclass(frozen=True)
class Subject:
    """A network, in the forms for xattn and for the other libraries.

    Attributes:
        name: torchvision's or timm's name, or "tiny".
        classifier: xattn's classifier, channels-last as from `xattn.load`.
        origin: origin of the weights.
    """

    name: str
    classifier: xattn.Classifier
    origin: str

    @cached_property
    def network(self) -> nn.Module:
        """A copy for the others, in torchvision's default layout: pytorch-grad-cam's Score-CAM fails on channels-last."""
        return copy.deepcopy(self.classifier.network).to(memory_format=torch.contiguous_format)

    @property
    def has_tokens(self) -> bool:
        """Whether it is a transformer, which torch-cam and pytorch-grad-cam do not support without changes."""
        return any(isinstance(module, nn.MultiheadAttention) for module in self.classifier.network.modules())

    @property
    def place(self) -> str:
        """The module whose maps are explained, the same for all libraries."""
        return self.classifier.stage().module

    @property
    def layer(self) -> nn.Module:
        return self.network.get_submodule(self.place)

    @property
    def side(self) -> int:
        return self.classifier.input_size[1]

    @property
    def steps(self) -> int:
        """Number of steps of insertion and deletion: 8·W pixels each."""
        return -(-self.classifier.input_size[0] // 8)

    @cached_property
    def plain(self) -> Subject:
        """Returns the same network without normalisation, for checks: if black is 0, masking before and after it are the same."""
        bare = xattn.attach(self.classifier.network, input_size=self.classifier.input_size, mean=(0, 0, 0), std=(1, 1, 1), name=self.name)
        return Subject(self.name, bare.to(self.classifier.device), self.origin)

    def normalised(self, images: Tensor) -> Tensor:
        """Returns the inputs of the other libraries."""
        images = images.to(self.classifier.mean)
        return ((images - self.classifier.mean) / self.classifier.std).contiguous()


def subject(name: str, data: Path, device: torch.device, head: str = "gap") -> Subject:
    """Loads a network by name; with random weights if `data` has none."""
    file = data / "weights" / f"{name}.pth"
    if file.exists():
        source = "timm" if name in TIMM else "torchvision"
        classifier = xattn.load(f"{source}:{name}", weights=file, head=head, device=device, **TIMM.get(name, {}))
        return Subject(name, classifier, "ImageNet")
    if name in WEIGHTS:
        raise FileNotFoundError(f"{file} is not there: set XATTN_DATA or --data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = _built(name)
    network = network.eval().to(memory_format=torch.channels_last)
    size = 64 if name in (TINY, TINY_TOKENS) else 224
    classifier = xattn.attach(network, input_size=size, head=head, name=name)
    return Subject(name, classifier.eval().to(device), "random")


def _built(name: str) -> nn.Module:
    if name == TINY:
        return SmallResNet(10, 4)
    if name == TINY_TOKENS:
        return models.VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10)
    network: nn.Module = getattr(models, name)(weights=None)
    return network


def photographs(data: Path, of: xattn.Classifier, count: int) -> Tensor:
    """Returns pictures in pixel space `(count, 3, H, W)` as the classifier crops them; smooth noise if there are no photographs."""
    files = sorted((data / "photos").glob("*.jpg"))[:count]
    if len(files) < count:
        noise = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        return functional.interpolate(noise, size=of.input_size, mode="bicubic", align_corners=False).clamp(0, 1).to(of.device)
    source = ImageSource(files)
    crops = [source.decode(image, of.preprocessing)[1] for image in source.images]
    return pixels(torch.stack(crops), of.device)
