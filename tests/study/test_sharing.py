"""Several heads on one backbone: what they have in common is run once, and every value is as if each were alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from tests.study.test_study import study
from xattn.inference import Predictor, Tuning
from xattn.inference.context import shared_predictor
from xattn.inference.shared_backbone import SharedBackbone, backbone_groups
from xattn.models import Classifier

HEADS = ["gap", "ca-stream", "br-npa", "b-cnn"]
METHODS = ["score-cam", "activation-map", "grad-cam", "random", "centre"]
METRICS = ["average-drop", "average-gain", "insertion", "deletion", "deletion:protocol=gomez"]


def with_head(head: str, **more: object) -> Classifier:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return xattn.attach(networks.small(), input_size=32, resize=36, name="small", head=head, **more)


def values(run: Path) -> pd.Series:
    return pd.read_csv(run / "scores.csv").set_index(["image", "head", "method", "metric"])["value"].sort_index()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The images of each forward of changed images."""
    seen: list[int] = []
    run = Predictor.__call__

    def count(self: Predictor, images: Tensor) -> Tensor:
        seen.append(len(images))
        return run(self, images)

    monkeypatch.setattr(Predictor, "__call__", count)
    return seen


def test_one_forward_gives_the_logits_of_all_heads(images: Tensor) -> None:
    classifiers = [with_head(head) for head in HEADS]
    together = SharedBackbone(classifiers)
    found = together.split(Predictor(together)(images))
    for classifier, logits in zip(classifiers, found, strict=True):
        assert torch.allclose(logits, classifier.predict(images), atol=1e-5)


def test_two_streams_beside_each_other_each_keep_their_own_vector(images: Tensor) -> None:
    classifiers = [with_head("ca-stream"), with_head("ca-stream:projection=true"), with_head("gap")]
    together = SharedBackbone(classifiers)
    for classifier, logits in zip(classifiers, together.split(Predictor(together)(images)), strict=True):
        assert torch.allclose(logits, classifier.predict(images), atol=1e-5)


@pytest.mark.parametrize("target", ["predicted", 2])
def test_values_of_heads_together_are_those_of_heads_alone(folder: Path, tmp_path: Path, target: str | int) -> None:
    classifiers = [with_head(head) for head in HEADS]
    settings = {"methods": METHODS, "metrics": METRICS, "target": target, "untrained": True, "tune": "chunk=64"}
    study(classifiers, folder, tmp_path / "together", **settings).run()
    for classifier in classifiers:
        study([classifier], folder, tmp_path / classifier.head_name, **settings).run()
    alone = pd.concat([values(tmp_path / classifier.head_name) for classifier in classifiers]).sort_index()
    together = values(tmp_path / "together")
    assert len(together) == len(alone) == 4 * 10 * len(METHODS) * len(METRICS)
    assert (together - alone).abs().max() <= 0.01
    order = list(dict.fromkeys(pd.read_csv(tmp_path / "together" / "table.csv")["head"]))
    assert order == [classifier.head_name for classifier in classifiers]


def test_what_heads_have_in_common_is_run_once(folder: Path, tmp_path: Path, counted: list[int]) -> None:
    settings = {"methods": ["score-cam", "activation-map", "random"], "metrics": ["average-drop", "insertion"], "untrained": True}
    settings |= {"tune": "chunk=1", "target": 0, "batch_size": 10}
    heads = [with_head("gap"), with_head("ca-stream")]
    totals = []
    for number, some in enumerate((heads, heads[:1], heads[1:])):
        counted.clear()
        study(some, folder, tmp_path / str(number), **settings).run()
        totals.append(sum(counted))
    together, first, second = totals
    of_a_mask = 1 + 3  # kept, and three steps between the ends
    image_and_baseline = 2  # once more for each head, beside the masks that are its own
    probes = 10  # before the first batch, of each and of both together
    assert together <= first + 10 * (of_a_mask + 2 * image_and_baseline) + probes
    assert together < 0.7 * (first + second)


def test_heads_that_need_a_forward_of_their_own_and_other_weights_are_alone() -> None:
    other = xattn.attach(networks.seeded(networks.small, seed=3), input_size=32, resize=36, name="other")
    with torch.no_grad():
        next(other.network.parameters()).add_(1.0)
    found = backbone_groups([with_head("gap"), other, with_head("ca-stream"), with_head("ca-stream:per_class=true")])
    assert [[classifier.head_name for classifier in group] for group in found] == [
        ["gap", "ca-stream"],
        ["gap"],
        ["ca-stream:per_class=true"],
    ]


def test_networks_of_the_same_weights_with_other_strides_share_no_backbone() -> None:
    finer = networks.small()
    finer[3][0].stride = (1, 1)
    other = xattn.attach(finer, input_size=32, resize=36, name="finer", head="br-npa")
    assert [len(group) for group in backbone_groups([with_head("gap"), other])] == [1, 1]


def test_heads_of_a_network_whose_end_does_not_take_more_vectors_run_alone(folder: Path, tmp_path: Path) -> None:
    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.norm, self.last = networks.small()[:4], torch.nn.Identity(), torch.nn.Linear(16, 5)

        def forward(self, images: Tensor) -> Tensor:
            pooled = self.trunk(images).mean(dim=(2, 3))
            return self.last(self.norm(pooled) + torch.zeros(len(images), 1))

    network = networks.seeded(Residual)
    heads = [xattn.attach(network, input_size=32, resize=36, name="residual", head=head) for head in ("gap", "ca-stream")]
    assert len(backbone_groups(heads)) == 1
    assert shared_predictor(heads, Tuning(4), "exact") is None
    assert study(heads, folder, tmp_path / "run", methods=["random"], metrics=["average-drop"], untrained=True).run().failed == []


def test_adaptive_curves_of_heads_are_evaluated_apart(folder: Path, tmp_path: Path) -> None:
    classifiers = [with_head("gap"), with_head("ca-stream")]
    settings = {"methods": ["random"], "metrics": ["insertion:tolerance=1"], "untrained": True}
    study(classifiers, folder, tmp_path / "together", **settings).run()
    study(classifiers[1:], folder, tmp_path / "alone", **settings).run()
    together = values(tmp_path / "together").xs("ca-stream", level="head")
    assert (together - values(tmp_path / "alone").xs("ca-stream", level="head")).abs().max() <= 0.01
