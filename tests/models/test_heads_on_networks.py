"""Heads put on real architectures with random weights: where they look, what they refuse, what they leave alone."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision import models

import xattn
from tests import networks
from xattn.errors import InputError, SettingError, UnsupportedError
from xattn.explainers import trace
from xattn.heads import heads, representatives
from xattn.models import Classifier, checkpoints
from xattn.models.checkpoints import read_header, split_weights

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(),
    "convnext_tiny": lambda: models.convnext_tiny(),
    "mobilenet_v2": lambda: models.mobilenet_v2(),
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(),
    "efficientnet_b0": lambda: models.efficientnet_b0(),
    "densenet121": lambda: models.densenet121(),
    "swin_t": lambda: models.swin_t(),
    "squeezenet1_1": lambda: models.squeezenet1_1(),
    "vgg11": lambda: models.vgg11(init_weights=False),
    "timm resnet18": lambda: timm.create_model("resnet18"),
    "timm convnext_atto": lambda: timm.create_model("convnext_atto"),
    "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050"),
    "timm efficientnet_lite0": lambda: timm.create_model("efficientnet_lite0"),
    "timm densenet121": lambda: timm.create_model("densenet121"),
    "timm vgg11": lambda: timm.create_model("vgg11"),
}
NO_VECTOR = ("squeezenet1_1", "vgg11", "timm vgg11")
GRAFTED = (
    "resnet18",
    "mobilenet_v2",
    "efficientnet_b0",
    "densenet121",
    "swin_t",
    "timm resnet18",
    "timm efficientnet_lite0",
    "timm densenet121",
)
PLACES = {
    "resnet18": ["maxpool", "layer1", "layer2", "layer3", "layer4"],
    "timm resnet18": ["maxpool", "layer1", "layer2", "layer3", "layer4"],
    "convnext_tiny": ["features.0", "features.2", "features.4", "features.7"],
    "timm convnext_atto": ["stem", "stages.1.downsample", "stages.2.downsample", "stages.3"],
    "mobilenet_v2": [f"features.{n}" for n in (0, 1, 3, 6, 10, 13, 16, 17, 18)],
    "densenet121": [
        "features.pool0",
        "features.denseblock1",
        "features.transition1",
        "features.denseblock2",
        "features.transition2",
        "features.denseblock3",
        "features.transition3",
        "features+relu",
    ],
}


def attached(network: nn.Module, head: str, **options: Any) -> Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xattn.attach(network, head=head, **options).eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return networks.pictures(2, size=96)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_attend_on_every_family(name: str, pictures: Tensor) -> None:
    network = networks.seeded(NETWORKS[name])
    plain = attached(network, "gap", input_size=96, resize=96)
    expected = plain.predict(pictures)
    for head in ("ca-stream", "br-npa:n=2", "b-cnn:n=2"):
        if head == "ca-stream" and name in NO_VECTOR:
            with pytest.raises(UnsupportedError, match=r"ca-stream replaces the pooled vector .* Use br-npa, b-cnn or gap"):
                attached(network, head, input_size=96, resize=96)
            continue
        if head.startswith("b-cnn") and name in ("densenet121", "timm densenet121", "swin_t", "efficientnet_b0", "timm efficientnet_lite0"):
            continue  # its 2 × 9 · C² weights take their time, and the attachment is br-npa's
        clf = attached(network, head, input_size=96, resize=96)
        maps = xattn.explain(clf, pictures, methods=["raw-attention", "grad-cam"], untrained=True)
        assert maps.raw["raw-attention"].shape[1:] == clf.stages[-1].size
        assert torch.isfinite(maps.raw["raw-attention"]).all()
        assert head.startswith("b-cnn") or trace(clf, pictures).gradients.any()  # maps of a random b-cnn may all be 0 behind its ReLU
        assert not torch.allclose(maps.logits, expected)
        if head == "ca-stream":
            assert torch.allclose(maps.raw["raw-attention"].sum(dim=(1, 2)), torch.ones(2), atol=1e-5)
            assert name not in PLACES or [stage.name for stage in clf.attachment.stages] == PLACES[name]
    assert torch.equal(plain.predict(pictures), expected)  # other heads on the same network leave it as it was


@pytest.mark.parametrize("name", NETWORKS)
def test_br_npa_is_grafted_onto_one_linear_layer_and_says_so_where_it_cannot(name: str) -> None:
    network = networks.seeded(NETWORKS[name])
    if name in GRAFTED:
        clf = xattn.attach(network, head="br-npa", input_size=96, resize=96)  # a warning would be an error here
        assert clf.grafted
        assert clf.trained
    else:
        with pytest.warns(UserWarning, match="starts with a fresh classifier of 1000 classes: its own is not one linear layer"):
            clf = xattn.attach(network, head="br-npa", input_size=96, resize=96)
        assert not clf.trained


def test_a_grafted_br_npa_begins_at_the_mean_of_its_logits(images: Tensor) -> None:
    network = networks.small().double()
    clf = attached(network, "br-npa", input_size=32, resize=36)
    features = clf.features(images.double())["3"]
    vectors, _ = representatives(features, 3)
    assert torch.allclose(clf.predict(images.double()), network[-1](vectors).mean(dim=1))


def test_a_fresh_ca_stream_without_a_query_and_with_an_identity_is_the_network(images: Tensor) -> None:  # known answer 9
    clf = attached(networks.small().double(), "ca-stream:start=2,bias=false", input_size=32, resize=36)
    with torch.no_grad():
        clf.head.query.zero_()
        clf.head.project[0].weight.copy_(torch.eye(16))
    plain = attached(clf.network, "gap", input_size=32, resize=36)
    assert torch.allclose(clf.predict(images.double()), plain.predict(images.double()))


def test_cams_follow_the_logit_through_classifier_last_projection_and_last_attention(images: Tensor) -> None:
    clf = attached(networks.small().double(), "ca-stream", input_size=32, resize=36)
    pictures = images[:2].double()
    maps = xattn.explain(clf, pictures, methods=["grad-cam"], untrained=True)
    features = {
        stage.name: found.detach()
        for stage, found in zip(clf.attachment.stages, clf.features(pictures, ["1", "2", "3"]).values(), strict=True)
    }
    last = features["3"].requires_grad_()
    vector = clf.head([features["1"], features["2"], last])
    logits = clf.network[-1](vector)
    (gradient,) = torch.autograd.grad(logits.gather(1, maps.targets[:, None]).sum(), last)
    by_hand = (gradient.mean(dim=(2, 3), keepdim=True) * last).sum(dim=1).relu()
    assert torch.allclose(maps.logits, logits)
    assert torch.allclose(maps.raw["grad-cam"], by_hand.detach())
    guided = xattn.explain(clf, pictures, methods=["grad-cam", "guided-backprop"], untrained=True)  # the whole graph, not the tail's
    assert torch.allclose(guided.raw["grad-cam"], maps.raw["grad-cam"])


def test_raw_attention_is_had_at_any_stage_that_the_head_attends_to(images: Tensor) -> None:
    clf = attached(networks.small().double(), "ca-stream", input_size=32, resize=36)
    pictures = images[:2].double()
    features = list(clf.features(pictures, ["1", "2", "3"]).values())
    query = clf.head.start(2).output
    for number, stage in enumerate(clf.attachment.stages):
        found = xattn.explain(clf, pictures, ["raw-attention", "raw-attention:attention=logits"], stage=stage.name, untrained=True)
        query, attention, scores = clf.head.step(number, query, features[number])
        assert torch.allclose(found.raw["raw-attention"], attention.detach())
        assert torch.allclose(found.raw["raw-attention:attention=logits"], scores.detach())
        assert torch.allclose(scores.flatten(1).softmax(dim=1), attention.flatten(1))


def test_raw_attention_of_br_npa_is_its_saliency_and_gap_has_none(images: Tensor) -> None:
    clf = attached(networks.small().double(), "br-npa", input_size=32, resize=36)
    features = clf.features(images.double())["3"]
    _, weights = representatives(features, 3)
    found = xattn.explain(clf, images.double(), ["raw-attention"])
    assert torch.allclose(found.raw["raw-attention"], weights.mean(dim=1) * features.norm(dim=1))
    with pytest.raises(UnsupportedError, match=r"br-npa has no attention at stage '2'. Choose one of: 3"):
        xattn.explain(clf, images.double(), ["raw-attention"], stage="2")
    with pytest.raises(UnsupportedError, match="gap has none"):
        xattn.explain(attached(networks.small(), "gap", input_size=32, resize=36), images, ["raw-attention"])


def test_a_head_that_was_never_trained_is_refused_unless_asked_for(images: Tensor) -> None:
    clf = attached(networks.small(), "ca-stream", input_size=32, resize=36)
    with pytest.raises(UnsupportedError, match=r"never trained: .* untrained=True"):
        xattn.explain(clf, images, ["grad-cam"])
    xattn.explain(clf, images, ["grad-cam"], untrained=True)
    clf.trained = True  # after a loop of one's own
    xattn.explain(clf, images, ["grad-cam"])


def test_a_query_per_class_is_that_of_the_network_s_prediction_and_in_training_the_label_s(images: Tensor) -> None:
    clf = attached(networks.small().double(), "ca-stream:per_class=true", input_size=32, resize=36)
    pictures = images.double()
    with torch.no_grad():  # so far apart that each attends to places of its own
        clf.head.query.copy_(100 * torch.randn(clf.head.query.shape, generator=torch.Generator().manual_seed(0)))
    predicted = attached(clf.network, "gap", input_size=32, resize=36).predict(pictures).argmax(dim=1)
    with torch.no_grad():
        assert torch.equal(clf(pictures), clf(pictures, predicted))
        others = (predicted + 1) % 5
        assert not torch.allclose(clf(pictures, others), clf(pictures), rtol=0, atol=1e-9)  # the least of 400 draws of weights was 6e-7
        assert torch.allclose(clf(pictures, others)[:1], clf(pictures[:1], others[:1]))


def test_cams_and_attention_of_a_query_per_class_are_those_of_its_own_forward(images: Tensor) -> None:
    clf = attached(networks.small().double(), "ca-stream:per_class=true", input_size=32, resize=36)
    single = attached(clf.network, "ca-stream", input_size=32, resize=36)
    pictures = images[:2].double()
    predicted = attached(clf.network, "gap", input_size=32, resize=36).predict(pictures).argmax(dim=1)
    for i in range(2):
        weights = {**clf.head.state_dict(), "query": clf.head.query[predicted[i] : predicted[i] + 1].detach()}
        single.head.load_state_dict(weights)
        for methods in (["grad-cam", "raw-attention"], ["grad-cam", "guided-backprop"], ["score-cam"]):
            found = xattn.explain(clf, pictures[i : i + 1], methods, untrained=True)
            expected = xattn.explain(single, pictures[i : i + 1], methods, target=found.targets, untrained=True)
            for method in methods:
                if method != "score-cam":  # which asks anew for each masked image
                    assert torch.allclose(found.raw[method], expected.raw[method])
    with pytest.raises(UnsupportedError, match="runs the network twice"):
        xattn.explain(clf, pictures, ["captum:LayerGradCam"], untrained=True)


class InPlace(nn.Module):
    """Blocks that begin by rectifying what they are given, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2, padding=1))
        self.last = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, stride=2, padding=1))
        self.end = nn.ReLU(inplace=True)
        self.linear = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.end(self.last(self.block(self.stem(x)))).mean(dim=(2, 3)))


@pytest.mark.parametrize("head", ["ca-stream", "br-npa", "b-cnn"])
def test_what_works_in_place_behind_a_stage_does_not_disturb_the_head(head: str, images: Tensor) -> None:
    clf = attached(InPlace(), head, input_size=32, resize=36)
    nn.functional.cross_entropy(clf(images), torch.zeros(7, dtype=torch.long)).backward()
    assert all(torch.isfinite(p.grad).all() for p in clf.head.parameters() if p.grad is not None)
    for stage in clf.attachment.stages:
        assert xattn.explain(clf, images, ["grad-cam"], stage=stage.name, untrained=True).raw["grad-cam"].isfinite().all()


def test_a_scaled_pooling_is_no_linear_layer_on_the_pooled_vector() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = networks.small()[:4]
            self.linear = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(0.5 * self.body(x).mean(dim=(2, 3)))

    with pytest.warns(UserWarning, match="not one linear layer on the pooled vector"):
        assert not xattn.attach(networks.seeded(Scaled), head="br-npa", input_size=32, resize=36).grafted


def test_another_number_of_classes_needs_a_classifier_of_its_own() -> None:
    with pytest.raises(InputError, match=r"ca-stream keeps the classifier of it, which has 5 classes; 3 were asked for"):
        attached(networks.small(), "ca-stream", classes=3, input_size=32, resize=36, name="it")
    with pytest.warns(UserWarning, match="fresh classifier of 3 classes: its own has 5"):
        clf = xattn.attach(networks.small(), head="br-npa", classes=3, input_size=32, resize=36)
    assert clf.predict(networks.pictures(2)).shape == (2, 3)
    with pytest.raises(SettingError, match=r"starts at one of 3 stages of .* \(1, 2, 3\)"):
        attached(networks.small(), "ca-stream:start=3", input_size=32, resize=36)


@pytest.mark.parametrize("head", ["br-npa:selection=random", "br-npa", "b-cnn", "ca-stream"])
def test_logits_of_an_image_do_not_depend_on_its_batch(head: str, images: Tensor) -> None:
    clf = attached(networks.small().double(), head, input_size=32, resize=36)
    whole = clf.predict(images.double())
    for i in (0, 4):
        assert torch.allclose(clf.predict(images[i : i + 1].double())[0], whole[i], atol=1e-10)


@pytest.mark.parametrize("head", ["br-npa", "b-cnn", "ca-stream"])
def test_a_head_runs_compiled_under_autocast_copied_and_in_half_precision(head: str, images: Tensor) -> None:
    torch.manual_seed(0)
    clf = attached(networks.small(), head, input_size=32, resize=36)
    expected = clf.predict(images)
    torch._dynamo.reset()
    compiled = torch.compile(clf, backend="aot_eager")
    with torch.no_grad():
        for size in (7, 7, 3):
            assert torch.allclose(compiled(images[:size]), expected[:size], atol=1e-5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.allclose(clf(images).float(), expected, atol=0.1)
    assert torch.equal(copy.deepcopy(clf).predict(images), expected)
    half = clf.to(torch.bfloat16)
    assert torch.isfinite(half.predict(images)).all()
    assert torch.isfinite(xattn.explain(half, images, ["raw-attention", "grad-cam"], untrained=True).raw["grad-cam"]).all()


@pytest.mark.parametrize("head", ["br-npa", "b-cnn", "ca-stream"])
def test_a_head_trains_in_a_loop_of_one_s_own_and_under_ddp(head: str, images: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    clf = attached(networks.small(), head, input_size=32, resize=36)
    clf.network.requires_grad_(False)
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = DistributedDataParallel(clf)
        optimiser = torch.optim.Adam(clf.head.parameters(), lr=0.02)
        losses = []
        for _ in range(12):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(parallel(images), labels)
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
    finally:
        torch.distributed.destroy_process_group()
    assert losses[-1] < losses[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("head", heads.entries)
def test_a_gpu_gives_the_cpu_s_answers_of_every_head(head: str, images: Tensor) -> None:
    clf = attached(networks.small().double(), head, input_size=32, resize=36)
    expected = clf.predict(images.double())
    assert torch.allclose(clf.cuda().predict(images.double().cuda()).cpu(), expected, atol=1e-8)


def transformer() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=8, num_heads=3, num_classes=5)


def test_ca_stream_on_a_vision_transformer_stands_in_the_place_of_the_class_token(images: Tensor) -> None:
    """Against the stream by hand, over the cells of four blocks' tokens, before the network's own classifier."""
    network = networks.seeded(transformer).double()
    clf = attached(network, "ca-stream", input_size=32)
    assert [stage.name for stage in clf.attachment.stages] == ["blocks.1", "blocks.3", "blocks.5", "norm"]
    pictures = images[:2].double()
    tokens = network.patch_embed(clf.normalise(pictures))
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], dim=1) + network.pos_embed
    read = []
    for number, block in enumerate(network.blocks):
        tokens = block(tokens)
        if number in (1, 3, 5):
            read.append(tokens[:, 1:])
    read.append(network.norm(tokens)[:, 1:])
    query = clf.head.query.expand(2, -1)
    for keys, project in zip(read, clf.head.project, strict=True):
        attention = (keys @ query[:, :, None] / 24**0.5).softmax(dim=1)
        query = project((attention * keys).sum(dim=1))
    assert torch.allclose(clf.predict(pictures), network.head(query), atol=1e-10)
    maps = xattn.explain(clf, pictures, ["raw-attention"], untrained=True)
    assert torch.allclose(maps.raw["raw-attention"].flatten(1), attention[:, :, 0].detach(), atol=1e-10)


def test_a_saved_head_reads_the_stages_that_its_file_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a file that names none, as they were written before: it holds a stream over the last stage."""
    (tmp_path / "vit.py").write_text("from tests.models.test_heads_on_networks import transformer\n")
    torch.save(networks.seeded(transformer).state_dict(), tmp_path / "vit.pth")
    options: dict[str, Any] = {"weights": tmp_path / "vit.pth", "input_size": 32, "device": "cpu"}
    pictures = networks.pictures(2)
    for start, stages in ((0, ["blocks.1", "blocks.3", "blocks.5", "norm"]), (3, ["norm"])):
        clf = xattn.load(f"{tmp_path / 'vit.py'}:transformer", head=f"ca-stream:start={start}", **options)
        file = str(tmp_path / f"{start}.safetensors")
        clf.save(file)
        assert read_header(file).stages == tuple(stages)
        monkeypatch.setattr("xattn.heads.ca_stream.GROUPS", 2)  # a later version may choose others
        again = xattn.load(file, device="cpu", trust_code=True)
        monkeypatch.undo()
        assert [stage.name for stage in again.attachment.stages] == stages
        assert torch.equal(again.predict(pictures), clf.predict(pictures))
    header, (_, head) = read_header(file), split_weights(file)
    checkpoints.save(file, replace(header, stages=(), head="ca-stream"), {}, head)
    again = xattn.load(file, device="cpu", trust_code=True)
    assert torch.equal(again.predict(pictures), clf.predict(pictures))
