"""High-resolution surgery: what grows, what stays, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torchvision import models

import xattn
from tests import networks
from xattn.errors import NameUnknownError, UnsupportedError
from xattn.models import high_resolution

GROWN: dict[str, tuple[Callable[[], nn.Module], list[str], int]] = {
    "resnet18, a basic block": (lambda: models.resnet18(), ["layer4"], 6),
    "resnet50, two stages": (lambda: models.resnet50(), ["layer3", "layer4"], 12),
    "mobilenet_v2, depthwise": (lambda: models.mobilenet_v2(), ["features.14"], 6),
    "convnext, its downsampling": (lambda: models.convnext_tiny(), ["features.6"], 6),
    "convnext, the stage behind it": (lambda: models.convnext_tiny(), ["features.5", "features.7"], 12),
    "efficientnet_b0": (lambda: models.efficientnet_b0(), ["features.6"], 6),
    "densenet121, pooled": (lambda: models.densenet121(), ["features.transition3"], 6),
    "timm resnet26d, pooled shortcuts": (lambda: timm.create_model("resnet26d"), ["layer3", "layer4"], 12),
    "timm convnext": (lambda: timm.create_model("convnext_atto"), ["stages.3"], 6),
    "timm padding as it runs": (lambda: timm.create_model("tf_mobilenetv3_small_minimal_100"), ["blocks.4"], 6),
}


@pytest.mark.parametrize("case", GROWN)
def test_the_last_map_grows_and_no_weight_changes_or_is_called_otherwise(case: str) -> None:
    build, stages, side = GROWN[case]
    network = networks.seeded(build)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    changed = high_resolution(network, stages, input_size=96)
    assert changed
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    clf = xattn.attach(network, input_size=96, resize=96)
    assert clf.stages[-1].size == (side, side)
    assert xattn.explain(clf, networks.pictures(1, size=96), ["grad-cam"]).raw["grad-cam"].shape == (1, side, side)


def test_a_resnet_50_at_448_gives_56_by_56() -> None:
    network = networks.seeded(lambda: models.resnet50())
    high_resolution(network, ["layer3", "layer4"])
    found = {}
    network.layer4.register_forward_hook(lambda _m, _a, out: found.update(size=tuple(out.shape[2:])))
    with torch.device("meta"):
        network.to("meta")(torch.empty(1, 3, 448, 448))
    assert found["size"] == (56, 56)


def test_dilated_it_is_torchvision_s_own() -> None:
    ours = networks.seeded(lambda: models.resnet50())
    theirs = models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    theirs.load_state_dict(ours.state_dict())
    high_resolution(ours, ["layer3", "layer4"], dilate=True, input_size=64)
    image = networks.pictures(1, size=64)
    assert torch.equal(ours(image), theirs(image))


def test_dilated_every_second_position_is_as_before() -> None:
    network = networks.seeded(lambda: models.resnet18()).double()
    clf = xattn.attach(network, input_size=96, resize=96)
    image = networks.pictures(1, size=96).double()
    before = clf.features(image)["layer4"]
    high_resolution(network, ["layer4"], dilate=True, input_size=96)
    assert torch.allclose(clf.features(image)["layer4"][:, :, ::2, ::2], before, atol=1e-6)


@pytest.mark.parametrize("side", [2, 3])
def test_a_kernel_without_padding_is_padded_right_and_below_by_replication(side: int) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, side, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    image = networks.pictures(1, size=8)
    features = network[0](image)
    high_resolution(network, ["1"], input_size=8)
    padded = nn.functional.pad(features, (0, side - 1, 0, side - 1), mode="replicate")
    expected = nn.functional.conv2d(padded, network[1].weight, network[1].bias)
    assert torch.allclose(network[1](features), expected, atol=1e-6)
    strided = nn.functional.conv2d(features, network[1].weight, network[1].bias, stride=2)
    found = network[1](features)[:, :, ::2, ::2]
    assert torch.allclose(found[:, :, : strided.shape[2], : strided.shape[3]], strided, atol=1e-6)


def test_a_padded_average_pooling_keeps_its_places() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    features = network[0](networks.pictures(1, size=8))
    before = network[1](features)
    high_resolution(network, ["1"], input_size=8)
    assert torch.allclose(network[1](features)[:, :, ::2, ::2], before, atol=1e-6)


def test_a_pooling_can_be_dilated_away() -> None:
    network = networks.seeded(lambda: models.densenet121())
    high_resolution(network, ["features.transition3"], dilate=True, input_size=64)
    assert network.features.denseblock4.denselayer1.conv2.dilation == (2, 2)
    assert network.features.denseblock3.denselayer1.conv2.dilation == (1, 1)


def test_a_refused_list_leaves_its_earlier_stages_as_they_were() -> None:
    network = networks.seeded(lambda: models.resnet18())
    image = networks.pictures(1, size=64)
    expected = network(image).detach()
    with pytest.raises(UnsupportedError, match="gives none"):
        high_resolution(network, ["layer4", "fc"], input_size=64)
    assert torch.equal(network(image).detach(), expected)


@pytest.mark.parametrize(
    ("build", "stage", "reason"),
    [
        (lambda: models.vgg11(init_weights=False), "features.20", "shrinks its map by 'features.20', a MaxPool2d"),
        (lambda: timm.create_model("resnetblur50"), "layer4", "by 'layer4.0.aa', a BlurPool2d"),
        (lambda: models.resnet18(), "layer1.1.conv1", r"has none, .* The network strides at conv1, maxpool, layer2.0.conv1"),
        (lambda: models.resnet18(), "fc", "gives none"),
        (lambda: models.mobilenet_v2(), "features.13", r"'features.13' has none, .* strides at .*features.14.conv.1.0: name a module"),
    ],
)
def test_what_cannot_grow_is_refused_and_left_as_it_was(build: Callable[[], nn.Module], stage: str, reason: str) -> None:
    network = networks.seeded(build)
    image = networks.pictures(1, size=64)
    expected = network(image).detach()
    with pytest.raises(UnsupportedError, match=reason):
        high_resolution(network, [stage], input_size=64)
    assert torch.equal(network(image).detach(), expected)


def test_a_stride_in_the_code_is_refused_and_the_network_left_as_it_was() -> None:
    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1)
            self.block = nn.ModuleDict({"way": nn.Conv2d(4, 4, 3, stride=2, padding=1)})
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.last((self.block["way"](x) + x[:, :, ::2, ::2]).mean(dim=(2, 3)))

    network = Sliced()
    with pytest.raises(UnsupportedError, match="does not run .* does its code contain a stride"):
        high_resolution(network, ["block.way"], input_size=8)
    assert network.block["way"].stride == (2, 2)


def test_an_unknown_stage_is_told() -> None:
    with pytest.raises(NameUnknownError, match="Did you mean 'layer4'"):
        high_resolution(models.resnet18(), ["layer5"])
