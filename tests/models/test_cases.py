"""Networks of situations that users reported: each attaches at the right place, or says what to do."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.errors import UnsupportedError, WeightsError
from xattn.models import Classifier

Gated = collections.namedtuple("Gated", "gate x")


@dataclass(frozen=True)
class Features:
    mask: Tensor | None
    x: Tensor


class Body(nn.Module):
    """Two convolutions, whose map is inside something."""

    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, 4, 1), nn.Conv2d(16, 32, 3, 4, 1)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Any:
        return self.wrap(self.second(self.first(images).relu()).relu())


class Around(nn.Module):
    def __init__(self, wrap: Any, read: Any) -> None:
        super().__init__()
        self.body, self.read, self.fc = Body(wrap), read, nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.read(self.body(images)).mean((2, 3)))


WRAPPED = {
    "a mapping": (lambda x: {"low": x.mean((2, 3)), "out": x}, lambda found: found["out"]),
    "a named tuple": (lambda x: Gated(x.mean(), x), lambda found: found.x),
    "a tuple with None": (lambda x: (None, x), lambda found: found[1]),
    "a frozen dataclass": (lambda x: Features(None, x), lambda found: found.x),
    "a mapping in a list": (lambda x: [{"x": (x, 3)}], lambda found: found[0]["x"][0]),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_map_inside_what_a_submodule_returns_is_found_and_can_be_named(kind: str) -> None:
    wrap, read = WRAPPED[kind]
    plain = xattn.attach(networks.seeded(lambda: Around(lambda x: x, lambda x: x)), input_size=128)
    clf = xattn.attach(networks.seeded(lambda: Around(wrap, read)), input_size=128)
    assert (clf.stages[-1].channels, clf.stages[-1].size) == (32, (8, 8))
    images = networks.pictures(2, size=128)
    expected = xattn.explain(plain, images, ["grad-cam"], stage="body").raw["grad-cam"]
    for stage in (None, "body"):
        assert torch.allclose(xattn.explain(clf, images, ["grad-cam"], stage=stage).raw["grad-cam"], expected, atol=1e-6)


def test_a_map_pooled_along_one_axis_is_a_stage() -> None:
    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, 1, 1), nn.ReLU()]

    layers = [*block(3, 8), nn.MaxPool2d((4, 1)), *block(8, 16), nn.MaxPool2d((4, 1)), *block(16, 32)]
    clf = xattn.attach(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval(), input_size=(64, 256))
    assert (clf.stages[-1].name, clf.stages[-1].size) == ("7", (4, 256))
    assert xattn.explain(clf, torch.rand(1, 3, 64, 256), ["grad-cam"]).raw["grad-cam"].shape == (1, 4, 256)


class Encoded(nn.Module):
    """An encoder of tokens behind a convolutional trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*list(torchvision.models.resnet18().children())[:-2])
        self.encoder, self.fc = nn.TransformerEncoderLayer(512, 4, 64, batch_first=True), nn.Linear(512, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(self.trunk(images).flatten(2).transpose(1, 2)).mean(1))


class Patches(nn.Module):
    """A vision transformer without a class token: tokens of a patch embedding, encoded, their mean classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 8, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 3, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.encoder(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


def test_an_encoder_behind_a_trunk_leaves_the_trunk_s_last_map_and_one_on_patches_gives_its_tokens() -> None:
    clf = xattn.attach(networks.seeded(Encoded), input_size=64)
    assert (clf.stages[-1].channels, clf.stages[-1].size) == (512, (2, 2))
    stages = xattn.attach(networks.seeded(Patches), input_size=64).stages
    assert [stage.name for stage in stages] == ["encoder.layers.0", "encoder.layers.1", "encoder.layers.2"]
    assert all((stage.channels, stage.size) == (16, (8, 8)) for stage in stages)


def test_queries_and_values_are_never_read_as_maps() -> None:
    network = pytest.importorskip("timm").create_model("resnet50_clip", num_classes=10).eval()
    stage = xattn.attach(network, input_size=224).stages[-1]
    assert (stage.channels, stage.size) == (2048, (7, 7))


class Ensemble(nn.Module):
    """Two networks whose outputs are averaged: no map lies on every path."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = networks.small(), networks.small()

    def forward(self, images: Tensor) -> Tensor:
        return (self.a(images) + self.b(images)) / 2


def test_a_network_without_a_common_map_has_no_default_stage_and_runs_what_needs_none(tmp_path: Path) -> None:
    clf = xattn.attach(networks.seeded(Ensemble), input_size=32, resize=36, name="two")
    assert clf.stages == ()
    images = networks.pictures(2)
    maps = xattn.explain(clf, images, ["random", "centre", "captum:IntegratedGradients"])
    assert maps.stage is None
    assert maps["captum:IntegratedGradients"].shape == (2, 32, 32)
    assert len(xattn.evaluate(clf, images, maps, metrics=["insertion", "sparsity"])) == 12
    with pytest.raises(UnsupportedError, match="two has no feature map that every path .* crosses: name a stage"):
        xattn.explain(clf, images, ["random", "grad-cam"])
    with pytest.raises(UnsupportedError, match="br-npa reads the map that enters the pooling; Ensemble has no feature map"):
        xattn.attach(networks.seeded(Ensemble), input_size=32, head="br-npa")
    last = xattn.attach(clf.network.a, input_size=32).stages[-1].name
    named = xattn.explain(clf, images, ["grad-cam"], stage=f"a.{last}")
    assert named.stage is not None
    assert "named" in named.stage.found
    alone = xattn.attach(clf.network.a, input_size=32, resize=36)
    target = named.targets
    assert torch.allclose(named.raw["grad-cam"] * 2, xattn.explain(alone, images, ["grad-cam"], target=target).raw["grad-cam"], atol=1e-6)


def test_a_run_of_networks_of_which_one_has_no_default_stage_leaves_out_its_cams(tmp_path: Path) -> None:
    several = [
        xattn.attach(networks.seeded(Ensemble), input_size=32, resize=36, name="two"),
        xattn.attach(networks.small(), input_size=32, resize=36, name="one"),
    ]
    source = torch.utils.data.TensorDataset(networks.pictures(2), torch.tensor([0, 1]))
    study = xattn.Study(several, ["grad-cam", "centre"], ["insertion"], source, tmp_path)
    assert not study.run().failed
    scores = study.scores()
    assert sorted(set(zip(scores["model"], scores["method"], strict=True))) == [("one", "centre"), ("one", "grad-cam"), ("two", "centre")]
    with pytest.raises(UnsupportedError, match="two has no feature map"):
        xattn.Study(several[:1], ["grad-cam"], ["insertion"], source, tmp_path / "alone")


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.fc = networks.small(), nn.Linear(8, 2)

    def forward(self, images: Tensor, metadata: Tensor) -> Tensor:
        return self.fc(torch.cat([self.network(images), metadata], dim=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Second, r"cannot run an image \(1, 3, 64, 64\): TypeError.*Its forward takes images, metadata: wrap it"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3), networks.small()), r"cannot run an image \(1, 1, 64, 64\).*If it takes another size"),
        (lambda: torch.jit.trace(networks.small(), torch.rand(1, 3, 32, 32)), "runs no Python hooks.*attach the original module"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:FutureWarning")
def test_a_network_that_cannot_be_run_on_images_says_why_and_what_to_do(make: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        xattn.attach(make().eval(), input_size=64)


def test_a_classifier_made_in_inference_mode_is_one_as_any_other(images: Tensor) -> None:
    network = networks.small()
    with torch.inference_mode():
        clf = xattn.attach(network, input_size=32, resize=36)
    plain = xattn.attach(networks.small(), input_size=32, resize=36)
    assert torch.equal(xattn.explain(clf, images, ["grad-cam"]).raw["grad-cam"], xattn.explain(plain, images, ["grad-cam"]).raw["grad-cam"])


def loaded(tmp_path: Path, state: dict[str, Any], model: str, **settings: Any) -> Classifier:
    torch.save(state, tmp_path / "weights.pth")
    return xattn.load(model, weights=tmp_path / "weights.pth", device="cpu", **settings)


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "network."])
def test_a_loss_s_own_weights_beside_the_network_s_are_left_out_and_listed(
    prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network = torchvision.models.resnet18(num_classes=4)
    state = {f"{prefix}{key}": value for key, value in network.state_dict().items()} | {"criterion.weight": torch.ones(4)}
    clf = loaded(tmp_path, {"state_dict": state}, "torchvision:resnet18")
    assert clf.class_count == 4
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in clf.network.state_dict().items())
    assert "left out of the weights, as they are not the network's: criterion.weight" in caplog.text
    del state[f"{prefix}fc.bias"]
    with pytest.raises(WeightsError, match=r"1 keys missing \(fc.bias\)"):
        loaded(tmp_path, {"state_dict": state}, "torchvision:resnet18")


def test_networks_that_tell_their_version_or_have_weights_of_five_axes_load(tmp_path: Path) -> None:
    network = networks.seeded(lambda: torchvision.models.mnasnet0_5(weights=None))
    clf = loaded(tmp_path, network.state_dict(), "torchvision:mnasnet0_5", input_size=64, resize=64)
    assert torch.allclose(clf.network(torch.ones(1, 3, 64, 64)), network(torch.ones(1, 3, 64, 64)), atol=1e-5)
    state = pytest.importorskip("timm").create_model("lambda_resnet26t").state_dict()
    assert loaded(tmp_path, state, "timm:lambda_resnet26t", input_size=256).stages[-1].size == (8, 8)


def test_a_network_of_one_size_alone_is_given_it(tmp_path: Path) -> None:
    network = pytest.importorskip("timm").create_model("maxvit_pico_rw_256")
    assert loaded(tmp_path, network.state_dict(), "timm:maxvit_pico_rw_256").input_size == (256, 256)


def test_a_frozen_network_is_explained_by_other_libraries(images: Tensor) -> None:
    frozen = xattn.attach(networks.small().requires_grad_(False), input_size=32, resize=36)
    free = xattn.attach(networks.small(), input_size=32, resize=36)
    for spec in ("grad-cam:LayerCAM", "captum:LayerGradCam", "guided-backprop"):
        found, expected = (xattn.explain(clf, images[:2], [spec]).raw[spec] for clf in (frozen, free))
        assert torch.allclose(found, expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
