"""Where networks are cut: what is expected of each, and that what is taken there is what enters the pooling."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import xattn
from tests import networks
from xattn.errors import UnsupportedError

EXPECTED = {
    "resnet18": "maxpool:64:4 layer1:64:4 layer2:128:8 layer3:256:16 layer4:512:32",
    "resnet50": "maxpool:64:4 layer1:256:4 layer2:512:8 layer3:1024:16 layer4:2048:32",
    "resnext50_32x4d": "maxpool:64:4 layer1:256:4 layer2:512:8 layer3:1024:16 layer4:2048:32",
    "wide_resnet50_2": "maxpool:64:4 layer1:256:4 layer2:512:8 layer3:1024:16 layer4:2048:32",
    "densenet121": "features.pool0:64:4 features.denseblock1:256:4 features.transition1:128:8 features.denseblock2:512:8 "
    "features.transition2:256:16 features.denseblock3:1024:16 features.transition3:512:32 features.denseblock4:1024:32 "
    "features+relu:1024:32",
    "squeezenet1_0": "features.2:96:4 features.3:128:4 features.4:128:4 features.5:256:4 features.6:256:8 features.7:256:8 "
    "features.8:384:8 features.9:384:8 features.10:512:8 features.11:512:17 features.12:512:17",
    "vgg16": "features.3:64:1 features.4:64:2 features.8:128:2 features.9:128:4 features.15:256:4 features.16:256:8 "
    "features.22:512:8 features.29:512:16 features.30:512:32",
    "alexnet": "features.1:64:4 features.2:64:8 features.4:192:8 features.5:192:17 features.7:384:17 features.11:256:17 features.12:256:37",
    "convnext_tiny": "features.0:96:4 features.1:96:4 features.2:192:8 features.3:192:8 features.4:384:16 features.5:384:16 "
    "features.6:768:32 features.7:768:32",
    "shufflenet_v2_x0_5": "conv1:24:2 maxpool:24:4 stage2:48:8 stage3:96:16 stage4:192:32 conv5:1024:32",
    "mnasnet0_5": "layers.7:8:2 layers.8:16:4 layers.9:24:8 layers.10:40:16 layers.11:48:16 layers.12:96:32 layers.13:160:32 "
    "layers.16:1280:32",
    "efficientnet_b0": "features.0:32:2 features.1:16:2 features.2:24:4 features.3:40:8 features.4:80:16 features.5:112:16 "
    "features.6:192:32 features.7:320:32 features.8:1280:32",
    "efficientnet_v2_s": "features.0:24:2 features.1:24:2 features.2:48:4 features.3:64:8 features.4:128:16 features.5:160:16 "
    "features.6:256:32 features.7:1280:32",
    "regnet_y_400mf": "stem:32:2 trunk_output.block1:48:4 trunk_output.block2:104:8 trunk_output.block3:208:16 trunk_output.block4:440:32",
    "googlenet": "conv1:64:2 maxpool1:64:4 conv2:64:4 conv3:192:4 maxpool2:192:8 inception3a:256:8 inception3b:480:8 maxpool3:480:16 "
    "inception4a:512:16 inception4b:512:16 inception4c:512:16 inception4d:528:16 inception4e:832:16 maxpool4:832:32 "
    "inception5a:832:32 inception5b:1024:32",
    "timm:resnet18": "maxpool:64:4 layer1:64:4 layer2:128:8 layer3:256:16 layer4:512:32",
    "timm:resnetv2_50": "stem:64:4 stages.0:256:4 stages.1:512:8 stages.2:1024:16 stages.3:2048:32 norm:2048:32",
    "timm:convnext_atto": "stem:40:4 stages.0:40:4 stages.1:80:8 stages.2:160:16 stages.3:320:32",
    "timm:efficientnet_b0": "bn1:32:2 blocks.0:16:2 blocks.1:24:4 blocks.2:40:8 blocks.3:80:16 blocks.4:112:16 blocks.5:192:32 "
    "blocks.6:320:32 bn2:1280:32",
    "timm:mobilenetv3_small_100": "bn1:16:2 blocks.0:16:4 blocks.1:24:8 blocks.2:40:16 blocks.3:48:16 blocks.4:96:32 blocks.5:576:32",
    "timm:regnety_004": "stem:32:2 s1:48:4 s2:104:8 s3:208:16 s4:440:32",
    "timm:repvgg_a0": "stem:48:2 stages.0:48:4 stages.1:96:8 stages.2:192:16 stages.3:1280:32",
    "timm:dla34": "base_layer:16:1 level0:16:1 level1:32:2 level2:64:4 level3:128:8 level4:256:16 level5:512:32",
    "timm:cspresnet50": "stem:64:4 stages.0:128:4 stages.1:256:8 stages.2:512:16 stages.3:1024:32",
    "timm:ghostnet_100": "act1:16:2 blocks.0:16:2 blocks.1:24:4 blocks.2:24:4 blocks.3:40:8 blocks.4:40:8 blocks.5:80:16 "
    "blocks.6:112:16 blocks.7:160:32 blocks.8:160:32 blocks.9:960:32",
    "timm:vgg11": "features.1:64:1 features.2:64:2 features.4:128:2 features.5:128:4 features.9:256:4 features.10:256:8 "
    "features.14:512:8 features.19:512:16 features.20:512:32",
    "timm:densenet121": "features.pool0:64:4 features.denseblock1:256:4 features.transition1:128:8 features.denseblock2:512:8 "
    "features.transition2:256:16 features.denseblock3:1024:16 features.transition3:512:32 features.denseblock4:1024:32 "
    "features.norm5:1024:32",
    "timm:xception41": "stem:64:2 blocks.0:128:4 blocks.1:256:8 " + " ".join(f"blocks.{k}:728:16" for k in range(2, 11)) + " "
    "blocks.11:1024:32 blocks.12:2048:32",
    "timm:swin_tiny_patch4_window7_224": "patch_embed:96:4 layers.0:96:4 layers.1:192:8 layers.2:384:16 layers.3:768:32 norm:768:32",
    "swin_t": "features.0:96:4 features.1:96:4 features.2:192:8 features.3:192:8 features.4:384:16 features.5:384:16 "
    "features.6:768:32 features.7:768:32 permute:768:32",
}
LAST_ONLY = {  # long lists: the stem, the number of stages and the last
    "mobilenet_v2": ("features.0", 19, "features.18:1280:32"),
    "mobilenet_v3_small": ("features.0", 13, "features.12:576:32"),
    "inception_v3": ("Conv2d_1a_3x3", 18, "Mixed_7c:2048:45"),
}


def build(name: str) -> nn.Module:
    if name.startswith("timm:"):
        return pytest.importorskip("timm").create_model(name[5:]).eval()
    quiet = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **quiet).eval()


@pytest.mark.parametrize("name", [*EXPECTED, *LAST_ONLY])
def test_the_stages_of_a_network_are_its_outermost_blocks_its_stem_and_what_enters_the_pooling(name: str) -> None:
    clf = xattn.attach(build(name), input_size=224, name=name)
    found = [f"{stage.name}:{stage.channels}:{stage.stride}" for stage in clf.stages]
    if name in EXPECTED:
        assert " ".join(found) == EXPECTED[name]
    else:
        stem, count, last = LAST_ONLY[name]
        assert (clf.stages[0].name, len(found), found[-1]) == (stem, count, last)
    features = clf.features(torch.rand(1, 3, 224, 224))
    for stage in clf.stages:
        assert features[stage.name].shape == (1, stage.channels, *stage.size)


@pytest.mark.parametrize(
    ("name", "pooled"),
    [
        ("densenet121", lambda net, f: net.classifier(f.mean((2, 3)))),
        ("resnet18", lambda net, f: net.fc(f.mean((2, 3)))),
        ("mobilenet_v2", lambda net, f: net.classifier(f.mean((2, 3)))),
        ("vgg11", lambda net, f: net.classifier(net.avgpool(f).flatten(1))),
        ("squeezenet1_1", lambda net, f: net.classifier(f).flatten(1)),
        ("swin_t", lambda net, f: net.head(f.mean((2, 3)))),
    ],
)
def test_the_last_stage_is_what_enters_the_pooling(name: str, pooled) -> None:
    network = build(name)
    clf = xattn.attach(network, input_size=224, name=name)
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        last = clf.features(images, [clf.stages[-1].name])[clf.stages[-1].name]
        assert torch.allclose(pooled(network, last), clf.predict(images), atol=1e-4)


class Functional(nn.Module):
    """Every rectifier and pooling a function, one module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.mix = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.stem(x)), 2)
        x = functional.relu(self.mix(x))
        x = functional.max_pool2d(functional.relu(self.mix(x)), 2)
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def test_functions_and_second_calls_are_stages_with_exact_features_and_gradients() -> None:
    network = networks.seeded(Functional)
    clf = xattn.attach(network, input_size=32, resize=36)
    assert clf.stages[-1].name == "mix#2+max_pool2d"
    images = networks.pictures(2)
    x = functional.max_pool2d(functional.relu(network.stem(clf.normalise(images))), 2)
    x = functional.max_pool2d(functional.relu(network.mix(functional.relu(network.mix(x)))), 2)
    assert torch.allclose(clf.features(images)["mix#2+max_pool2d"], x, atol=1e-6)
    found = xattn.explain(clf, images, ["grad-cam"], target=3).raw["grad-cam"]
    weights = network.fc.weight[3] / x[0, 0].numel()
    assert torch.allclose(found, torch.einsum("c,bchw->bhw", weights, x).relu().detach(), atol=1e-6)


class WithTuple(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.network, self.give = networks.small(), give

    def forward(self, x: Tensor) -> object:
        return self.give(self.network(x))


class Output(dict):
    @property
    def logits(self) -> Tensor:
        return self["logits"]


@pytest.mark.parametrize("give", [lambda z: (z, None), lambda z: {"logits": z}, lambda z: Output(logits=z), lambda z: [z]])
def test_logits_are_found_in_tuples_mappings_and_model_outputs(give, images: Tensor) -> None:
    clf = xattn.attach(WithTuple(give).eval(), input_size=32, resize=36)
    plain = xattn.attach(networks.small(), input_size=32, resize=36)
    assert torch.equal(clf.predict(images), plain.predict(images))
    assert torch.equal(xattn.explain(clf, images)["grad-cam"], xattn.explain(plain, images)["grad-cam"])


def test_a_network_without_logits_is_told_what_it_must_give() -> None:
    with pytest.raises(UnsupportedError, match=r"headless must give logits \(batch, classes\).*it gave \(1, 16, 64\)"):
        xattn.attach(nn.Sequential(networks.small()[:4], nn.Flatten(2)), input_size=32, resize=36, name="headless")
    maps_of_logits = xattn.attach(networks.small()[:4], input_size=32, resize=36, name="headless")
    with pytest.raises(
        UnsupportedError,
        match="headless gives a map of logits, so a target is one class over the pixels predicted as it: 'predicted'",
    ):
        xattn.explain(maps_of_logits, networks.pictures(2), ["grad-cam"], target="second")


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (48, 160), (33, 97)])
def test_images_that_are_not_square_have_their_stages_read_the_right_way(size: tuple[int, int]) -> None:
    clf = xattn.attach(networks.small(), input_size=size, name="wide")
    features = clf.features(torch.rand(2, 3, *size))
    assert [stage.name for stage in clf.stages] == ["1", "2", "3"]
    for stage, channels, stride in zip(clf.stages, (8, 12, 16), (1, 2, 4), strict=True):
        expected = (-(-size[0] // stride), -(-size[1] // stride))
        assert (stage.layout.axes, stage.channels, stage.size) == ("NCHW", channels, expected)
        assert features[stage.name].shape == (2, channels, *expected)


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = networks.small()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.network[:5](x)
        return self.network[5:](features)


def test_a_backbone_that_stops_gradients_is_told_what_to_do() -> None:
    with pytest.raises(UnsupportedError, match="passes no gradient to the image.*requires_grad_"):
        xattn.attach(Frozen().eval(), input_size=32, resize=36, name="frozen")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "convnext_tiny", "vgg11", "squeezenet1_1"])
def test_an_embedding_s_stage_is_that_of_the_classifier_it_was_cut_from(name: str) -> None:
    """Without a linear layer behind the pooling, as many channels as values are no sign of a convolutional classifier."""
    whole = build(name)
    expected = xattn.attach(whole, input_size=96, resize=96).stages[-1]
    headless = copy.deepcopy(whole)
    if name == "squeezenet1_1":
        headless.classifier = nn.AdaptiveAvgPool2d(1)
    elif name == "resnet18":
        headless.fc = nn.Identity()
    else:
        headless.classifier = nn.Identity() if name != "convnext_tiny" else nn.Flatten()
        if name == "vgg11":
            headless.avgpool = nn.AdaptiveAvgPool2d(1)
    assert xattn.attach(headless.eval(), input_size=96, resize=96).stages[-1].name == expected.name


def test_a_map_of_logits_is_explained_at_the_features_that_its_classifier_reads() -> None:
    for upsampled in (False, True):
        layers = [networks.small()[:4], nn.Conv2d(16, 5, 1), *([nn.Upsample(scale_factor=4)] if upsampled else [])]
        clf = xattn.attach(nn.Sequential(*layers).eval(), input_size=32, resize=36)
        assert (clf.stages[-1].name, clf.stages[-1].size) == ("0.3", (8, 8))
