"""The networks and photographs that are measured."""

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
TINY = "tiny"  # with random weights, for --smoke


@dataclass(frozen=True)
class Subject:
    """A network, as xattn has it and as the other libraries are given it.

    Attributes:
        name: torchvision's, or "tiny".
        classifier: ours, channels-last as `xattn.load` has it.
        origin: of the weights.
    """

    name: str
    classifier: xattn.Classifier
    origin: str

    @cached_property
    def network(self) -> nn.Module:
        """A copy for the others, in the layout that torchvision gives it: pytorch-grad-cam's Score-CAM fails on channels-last."""
        return copy.deepcopy(self.classifier.network).to(memory_format=torch.contiguous_format)

    @property
    def place(self) -> str:
        """The module whose maps are explained, the same for all."""
        return self.classifier.stage().module

    @property
    def layer(self) -> nn.Module:
        return self.network.get_submodule(self.place)

    @property
    def side(self) -> int:
        return self.classifier.input_size[1]

    @property
    def steps(self) -> int:
        """Steps of insertion and deletion: 8·W pixels each."""
        return -(-self.classifier.input_size[0] // 8)

    @cached_property
    def plain(self) -> Subject:
        """The same network without normalisation, for checks: where black is 0, masking before it and after it are the same."""
        bare = xattn.attach(self.classifier.network, input_size=self.classifier.input_size, mean=(0, 0, 0), std=(1, 1, 1), name=self.name)
        return Subject(self.name, bare.to(self.classifier.device), self.origin)

    def normalised(self, images: Tensor) -> Tensor:
        """What the others are given."""
        images = images.to(self.classifier.mean)
        return ((images - self.classifier.mean) / self.classifier.std).contiguous()


def subject(name: str, data: Path, device: torch.device, head: str = "gap") -> Subject:
    """A network by name; with random weights where none lie in `data`."""
    file = data / "weights" / f"{name}.pth"
    if file.exists():
        classifier = xattn.load(f"torchvision:{name}", weights=file, head=head, device=device)
        return Subject(name, classifier, "ImageNet")
    if name in WEIGHTS:
        raise FileNotFoundError(f"{file} is not there: set XATTN_DATA or --data")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallResNet(10, 4) if name == TINY else getattr(models, name)(weights=None)
    network = network.eval().to(memory_format=torch.channels_last)
    size = 64 if name == TINY else 224
    classifier = xattn.attach(network, input_size=size, head=head, name=name)
    return Subject(name, classifier.eval().to(device), "random")


def photographs(data: Path, of: xattn.Classifier, count: int) -> Tensor:
    """Pictures in pixel space `(count, 3, H, W)` as the classifier crops them; smooth noise where there are no photographs."""
    files = sorted((data / "photos").glob("*.jpg"))[:count]
    if len(files) < count:
        noise = torch.rand(count, 3, 7, 7, generator=torch.Generator().manual_seed(0))
        return functional.interpolate(noise, size=of.input_size, mode="bicubic", align_corners=False).clamp(0, 1).to(of.device)
    source = ImageSource(files)
    crops = [source.decode(image, of.preprocessing)[1] for image in source.images]
    return pixels(torch.stack(crops), of.device)
