"""Small networks of the shipped classifiers: a quarter-width ResNet-18 whose stem keeps the resolution, and a ViT."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from xattn.birds.scene import CLASSES

if TYPE_CHECKING:
    from torchvision.models.vision_transformer import VisionTransformer


class SmallResNet(nn.Module):
    """Residual network for pictures of 64 × 64: strides 1, 2, 4 and 8, about 0.7 million parameters.

    Args:
        classes: number of outputs.
        width: channels of the first stage; the number doubles with each later stage.
    """

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(came: int, channels: int, stride: int) -> nn.Sequential:
        from torchvision.models.resnet import BasicBlock

        shortcut = None
        if stride > 1 or came != channels:
            shortcut = nn.Sequential(nn.Conv2d(came, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        return nn.Sequential(BasicBlock(came, channels, stride, shortcut), BasicBlock(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        """Computes logits `(B, K)` of images `(B, 3, H, W)`."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


def small_resnet() -> SmallResNet:
    """Builds the residual network with one output per class of SketchBirds, and random weights."""
    return SmallResNet(len(CLASSES))


def small_vit() -> VisionTransformer:
    """Builds torchvision's vision transformer for pictures of 64 × 64, with random weights.

    It has 16 × 16 patches, a class token, 6 layers and about 0.8 million parameters.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    return VisionTransformer(64, patch_size=4, num_layers=6, num_heads=4, hidden_dim=128, mlp_dim=256, num_classes=len(CLASSES))
