"""A map that shows nothing says why, in the row and in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests import networks
from xattn.explainers.reasons import NEGATIVE, SIGNED


class Blank(nn.Module):
    """Positive features, and a classifier that makes something of them."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 2)
        self.end = end

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self, self.body(self.stem(images).relu()).relu())


def against(net: nn.Module, features: Tensor) -> Tensor:
    return -features.mean((2, 3)) @ torch.ones(8, 2)


def half_against(net: nn.Module, features: Tensor) -> Tensor:
    weights = torch.tensor([0.001, *[-1.0] * 7])
    return (features.mean((2, 3)) * weights).sum(1, keepdim=True).expand(-1, 2) * torch.tensor([1.0, 1.1])


def saturated(net: nn.Module, features: Tensor) -> Tensor:
    return (1e4 * net.fc(features.mean((2, 3)))).softmax(1)


def clamped(net: nn.Module, features: Tensor) -> Tensor:
    z = net.fc(features.mean((2, 3)))
    return torch.stack([z[:, 0].clamp(max=-5e3) + 9e3, z[:, 1]], dim=1)


def independent(net: nn.Module, features: Tensor) -> Tensor:
    return net.fc(0 * features.mean((2, 3)) + 1)


KINDS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "no channel weight is positive": (against, "explain the class that is predicted"),
    "the weighted sum of the features is nowhere positive": (half_against, "explain a contrast"),
    "the probability is saturated, and its gradient zero": (saturated, "return logits"),
    "the gradient of the score is zero": (clamped, "Explain another target"),
    "the output does not depend on the stage": (independent, "Give an earlier stage"),
}


@pytest.mark.parametrize("reason", KINDS)
def test_a_blank_map_says_why_and_what_to_try(reason: str, caplog: pytest.LogCaptureFixture) -> None:
    end, advice = KINDS[reason]
    clf = xattn.attach(networks.seeded(lambda: Blank(end)), input_size=32, resize=32)
    images = networks.pictures(3)
    with caplog.at_level(logging.WARNING, "xattn"):
        maps = xattn.explain(clf, images, ["grad-cam", "random"], target=0, batch_size=2)
    assert maps.degenerate["grad-cam"].all()
    hint = SIGNED if reason in NEGATIVE else ""
    assert maps.reasons == {"grad-cam": (reason + hint,) * 3, "random": (None,) * 3}
    lines = [record.message for record in caplog.records if "shows nothing" in record.message]
    assert len(lines) == 1
    assert f"the map of 0 by grad-cam shows nothing: {reason}{hint}." in lines[0]
    assert advice in lines[0]
    rows = xattn.evaluate(clf, images, maps, ["average-drop"])
    assert rows["reason"].fillna("").to_list() == [reason + hint, ""] * 3


def test_blank_features_and_a_single_cell_are_named() -> None:
    clf = xattn.attach(networks.small(), input_size=32, resize=32)
    flat = torch.full((1, 3, 32, 32), 0.5)
    with torch.no_grad():
        clf.network[2][0].weight.zero_()
        clf.network[2][0].bias.fill_(1.0)
        clf.network[2][1].reset_running_stats()
    maps = xattn.explain(clf, flat, ["activation-map", "grad-cam"], stage="2")
    assert set(maps.reasons.values()) == {("the features are the same everywhere",)}
    with torch.no_grad():
        clf.network[2][0].bias.fill_(-1.0)
    maps = xattn.explain(clf, flat, ["grad-cam", "score-cam"], stage="2")
    assert set(maps.reasons.values()) == {("the features are zero everywhere",)}
    assert xattn.explain(clf, flat, ["grad-cam"], stage="4").reasons["grad-cam"] == ("the stage has a single cell",)


def test_a_map_that_shows_something_needs_no_reason_and_a_run_keeps_them(tmp_path: Path) -> None:
    clf = xattn.attach(networks.seeded(lambda: Blank(against)), input_size=32, resize=32)
    images = torch.utils.data.TensorDataset(networks.pictures(2), torch.tensor([0, 1]))
    study = xattn.Study([clf], ["grad-cam", "activation-map"], ["average-drop"], images, tmp_path / "run", progress=False)
    study.run()
    rows = study.scores()
    assert set(rows["reason"].dropna()) == {"no channel weight is positive; --signed (signed=True) shows what speaks against the target"}
    assert (rows["reason"].notna() == rows["degenerate"]).all()


def test_hires_cam_of_what_a_layer_norm_alone_reads_is_no_rounding_noise(caplog: pytest.LogCaptureFixture) -> None:
    clf = xattn.load("birds:vit", device="cpu")
    maps = xattn.explain(clf, networks.pictures(2, size=64), ["hires-cam", "hires-cam:signed=true", "grad-cam"])
    assert maps.degenerate["hires-cam"].all()
    assert not maps.raw["hires-cam:signed=true"].any()
    assert not maps.degenerate["grad-cam"].any()
    assert set(maps.reasons["hires-cam"]) == {"activation times gradient cancels over the channels"}
    assert "give the norm as the stage" in caplog.text
    behind = xattn.explain(clf, networks.pictures(2, size=64), ["hires-cam"], stage="encoder.layers.encoder_layer_5.ln_1")
    assert not behind.degenerate["hires-cam"].any()
