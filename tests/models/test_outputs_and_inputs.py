"""Networks that return several outputs, probabilities or one value, and that take other channels or further inputs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import pil_to_tensor

import xattn
from tests import networks
from tests.networks import pictures
from xattn.errors import ImageError, InputError, NameUnknownError, UnsupportedError
from xattn.models import Classifier


class Net(nn.Module):
    """Two blocks, an embedding of 16 values, `classes` logits; what it returns is made of images, map, embedding and logits."""

    def __init__(self, wrap: Callable[..., Any], classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.body = networks.small(16)
        self.body[0] = nn.Conv2d(channels, 8, 3, padding=1)
        self.cls, self.side, self.back = nn.Linear(16, classes), nn.Linear(16, 2), nn.Linear(classes, 4)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        embedding = self.body(images)
        return self.wrap(self, images, embedding, self.cls(embedding))


@dataclass(frozen=True)
class Returned:
    embedding: Tensor
    classes: Tensor


def attached(wrap: Callable[..., Any], classes: int = 3, channels: int = 3, **options: Any) -> Classifier:
    return xattn.attach(networks.seeded(lambda: Net(wrap, classes, channels)), input_size=32, resize=32, name="net", **options)


SEVERAL: dict[str, Callable[..., Any]] = {
    "an embedding first": lambda net, x, e, z: (e, z),
    "an embedding last": lambda net, x, e, z: (z, e),
    "a mapping": lambda net, x, e, z: {"features": e, "prediction": z},
    "a dataclass": lambda net, x, e, z: Returned(e, z),
    "nested": lambda net, x, e, z: ({"embedding": e}, [e, z]),
    "probabilities beside": lambda net, x, e, z: (e, z.softmax(1), z),
    "a confidence beside": lambda net, x, e, z: (z, e, z.softmax(1).amax(1), -(z.softmax(1) * z.log_softmax(1)).sum(1)),
    "a constant beside": lambda net, x, e, z: (net.cls.weight, net.cls.weight.detach()[:1], z),
    "by name": lambda net, x, e, z: {"logits": z, "side": net.side(e), "after": net.back(z)},
    "by name inside": lambda net, x, e, z: {"heads": {"logits": z, "side": net.side(e)}, "map": x},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_the_logits_are_the_output_that_the_others_lead_to(kind: str) -> None:
    clf, plain = attached(SEVERAL[kind]), attached(lambda net, x, e, z: z)
    images = pictures(3)
    assert clf.class_count == 3
    assert torch.equal(clf.predict(images), plain.predict(images))
    found, expected = (xattn.explain(each, images, ["grad-cam", "score-cam"]) for each in (clf, plain))
    for method in found:
        assert torch.allclose(found.raw[method], expected.raw[method], atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net, x, e, z: (z, net.side(e)),
        lambda net, x, e, z: {"first": net.side(e), "second": z},
        lambda net, x, e, z: (functional.normalize(e), z),
        lambda net, x, e, z: (z, functional.interpolate(net.back(z)[:, :, None, None], 8)),
    ],
)
def test_outputs_that_do_not_lead_to_one_are_refused_with_their_shapes(wrap: Callable[..., Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"net returns '\w+' \(batch, .*'\w+' \(batch, .*unclear which.*output=.*--output"):
        attached(wrap)


@pytest.mark.parametrize("asked", [1, "1", -1])
def test_an_output_can_be_named(asked: str | int) -> None:
    clf = attached(lambda net, x, e, z: (z, net.side(e)), output=asked)
    assert clf.class_count == 2
    with pytest.raises(NameUnknownError, match=r"'0' \(batch, 3\), '1' \(batch, 2\)"):
        attached(lambda net, x, e, z: (z, net.side(e)), output="aux")
    with pytest.raises(InputError, match="returns one tensor"):
        attached(lambda net, x, e, z: z, output=1)


def two_outputs() -> nn.Module:
    return networks.seeded(lambda: Net(lambda net, x, e, z: (z, net.side(e))))


def test_a_saved_classifier_and_a_run_remember_the_output(tmp_path: Path) -> None:
    clf = xattn.load(f"{__name__}:two_outputs", output=1, input_size=32, device="cpu")
    clf.save(str(tmp_path / "clf.safetensors"))
    again = xattn.load(str(tmp_path / "clf.safetensors"), trust_code=True, device="cpu")
    assert torch.equal(again.predict(pictures(2)), clf.predict(pictures(2)))
    images = torch.utils.data.TensorDataset(pictures(2), torch.tensor([0, 1]))
    study = xattn.Study([clf], ["random"], ["sparsity"], images, tmp_path / "run", progress=False)
    assert study.plan.settings()["models"][0]["output"] == "1"


def probabilities(rows: Any) -> Tensor:
    return torch.tensor(rows["probability"].tolist(), dtype=torch.float64)


SCORES = ["average-drop"]
INSIDE: dict[str, tuple[Callable[..., Any], int, bool]] = {
    "softmax": (lambda net, x, e, z: z.softmax(1), 3, False),
    "saturated softmax": (lambda net, x, e, z: (300 * z).softmax(1), 3, False),
    "normalised by hand": (lambda net, x, e, z: z.exp() / z.exp().sum(1, keepdim=True), 3, False),
    "sigmoids": (lambda net, x, e, z: z.sigmoid(), 3, True),
    "clamped sigmoids": (lambda net, x, e, z: (z.sigmoid() * 1.0).clamp(1e-6, 1), 3, True),
}


@pytest.mark.parametrize("kind", INSIDE)
def test_probabilities_in_the_place_of_logits_are_the_probabilities_of_the_classes(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    wrap, classes, multi_label = INSIDE[kind]
    with caplog.at_level(logging.WARNING, "xattn"):
        clf = attached(wrap, classes)
    assert "gives probabilities" in caplog.text
    assert clf.multi_label == multi_label
    images = pictures(3)
    maps = xattn.explain(clf, images, ["grad-cam"], threshold=0.3 if multi_label else None)
    true = clf.network(clf.normalise(images)).detach()
    true = true[true >= 0.3] if multi_label else true.max(1).values  # of several labels, each that is predicted
    assert torch.allclose(probabilities(xattn.evaluate(clf, images, maps, SCORES)), true.double(), atol=1e-5)


def test_logits_are_not_taken_for_probabilities(caplog: pytest.LogCaptureFixture) -> None:
    for wrap in (lambda net, x, e, z: z, lambda net, x, e, z: z.log_softmax(1), lambda net, x, e, z: net.cls(e.sigmoid())):
        clf = attached(wrap)
        assert not clf.reader.probabilities
    assert "probabilities" not in caplog.text


def test_maps_of_a_softmax_inside_are_those_of_the_log_probability() -> None:
    clf, plain = attached(lambda net, x, e, z: z.softmax(1)), attached(lambda net, x, e, z: z.log_softmax(1))
    found, expected = (xattn.explain(each, pictures(2), ["grad-cam", "grad-cam++"]).raw for each in (clf, plain))
    for method in found:
        assert torch.allclose(found[method], expected[method], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net, x, e, z: z,
        lambda net, x, e, z: z[:, 0],
        lambda net, x, e, z: z.squeeze(),
        lambda net, x, e, z: z.sigmoid(),
        lambda net, x, e, z: z.sigmoid()[:, 0],
    ],
    ids=["a column", "a vector", "squeezed", "a sigmoid", "a sigmoid as a vector"],
)
def test_a_single_logit_is_two_classes_with_the_sigmoid_as_probability(wrap: Callable[..., Any]) -> None:
    clf, images = attached(wrap, 1), pictures(4)
    plain = attached(lambda net, x, e, z: z, 1, multi_label=True)
    positive = plain.predict(images)[:, 0].double().sigmoid()
    assert clf.class_count == 2
    assert plain.class_count == 1
    assert torch.allclose(clf.predict(images).double().softmax(1), torch.stack([1 - positive, positive], dim=1), atol=1e-6)
    assert torch.equal(clf.predict(images).argmax(1), (positive > 0.5).long())
    maps = xattn.explain(clf, images, ["grad-cam"], target=1)
    assert torch.allclose(2 * maps.raw["grad-cam"], xattn.explain(plain, images, ["grad-cam"], target=0).raw["grad-cam"], atol=1e-5)
    negative = xattn.explain(clf, images, ["grad-cam"], target=0)
    assert torch.allclose(probabilities(xattn.evaluate(clf, images, negative, SCORES)), 1 - positive, atol=1e-6)
    assert torch.equal(clf.predict(images[:1]), clf.predict(images)[:1]) or torch.allclose(
        clf.predict(images[:1]), clf.predict(images)[:1], atol=1e-6
    )


def test_a_loss_beside_nothing_else_is_no_output() -> None:
    with pytest.raises(UnsupportedError, match="must give logits"):
        attached(lambda net, x, e, z: z.mean())


def test_values_of_a_regression_have_maps_and_metrics_of_the_map() -> None:
    clf, images = attached(lambda net, x, e, z: 40 * z, 1, regression=True), pictures(2)
    maps = xattn.explain(clf, images, ["grad-cam", "score-cam:weighting=logit-softmax"])
    rows = xattn.evaluate(clf, images, maps, ["sparsity", "complexity"])
    assert set(rows["target"]) == {"value 0"}
    assert rows["probability"].isna().all()
    assert rows["predicted"].to_list() == pytest.approx([float(value) for value in clf.predict(images)[:, 0] for _ in range(4)])
    with pytest.raises(UnsupportedError, match="average-drop follows the target's probability, and a value of a regression has none"):
        xattn.evaluate(clf, images, maps, SCORES)
    several = attached(lambda net, x, e, z: z, 3, regression=True)
    with pytest.raises(InputError, match="gives 3 values: give one, by its index"):
        xattn.explain(several, images)
    one, other = (xattn.explain(several, images, ["grad-cam"], target=target).raw["grad-cam"] for target in (1, [1, 1]))
    assert torch.equal(one, other)


LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "a convolution of one channel": (lambda: nn.Conv2d(1, 8, 3, padding=1), 1),
    "a batch norm of one channel": (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3, padding=1)), 1),
    "four channels": (lambda: nn.Conv2d(4, 8, 3, padding=1), 4),
    "a depthwise convolution of six": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 8, 1)), 6),
    "two channels": (lambda: nn.Conv2d(2, 8, 3, padding=1), 2),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_first_layer_says_how_many_channels_images_have(kind: str) -> None:
    make, channels = LAYERS[kind]

    def build() -> nn.Module:
        network = networks.small()
        network[0] = make()
        return network

    clf = xattn.attach(networks.seeded(build), input_size=32)
    assert clf.channels == channels
    assert clf.preprocessing.mean == (0.5,) * channels
    images = torch.rand(2, channels, 32, 32)
    maps = xattn.explain(clf, images, ["grad-cam", "guided-grad-cam", "edges"])
    rows = xattn.evaluate(clf, images, maps, ["average-drop", "insertion", "deletion:fill=mean"])
    assert rows["value"].notna().all()
    with pytest.raises(InputError, match=rf"\(batch, {channels}, height, width\)"):
        clf.predict(torch.rand(1, 3, 32, 32))


def test_mean_and_std_are_one_for_each_channel_or_one_for_all() -> None:
    def build() -> nn.Module:
        network = networks.small()
        network[0] = nn.Conv2d(4, 8, 3, padding=1)
        return network

    assert xattn.attach(build(), input_size=32, mean=[0.1], std=[0.2]).std.flatten().tolist() == pytest.approx([0.2] * 4)
    assert xattn.attach(build(), input_size=32, mean=[0.1, 0.2, 0.3, 0.4]).preprocessing.mean == (0.1, 0.2, 0.3, 0.4)
    with pytest.raises(InputError, match="mean needs 4 values in .* takes 4 channels, or one for all"):
        xattn.attach(build(), input_size=32, mean=[0.1, 0.2])


def grey() -> nn.Module:
    network = networks.small()
    network[0] = nn.Conv2d(1, 8, 3, padding=1)
    return networks.seeded(lambda: network)


def test_pictures_are_decoded_to_the_channels_of_the_network(tmp_path: Path) -> None:
    colours = Image.effect_noise((32, 32), 80).convert("RGB")
    colours.putpixel((3, 3), (200, 10, 90))
    colours.save(tmp_path / "a.png")
    colours.convert("L").save(tmp_path / "b.png")
    clf = xattn.attach(grey(), input_size=32, resize=32)
    maps = xattn.explain(clf, tmp_path, ["grad-cam"])
    assert maps.images.shape == (2, 1, 32, 32)
    assert torch.equal(maps.images[0], maps.images[1])
    expected = pil_to_tensor(colours.convert("L"))[0] / 255
    assert torch.allclose(maps.images[0, 0], expected)
    network = networks.small()
    network[0] = nn.Conv2d(4, 8, 3, padding=1)
    four = xattn.attach(network, input_size=32, resize=32)
    with pytest.raises(ImageError, match="takes 4 channels, and the picture has 3"):
        xattn.explain(four, tmp_path / "a.png")
    colours.convert("RGBA").save(tmp_path / "c.png")
    assert xattn.explain(four, tmp_path / "c.png").images.shape == (1, 4, 32, 32)


def test_a_real_grey_network_knows_persons_from_files(data: Path, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models.efficientnet import _gen_mobilenet_v1

    assert timm
    network = _gen_mobilenet_v1("mobilenetv1_100", channel_multiplier=0.25, pretrained=False, in_chans=1, num_classes=2, pad_type="same")
    network.load_state_dict(torch.load(data / "weights" / "person_detect_gray_mobilenetv1_025.pth", weights_only=True))
    clf = xattn.attach(network.eval(), input_size=96, mean=[0.5], std=[0.5], labels=["none", "person"])
    files = sorted((data / "photos").iterdir())[:4]
    maps = xattn.explain(clf, files, ["grad-cam", "score-cam"], target="person")
    for file, image, logits in zip(files, maps.images, maps.logits, strict=True):
        picture = Image.open(file).convert("RGB")
        assert torch.equal(image, clf.preprocessing.crop(picture).float() / 255)
        assert torch.allclose(logits, network(((image - 0.5) / 0.5)[None])[0], atol=1e-4)
    images = torch.utils.data.TensorDataset(maps.images, torch.ones(4))
    study = xattn.Study([clf], ["grad-cam"], ["insertion", "average-drop"], images, tmp_path / "run", progress=False)
    assert study.run().failed == []


class Volumes(nn.Module):
    def __init__(self, channels: int, unpacks: bool = False) -> None:
        super().__init__()
        self.first, self.fc, self.unpacks = nn.Conv3d(channels, 4, 3, padding=1), nn.Linear(4, 2), unpacks

    def forward(self, clips: Tensor) -> Tensor:
        if self.unpacks:
            _batch, _channels, _frames, _height, _width = clips.shape
        return self.fc(self.first(clips).mean((2, 3, 4)))


@pytest.mark.parametrize("network", [Volumes(3), Volumes(1), Volumes(3, unpacks=True)], ids=["of three", "of one", "unpacked"])
def test_networks_of_volumes_are_refused_by_name(network: nn.Module) -> None:
    with pytest.raises(UnsupportedError, match="xattn explains images.*first layer of Volumes is a Conv3d, over videos or volumes"):
        xattn.attach(network, input_size=32)


def test_a_network_of_tokens_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="is an Embedding, over indices of tokens"):
        xattn.attach(nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(4, 2)), input_size=32)


class WithMetadata(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.fc = networks.small(8), nn.Linear(11, 3)

    def forward(self, images: Tensor, metadata: Tensor, scale: float = 1.0) -> Tensor:
        return self.fc(torch.cat([self.network(images), scale * metadata], dim=1))


def test_further_inputs_of_a_forward_come_from_a_function_of_the_images() -> None:
    network = networks.seeded(WithMetadata)
    clf = xattn.attach(
        network, input_size=32, name="net", inputs=lambda images: {"metadata": images.new_ones(len(images), 3), "scale": 2.0}
    )
    images = pictures(5)
    assert torch.allclose(clf.predict(images), network(clf.normalise(images), torch.ones(5, 3), 2.0), atol=1e-6)
    maps = xattn.explain(clf, images, ["grad-cam", "score-cam"], batch_size=2)
    assert xattn.evaluate(clf, images, maps, ["average-drop", "insertion"])["value"].notna().all()
    assert not network._forward_pre_hooks
    with pytest.raises(InputError, match="by name.*it gave Tensor"):
        xattn.attach(network, input_size=32, inputs=lambda images: torch.ones(1, 3))
    with pytest.raises(UnsupportedError, match="takes images, metadata: wrap it.*inputs=lambda images: {'metadata': …}"):
        xattn.attach(network, input_size=32)


def test_a_timm_network_is_built_with_the_channels_and_classes_of_its_weights(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.save(timm.create_model("resnet10t", in_chans=1, num_classes=1).state_dict(), tmp_path / "b.pth")
    clf = xattn.load("timm:resnet10t", weights=tmp_path / "b.pth", input_size=64, device="cpu")
    assert (clf.channels, clf.class_count, clf.preprocessing.mean) == (1, 2, (0.5,))
