"""Object-contextual representations against the formula in loops, and as classifiers of regions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import xattn
from xattn.errors import SettingError
from xattn.ocr import ObjectContext, OCRNetwork, OCRSettings, Regions, region_weights


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
