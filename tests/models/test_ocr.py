"""Object-contextual representations against the formula in loops, and as classifiers of regions."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from torchvision import models

import xattn
from tests import networks
from xattn.birds.network import small_resnet
from xattn.errors import InputError, NameUnknownError, SettingError, UnsupportedError, WeightsError
from xattn.metrics.targets import OutputFunction, Region
from xattn.models.ocr_source import cut
from xattn.models.sources import is_new
from xattn.ocr import ObjectContext, OCRNetwork, OCRSettings, Regions, parsed, region_weights

SMALL = "ocr:birds:gap:width=8,keys=4"


def weights_in_loops(features: list[list[float]], logits: list[list[float]], regions: str) -> list[list[float]]:
    """Of one image, `features[i]` and `logits[i]` at position i → `weights[l][i]`."""
    found = []
    for k in range(len(logits[0])):
        own = [row[k] for row in logits]
        if regions == "mean":
            raw = [math.exp(value) for value in own]
        else:
            best = features[own.index(max(own))]
            raw = []
            for vector, row in zip(features, logits, strict=True):
                dot = sum(a * b for a, b in zip(vector, best, strict=True))
                cosine = dot / math.sqrt(sum(a * a for a in vector)) / math.sqrt(sum(b * b for b in best))
                raw.append(max(0.0, cosine) * math.exp(row[k]) / sum(math.exp(value) for value in row))
        found.append([value / sum(raw) for value in raw])
    return found


@pytest.mark.parametrize("regions", ["mean", "representatives"])
def test_weights_and_logits_are_those_of_the_formula_written_out(regions: Regions) -> None:
    torch.manual_seed(0)
    channels, classes, size = 5, 3, (2, 3)
    module = ObjectContext(channels, classes, keys=4, regions=regions).double().eval()
    features, logits = torch.randn(2, channels, *size).double(), torch.randn(2, classes, *size).double()
    with torch.no_grad():
        found, weights = module(features, logits), region_weights(features, logits, regions)
        for number in range(2):
            columns, scores = features[number].flatten(1).T, logits[number].flatten(1).T
            wanted = torch.tensor(weights_in_loops(columns.tolist(), scores.tolist(), regions), dtype=torch.float64)
            torch.testing.assert_close(weights[number].flatten(1), wanted)
            vectors = torch.stack([sum(wanted[k, i] * columns[i] for i in range(6)) for k in range(classes)])

            def layer(part: nn.Module, vector: torch.Tensor) -> torch.Tensor:
                return part(vector.view(1, -1, 1, 1)).flatten()

            for i in range(6):
                query = layer(module.query, columns[i])
                shares = torch.stack([query @ layer(module.key, vectors[k]) / 2 for k in range(classes)]).softmax(dim=0)
                context = sum(shares[k] * layer(module.value, vectors[k]) for k in range(classes))
                joined = layer(module.joined, torch.cat([layer(module.context, context), columns[i]]))
                torch.testing.assert_close(found[number].flatten(1)[:, i], layer(module.classifier, joined))


def test_the_network_is_a_classifier_of_regions_and_both_classifiers_reach_the_weights() -> None:
    torch.manual_seed(0)
    early, last = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU()), nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU())
    network = OCRNetwork(early, last, (4, 6), 3, OCRSettings("representatives", 8, 4)).eval()
    classifier = xattn.attach(network, input_size=16, resize=16, name="ocr")
    assert classifier.reader.dense
    assert classifier.class_count == 3
    maps = xattn.explain(classifier, torch.rand(2, 3, 16, 16), ["grad-cam"])
    assert maps["grad-cam"].shape == (2, 16, 16)
    found = network.train()(torch.rand(2, 3, 16, 16))
    (found["out"].square().mean() + 0.4 * found["aux"].square().mean()).backward()
    assert not [name for name, weight in network.named_parameters() if weight.grad is None]


def test_another_kind_of_regions_is_refused() -> None:
    with pytest.raises(SettingError, match="regions is 'mean' or 'representatives'; got 'ranks'"):
        ObjectContext(4, 3, regions="ranks")  # type: ignore[arg-type]


def test_a_name_gives_a_network_with_the_backbone_s_weights_that_is_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    clf = xattn.load(SMALL, classes=3, labels=["a", "b", "c"], high_res=["layer3", "layer4"], device="cpu")
    assert (clf.class_count, clf.input_size, clf.trained, is_new(SMALL)) == (3, (64, 64), False, True)
    own = xattn.load("birds:gap", device="cpu").network.state_dict()
    state = clf.network.state_dict()
    for key, value in own.items():
        if not key.startswith("fc."):
            place = f"last.{key}" if key.startswith("layer4") else f"early.{key}"
            assert torch.equal(state[place], value), key
    images = networks.pictures(2, size=64)
    assert clf.features(images, ["reduce"])["reduce"].shape == (2, 8, 32, 32)
    with pytest.raises(UnsupportedError, match="never trained"):
        xattn.explain(clf, images, ["raw-attention"])
    clf.trained = True
    clf.save(str(tmp_path / "ocr.safetensors"))
    again = xattn.load(str(tmp_path / "ocr.safetensors"), device="cpu")
    assert (again.trained, again.labels, again.class_count) == (True, ("a", "b", "c"), 3)
    assert torch.equal(again.predict(images), clf.predict(images))
    torch.save(state, tmp_path / "ocr.pth")
    whole = xattn.load(SMALL, weights=str(tmp_path / "ocr.pth"), high_res=["layer3", "layer4"], device="cpu")
    assert torch.equal(whole.predict(images), clf.predict(images))
    with pytest.raises(InputError, match="the weights are for 3 classes; got classes=4"):
        xattn.load(SMALL, weights=str(tmp_path / "ocr.pth"), classes=4, device="cpu")
    with pytest.raises(WeightsError, match="do not fit OCRNetwork"):
        xattn.load("ocr:birds:gap:width=4,keys=4", weights=str(tmp_path / "ocr.pth"), device="cpu")


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        (small_resnet, (64, 128)),
        (lambda: models.mobilenet_v2(), (320, 1280)),
        (lambda: models.densenet121(), (512, 1024)),
        (lambda: models.convnext_tiny(), (384, 768)),
    ],
)
def test_backbones_are_cut_before_their_pooling_and_at_the_stage_before(make, channels: tuple[int, int]) -> None:
    network = networks.seeded(make)
    early, last, found = cut(network, "net")
    assert found == channels
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = early(image)
        features = last(before)
    assert (before.shape[1], features.shape[1]) == channels
    if hasattr(network, "features"):  # of torchvision, which pools and classifies what these give
        with torch.no_grad():
            wanted = network.features(image)
        torch.testing.assert_close(features, wanted.relu() if isinstance(network, models.DenseNet) else wanted)


def test_a_hrnet_gives_the_maps_of_all_branches_at_the_size_of_the_finest() -> None:
    timm = pytest.importorskip("timm")
    network = networks.seeded(lambda: timm.create_model("hrnet_w18_small", pretrained=False))
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        stem = network.act2(network.bn2(network.conv2(network.act1(network.bn1(network.conv1(image))))))
        branches = network.stages(stem)
        early, last, channels = cut(network, "hrnet")
        found = early(image)
    assert [branch.shape[1] for branch in branches] == [16, 32, 64, 128]
    assert channels == (240, 240)
    assert isinstance(last, nn.Identity)
    wanted = [functional.interpolate(branch, size=(16, 24), mode="bilinear") for branch in branches]
    torch.testing.assert_close(found, torch.cat(wanted, dim=1))
    made = OCRNetwork(early, last, channels, 3, OCRSettings(width=8, keys=4)).eval()
    assert {key: tuple(value.shape) for key, value in made(image).items()} == {"out": (1, 3, 64, 96), "aux": (1, 3, 64, 96)}


def test_without_object_context_the_features_are_classified_themselves() -> None:
    clf = xattn.load("ocr:birds:gap:width=8,regions=none", classes=3, input_size=16, resize=16, device="cpu")
    images = networks.pictures(2, size=16)
    features = clf.features(images, ["reduce"])["reduce"]
    wanted = functional.interpolate(clf.network.classifier(features), size=(16, 16), mode="bilinear")
    torch.testing.assert_close(clf.predict(images), wanted)
    clf.trained = True
    with pytest.raises(UnsupportedError, match="gap has none"):
        xattn.explain(clf, images, ["raw-attention"])


@pytest.mark.parametrize("regions", ["mean", "representatives"])
def test_raw_attention_is_the_weights_of_the_target_s_class_at_any_stage(regions: Regions, tmp_path: Path) -> None:
    clf = xattn.load(f"{SMALL},regions={regions}", classes=3, input_size=32, resize=32, device="cpu")
    clf.trained = True
    images = networks.pictures(3, size=32)
    found = clf.features(images, ["reduce", "aux"])
    features, logits = found["reduce"], functional.interpolate(found["aux"], size=found["reduce"].shape[2:], mode="bilinear")
    target = Region(torch.tensor([2, 0, 1]), torch.ones(32, 32).expand(3, -1, -1))
    wanted = region_weights(features, logits, regions)[torch.arange(3), target.classes]
    for stage in (None, "early.layer3"):
        maps = xattn.explain(clf, images, ["raw-attention", "grad-cam"], target=target, stage=stage)
        torch.testing.assert_close(maps.raw["raw-attention"], wanted)
    torch.testing.assert_close(wanted.sum(dim=(1, 2)), torch.ones(3))
    predicted = xattn.explain(clf, images, ["raw-attention"])
    classes = predicted.target.classes
    assert torch.equal(predicted.raw["raw-attention"], region_weights(features, logits, regions)[torch.arange(3), classes])
    Image.fromarray((images[0].permute(1, 2, 0) * 255).byte().numpy()).save(tmp_path / "0.png")
    for spec in ("raw-attention:rank=1", "raw-attention:attention=logits"):
        with pytest.raises(UnsupportedError, match="its attention is a map per class, without ranks and kept scores"):
            xattn.explain(clf, images, [spec])
        with pytest.raises(UnsupportedError, match="its attention is a map per class, without ranks and kept scores"):
            xattn.Study([clf], [spec], ["sparsity"], tmp_path / "0.png", tmp_path / "no", progress=False)
    with pytest.raises(UnsupportedError, match="raw-attention of .* explains the class of a region, but the target is the function"):
        xattn.explain(clf, images, ["raw-attention"], target=OutputFunction(lambda output: output.mean(dim=(1, 2, 3)), count=3))


def test_names_that_do_not_fit_are_told() -> None:
    assert parsed("ocr:timm:hrnet_w48") == ("timm:hrnet_w48", OCRSettings())
    for name, error, said in (
        ("ocr:", InputError, "names no backbone"),
        ("ocr:hf:google/vit", InputError, "not one of them"),
        ("ocr:birds:gap", InputError, "new classifiers of pixels: give the number of classes"),
        ("ocr:birds:gap:width=0", SettingError, "width and keys are 1 or more"),
        ("ocr:birds:gap:depth=2", NameUnknownError, "depth"),
        ("ocr:birds:gap:regions=ranks", SettingError, "regions"),
    ):
        with pytest.raises(error, match=said):
            xattn.load(name, device="cpu")
    with pytest.raises(UnsupportedError, match=r"birds:vit has no two feature maps .* before a pooling"):
        xattn.load("ocr:birds:vit", classes=3, device="cpu")
