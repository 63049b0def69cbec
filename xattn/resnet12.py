"""The residual network of meta-transfer learning, for pictures of 80 × 80."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor, nn

from xattn.errors import NameUnknownError, SettingError
from xattn.hidden import Width, check_width, last_layers
from xattn.registry import AtMost, Registry

PREFIX = "few-shot:"
NAME = "resnet12"
BASE_CLASSES = 64  # the training classes of CIFAR-FS

networks: Registry[None, ResNet12Settings] = Registry("network for few shots")


@networks.register(NAME, None)
@dataclass(frozen=True)
class ResNet12Settings:
    """Settings of a ResNet-12.

    Attributes:
        width: channels of its first convolution; its stages have 2, 4 and 8 times as many.
        hidden: width of a hidden layer before the logits, for the base classes; left out for new classes. 0: none.
    """

    width: Annotated[int, AtMost(4_096)] = 80
    hidden: Width = 0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise SettingError(f"a width is 1 or more; got width={self.width}.")
        check_width(self.hidden, NAME)


def parsed(model: str) -> ResNet12Settings:
    """The settings in `few-shot:resnet12[:key=value,…]`.

    Raises:
        NameUnknownError: there is no such network or setting.
        SettingError: a value is out of range.

    >>> parsed("few-shot:resnet12:width=8")
    ResNet12Settings(width=8, hidden=0)
    """
    name = model.removeprefix(PREFIX)
    if name.partition(":")[0] != NAME:
        raise NameUnknownError("network for few shots", name.partition(":")[0], [NAME])
    return networks.create(name).instance


class ResNet12(nn.Module):
    """Twelve residual blocks of two convolutions in three stages of stride 2: 640 maps of 10 × 10 of a picture of 80 × 80.

    Args:
        classes: number of outputs.
        width: channels of the first convolution; the stages have 2, 4 and 8 times as many.
        hidden: width of a hidden layer before the logits; 0: there is none. The released training on the base classes has one of 1,000.

    Source: Sun et al. 2019 as released, which calls it ResNet-12; Gomez et al. 2021, Sec. 4.1.

    >>> import torch
    >>> ResNet12(5, width=4)(torch.rand(2, 3, 80, 80)).shape
    torch.Size([2, 5])
    """

    def __init__(self, classes: int = BASE_CLASSES, width: int = 80, hidden: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(width, 2 * width)
        self.layer2 = _stage(2 * width, 4 * width)
        self.layer3 = _stage(4 * width, 8 * width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = last_layers(8 * width, classes, hidden)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of images `(B, 3, H, W)`."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def _stage(came: int, channels: int) -> nn.Sequential:
    from torchvision.models.resnet import BasicBlock

    shortcut = nn.Sequential(nn.Conv2d(came, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))
    return nn.Sequential(BasicBlock(came, channels, 2, shortcut), *(BasicBlock(channels, channels) for _ in range(3)))
