"""The authors' own code and ours on the same input: 1e-4, in the units that are printed (points of a percentage).

The values are `benchmarks/authors.py`'s, which runs the releases named in `values.json` by their commits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import resnet18

import xattn
from tests.authors import inputs
from xattn import metrics
from xattn.heads import AbMILP, AbMILPHead, EfficientProbing, EfficientProbingHead, SimPool, SimPoolHead, representatives
from xattn.metrics import perturbations

TOLERANCE = 1e-4
VALUES: dict[str, Any] = json.loads((Path(__file__).parent / "values.json").read_text(encoding="utf-8"))


def close(found: Tensor, theirs: Any) -> bool:
    return torch.allclose(found.detach().double().cpu(), torch.tensor(theirs, dtype=torch.float64), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def small() -> torch.nn.Module:
    return inputs.filled(inputs.Small()).requires_grad_(False)


def predict(network: torch.nn.Module):
    """Of pictures in pixel space, as `xattn.metrics` takes it."""
    return lambda images: network(inputs.normalised(images))


def test_ca_stream_on_a_resnet_18_gives_the_logits_and_scores_of_the_release() -> None:
    """Its weights are numbered in the order of its modules, which is that of a ResNet-18 with the stream behind it."""
    clf = xattn.attach(resnet18(num_classes=10), head="ca-stream", input_size=96, resize=96, mean=inputs.MEAN, std=inputs.STD)
    weights = released_weights()
    with torch.no_grad():
        clf.network.load_state_dict({key: value for key, value in weights.items() if key.split(".")[0] not in STREAM}, strict=False)
        clf.head.query.copy_(weights["cls_token"][0])
        for linear, name in zip(clf.head.project, STREAM[1:], strict=True):
            linear.weight.copy_(weights[f"{name}.to_out.1.weight"])
            linear.bias.copy_(weights[f"{name}.to_out.1.bias"])
    clf.trained = True
    theirs = VALUES["ca_stream"]["network"]
    images = inputs.pictures(2, 96)
    assert close(clf.predict(images), theirs["logits"])
    maps = xattn.explain(clf, images, ["raw-attention:attention=logits"])
    assert close(maps.raw["raw-attention:attention=logits"], theirs["scores"])


STREAM = ("cls_token", "base", "l1", "l2", "l3", "l4")


def released_weights() -> dict[str, Tensor]:
    """A network of the release's shape and order of modules, its weights filled by the formula."""

    class Attention(torch.nn.Module):
        def __init__(self, width: int, out: int) -> None:
            super().__init__()
            self.attend, self.dropout = torch.nn.Softmax(dim=-1), torch.nn.Dropout()
            self.to_out = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(width, out), torch.nn.Dropout())

    network = resnet18(num_classes=10)
    del network.avgpool  # which the release has not
    network.cls_token = torch.nn.Parameter(torch.empty(1, 1, 64))
    for name, width, out in (("base", 64, 64), ("l1", 64, 128), ("l2", 128, 256), ("l3", 256, 512), ("l4", 512, 512)):
        setattr(network, name, Attention(width, out))
    return inputs.filled(network).state_dict()


def test_average_drop_gain_and_increase_are_those_of_ca_stream(small: torch.nn.Module) -> None:
    given = predict(small), inputs.pictures(), inputs.masks(7), torch.tensor(inputs.TARGETS)
    for name in ("average-drop", "average-gain", "average-increase"):
        found = getattr(metrics, name.replace("-", "_"))(*given)
        assert close(found.mean(), VALUES["ca_stream"]["metrics"][name]), name


@pytest.mark.parametrize("name", ["insertion", "deletion"])
def test_insertion_and_deletion_are_those_of_ca_stream(name: str, small: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """The release ranks pixels by the mask as it is, ours by the mask rounded to 2⁻¹⁶."""
    given = predict(small), inputs.pictures(), inputs.masks(7), torch.tensor(inputs.TARGETS)
    rounded = getattr(metrics, name)(*given, fill=torch.tensor(inputs.MEAN))
    monkeypatch.setattr(perturbations, "LEVELS", 2**40)
    found = getattr(metrics, name)(*given, fill=torch.tensor(inputs.MEAN))
    assert close(found, VALUES["ca_stream"]["metrics"][name])
    assert 0 < float((rounded - found).abs().max()) < 0.02


@pytest.mark.parametrize("space", ["pixels", "normalised"])
@pytest.mark.parametrize("name", ["deletion", "insertion", "deletion-correlation", "insertion-correlation"])
def test_the_gomez_protocol_is_the_release_s_in_either_space(name: str, space: str, small: torch.nn.Module) -> None:
    """Its demo feeds normalised pictures, whose black is the mean colour: `fill=mean`."""
    maps = inputs.raw_maps(14)
    clf = xattn.attach(inputs.filled(inputs.Small()), input_size=inputs.SIDE, resize=inputs.SIDE, mean=inputs.MEAN, std=inputs.STD)
    spec = f"{name}:protocol=gomez{',fill=mean' if space == 'normalised' else ''}"
    instance = metrics.metrics.create(spec).instance
    responses = metrics.evaluate_perturbations(
        clf.predict,
        inputs.pictures(),
        torch.tensor(inputs.TARGETS),
        {"": maps},
        instance.perturbations,
        mean=clf.mean,
    )[""]
    found = instance.of_curve(responses.curve(instance.curve))
    assert close(found, VALUES["metrics"]["values"][f"{name}, {space}"])


def test_average_drop_in_deletion_with_bicubic_masks_is_the_release_s(small: torch.nn.Module) -> None:
    found = metrics.average_drop_deletion(
        predict(small), inputs.pictures(), inputs.raw_maps(4), torch.tensor(inputs.TARGETS), upsample="bicubic"
    )
    assert close(found, VALUES["metrics"]["values"]["average-drop-deletion"])


def test_br_npa_s_vectors_maps_and_sparsity_are_the_release_s() -> None:
    features, theirs = inputs.features(), VALUES["br_npa"]["head"]
    vectors, maps = representatives(features, 3)
    assert close(vectors, theirs["vectors"])
    assert close(maps, theirs["maps"])
    norms = features.norm(dim=1)
    weighted = maps * (norms / norms.amax(dim=(1, 2), keepdim=True))[:, None]
    found = metrics.sparsity(weighted, definition="released")
    assert close(1 / (1 / found).mean(), theirs["sparsity"])


@pytest.mark.parametrize("gamma", [None, 1.25, 2.0])
def test_simpool_s_vectors_are_the_release_s(gamma: float | None) -> None:
    head = SimPoolHead(12, SimPool(gamma=gamma))
    inputs.fill([head.norm.weight, head.norm.bias, head.query.weight, head.key.weight])
    assert close(head(inputs.features()), VALUES["simpool"]["vectors"][f"gamma={str(gamma).lower()}"])


@pytest.mark.parametrize("d_out", [1, 3])
def test_efficient_probing_s_logits_are_the_release_s(d_out: int) -> None:
    head = EfficientProbingHead(12, 5, EfficientProbing(queries=4, d_out=d_out))
    inputs.fill([head.queries, head.value.weight, head.linear.weight, head.linear.bias])
    for mode in ("train", "eval"):  # eval after one step of training
        found = head.train(mode == "train")(inputs.features())
        assert close(found, VALUES["ep"]["logits"][f"d_out={d_out}, {mode}"])


def test_abmilp_s_vectors_and_maps_are_those_of_the_ep_release() -> None:
    head = AbMILPHead(12, 12, AbMILP(hidden=12, gated=False))
    inputs.fill([head.hidden.weight, head.hidden.bias, head.score.weight, head.score.bias])
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(12))
        head.linear.bias.zero_()
    found, theirs = head.attend(inputs.features(), "here"), VALUES["ep"]["abmilp"]
    assert close(found.output, theirs["vectors"])
    assert close(found.attention["here"][:, 0].flatten(1), theirs["maps"])


def test_gated_abmilp_s_probability_and_map_are_those_of_ilse_s_release() -> None:
    head = AbMILPHead(500, 1)
    gate, score = head.gate, head.score
    assert gate is not None
    inputs.fill([head.hidden.weight, head.hidden.bias, gate.weight, gate.bias, score.weight, score.bias])
    inputs.fill(head.linear.parameters())
    found, theirs = head.attend(inputs.features(500, count=1), "here"), VALUES["abmilp"]["gated"]
    assert close(found.output.sigmoid(), theirs["probability"])
    assert close(found.attention["here"].flatten(), theirs["map"])


def test_score_cam_is_the_release_s() -> None:
    """It masks what the network takes, which for a network that takes pixels is what ours masks."""
    clf = xattn.attach(inputs.filled(inputs.Small()), input_size=inputs.SIDE, resize=inputs.SIDE, mean=(0, 0, 0), std=(1, 1, 1))
    maps = xattn.explain(clf, inputs.pictures(2), ["score-cam"], target=list(inputs.TARGETS[:2]))
    theirs = torch.tensor(VALUES["score_cam"]["maps"]["masks"])
    assert torch.allclose(rescaled(maps.raw["score-cam"], inputs.SIDE)[:, ::8, ::8], theirs, atol=TOLERANCE)


def rescaled(raw: Tensor, size: int) -> Tensor:
    """As theirs: upsampled, then min-maxed."""
    found = torch.nn.functional.interpolate(raw[:, None], size=(size, size), mode="bilinear")[:, 0]
    low, high = found.amin(dim=(1, 2), keepdim=True), found.amax(dim=(1, 2), keepdim=True)
    return (found - low) / (high - low)
