"""Relation-aware attention: its gates against the formula written out, and networks that have it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.birds.network import SmallResNet
from xattn.errors import InputError, NameUnknownError, SettingError, UnsupportedError, WeightsError
from xattn.models.rga_source import with_relations
from xattn.rga import RelationAttention, RelationAware, RelationAwareSettings, parsed

NAME = "rga:birds:gap:height=16,width=24"


def embedded(part: nn.Module, column: list[float]) -> list[float]:
    """A linear map, batch normalisation in eval mode and, unless it is the last, ReLU."""
    linear, norm = part[0], part[1]
    found = []
    means, variances, scales, shifts = (values.tolist() for values in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    for k, row in enumerate(linear.weight[:, :, 0].tolist()):
        value = sum(w * x for w, x in zip(row, column, strict=True))
        value = (value - means[k]) / math.sqrt(variances[k] + norm.eps) * scales[k] + shifts[k]
        found.append(max(value, 0.0) if len(part) == 3 else value)
    return found


def gates_written_out(attention: RelationAttention, nodes: Tensor) -> list[float]:
    """The gates of one image's nodes `(d, n)`, relation by relation."""
    columns = nodes.T.tolist()
    theta, phi, own = ([embedded(part, column) for column in columns] for part in (attention.theta, attention.phi, attention.own))
    relations = [[sum(a * b for a, b in zip(one, other, strict=True)) for other in phi] for one in theta]
    found = []
    for i in range(len(columns)):
        row, column = relations[i], [relations[j][i] for j in range(len(columns))]
        joint = [sum(own[i]) / len(own[i]), *embedded(attention.relations, row + column)]
        (logit,) = embedded(attention.gate[1:], embedded(attention.gate[0], joint))
        found.append(1 / (1 + math.exp(-logit)))
    return found


def seeded(make) -> nn.Module:
    """In float64 and eval mode, with statistics and scales of batch normalisation that are not trivial."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make().double().eval()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d):
                part.running_mean.uniform_(-0.1, 0.1)
                part.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(part.weight, 0.5, 1.5)
                nn.init.uniform_(part.bias, -0.3, 0.5)
    return module


def test_the_gates_are_the_formula_written_out() -> None:
    attention = seeded(lambda: RelationAttention(count=20, width=12, reduction=4))
    nodes = torch.randn(2, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = attention(nodes).detach()
    assert found.shape == (2, 1, 20)
    for i in range(2):
        expected = gates_written_out(attention, nodes[i])
        assert found[i, 0].tolist() == pytest.approx(expected, abs=1e-12)
        assert max(expected) - min(expected) > 0.01


def test_positions_are_gated_first_and_channels_of_what_they_leave_then() -> None:
    module = seeded(lambda: RelationAware(6, (3, 4), 2))
    features = torch.rand(2, 6, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = module(features).detach()
    for i in range(2):
        positions = torch.tensor(gates_written_out(module.spatial, features[i].flatten(1)), dtype=torch.float64).view(1, 3, 4)
        left = features[i] * positions
        channels = torch.tensor(gates_written_out(module.channel, left.flatten(1).T), dtype=torch.float64)
        torch.testing.assert_close(found[i], channels[:, None, None] * left, rtol=1e-10, atol=1e-12)


def test_gates_of_logit_zero_are_one_half_everywhere() -> None:
    module = seeded(lambda: RelationAware(6, (3, 4)))
    for attention in (module.spatial, module.channel):
        nn.init.zeros_(attention.gate[-1].weight)
        nn.init.zeros_(attention.gate[-1].bias)
    features = torch.rand(2, 6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(module(features), features / 4)


def test_every_weight_gets_a_gradient_and_so_does_the_image() -> None:
    module = seeded(lambda: RelationAware(16, (4, 4), 2)).train()
    features = torch.rand(4, 16, 4, 4, dtype=torch.float64, requires_grad=True)
    module(features).square().sum().backward()
    assert bool(features.grad.abs().sum(dim=1).gt(0).all())
    dead = [name for name, weight in module.named_parameters() if weight.grad is None or not bool(weight.grad.any())]
    assert not dead


def test_a_map_of_another_size_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match=r"each of 3 × 4 positions; got a map of 4 × 4: .*height=…,width=…"):
        RelationAware(6, (3, 4))(torch.rand(1, 6, 4, 4))
    with pytest.raises(InputError, match=r"16 × 24 positions; got a map of 32 × 32"):
        xattn.load(NAME, input_size=32, device="cpu")


def test_strides_are_taken_out_before_the_gates_are_put_on(tmp_path: Path) -> None:
    clf = xattn.load(NAME, classes=3, high_res=["layer3", "layer4"], device="cpu")
    sizes = [clf.network.get_submodule(f"layer{number}.relations").size for number in range(1, 5)]
    assert sizes == [(16, 24), (8, 12), (8, 12), (8, 12)]
    images, found = (
        networks.pictures(2, size=24)[:, :, :16],
        xattn.load("birds:gap", high_res=["layer3", "layer4"], input_size=24, device="cpu"),
    )
    before = found.features(images, ["layer1"])["layer1"]
    torch.testing.assert_close(clf.features(images, ["layer1.features"])["layer1.features"], before)  # with the backbone's weights
    clf.trained = True
    clf.save(str(tmp_path / "rga.safetensors"))
    again = xattn.load(str(tmp_path / "rga.safetensors"), device="cpu")
    assert torch.equal(again.predict(images), clf.predict(images))
    assert again.source is not None
    assert again.source.high_res == ("layer3", "layer4")
    torch.save(clf.network.state_dict(), tmp_path / "rga.pth")
    whole = xattn.load(NAME, weights=str(tmp_path / "rga.pth"), high_res=["layer3", "layer4"], device="cpu")
    assert torch.equal(whole.predict(images), clf.predict(images))
    with pytest.raises(WeightsError, match="shapes differ"):
        xattn.load(NAME, weights=str(tmp_path / "rga.pth"), device="cpu")
    with pytest.raises(NameUnknownError, match="layer9"):
        xattn.load(NAME, high_res=["layer9"], device="cpu")


def test_raw_attention_is_the_gate_times_the_norm_at_each_stage(folder: Path, tmp_path: Path) -> None:
    network = networks.seeded(lambda: SmallResNet(5, 4)).double()
    with_relations(network, ["layer1", "layer2", "layer3", "layer4"], (16, 24))
    clf = xattn.attach(network, input_size=(16, 24), resize=(16, 24), name="net")
    images = networks.pictures(2, size=24)[:, :, :16].double()
    assert [stage.name for stage in clf.stages][-4:] == ["layer1", "layer2", "layer3", "layer4"]
    for number, size in enumerate(((16, 24), (8, 12), (4, 6), (2, 3)), start=1):
        layer = f"layer{number}"
        features = clf.features(images, [layer, f"{layer}.features"])
        before = features[f"{layer}.features"].detach()
        gates = network.get_submodule(f"{layer}.relations").spatial(before.flatten(2)).view(2, *size).detach()
        assert bool(((gates > 0) & (gates < 1)).all())
        for stage in (layer, f"{layer}.features"):
            found = xattn.explain(clf, images, ["raw-attention"], stage=stage)
            torch.testing.assert_close(found.raw["raw-attention"], gates * features[stage].detach().norm(dim=1))
    for stage, spec, said in (
        ("conv1", "raw-attention", r"no attention at stage 'conv1'. Choose one of: layer1, layer2"),
        ("layer4", "raw-attention:rank=1", "without ranks"),
        ("layer4", "raw-attention:attention=logits", "kept scores"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            xattn.explain(clf, images, [spec], stage=stage)
        with pytest.raises(UnsupportedError, match=f"{said}|its attention is at stages layer1|its maps have no ranks"):
            xattn.Study([clf], [spec], ["sparsity"], folder, tmp_path / "no", stage=stage, progress=False)


def test_a_name_gives_a_network_that_is_trained_further_saved_and_loaded_as_it_is(tmp_path: Path) -> None:
    clf = xattn.load(NAME, classes=3, labels=["a", "b", "c"], device="cpu")
    assert (clf.name, clf.class_count, clf.input_size, clf.preprocessing.resize) == (NAME, 3, (16, 24), (16, 24))
    assert not clf.trained
    own = xattn.load("birds:gap", device="cpu").network.state_dict()
    for key, value in clf.network.state_dict().items():  # the backbone's weights are where they were
        if ".relations." not in key and not key.startswith("fc."):
            assert torch.equal(value, own[key.replace(".features.", ".")]), key
    images = networks.pictures(2, size=24)[:, :, :16]
    with pytest.raises(UnsupportedError, match="never trained"):
        xattn.explain(clf, images, ["raw-attention"])
    clf.trained = True
    clf.save(str(tmp_path / "rga.safetensors"))
    again = xattn.load(str(tmp_path / "rga.safetensors"), device="cpu")
    assert again.trained
    assert (again.labels, again.class_count, again.input_size) == (("a", "b", "c"), 3, (16, 24))
    assert torch.equal(again.predict(images), clf.predict(images))
    torch.save(clf.network.state_dict(), tmp_path / "rga.pth")
    with pytest.raises(InputError, match="the weights are for 3 classes; got classes=4"):
        xattn.load(NAME, weights=str(tmp_path / "rga.pth"), classes=4, device="cpu")


def test_resnets_of_torchvision_and_timm_have_it_after_each_layer() -> None:
    timm = pytest.importorskip("timm")
    from torchvision import models

    for network, channels in ((models.resnet18(weights=None), 512), (timm.create_model("resnet26", pretrained=False), 2048)):
        network.eval()
        with_relations(network, [f"layer{number}" for number in range(1, 5)], (64, 32))
        assert [network.get_submodule(f"layer{number}.relations").size for number in range(1, 5)] == [(16, 8), (8, 4), (4, 2), (2, 1)]
        assert network.layer4.relations.spatial.theta[0].weight.shape == (channels // 8, channels, 1)
        with torch.no_grad():
            assert network(torch.rand(1, 3, 64, 32)).shape == (1, 1000)


def test_names_that_do_not_fit_are_told() -> None:
    assert parsed("rga:timm:resnet26") == ("timm:resnet26", RelationAwareSettings())
    for name, error, said in (
        ("rga:", InputError, "names no backbone"),
        ("rga:hf:google/vit", InputError, "not one of them"),
        ("rga:birds:vit", UnsupportedError, "stands after layer1, layer2, … of a ResNet"),
        ("rga:birds:gap:reduction=0", SettingError, "reduction are 1 or more"),
        ("rga:birds:gap:depth=2", NameUnknownError, "depth"),
    ):
        with pytest.raises(error, match=said):
            xattn.load(name, device="cpu")
