"""Tokens that are dropped, in the benchmark: they are those of the zeroed patches, and no others."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import VisionTransformer


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("tokens_dropped")


def test_the_patches_of_the_highest_mask_are_seen_and_the_others_zero(bench: Any) -> None:
    maps = torch.arange(16.0).view(1, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2)
    seen = bench.masks_of(maps, 0.25)
    assert seen.nonzero()[:, 1].tolist() == [12, 13, 14, 15]
    found = bench.masked(torch.ones(1, 3, 64, 64), seen)
    assert found[:, :, 48:].min() == 1
    assert found[:, :, :48].max() == 0


def test_dropped_tokens_are_those_that_are_not_seen_and_no_others_change(bench: Any) -> None:
    torch.manual_seed(0)
    network = VisionTransformer(64, 16, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10).eval()
    torch.nn.init.normal_(network.heads[0].weight)
    images, seen = torch.rand(2, 3, 64, 64), torch.tensor([[True] * 8 + [False] * 8, [False, True] * 8])
    plain = network(images)
    with bench.dropping(network, torch.ones_like(seen)):
        assert torch.allclose(network(images), plain, atol=1e-6)
    with bench.dropping(network, seen):
        found = network(images)
    other = images * 1.0
    other[0, :, 32:] = torch.rand(3, 32, 64)  # only where nothing is seen
    with bench.dropping(network, seen):
        assert torch.allclose(network(other), found, atol=1e-6)
    assert not torch.allclose(network(bench.masked(images, seen)), found, atol=1e-3)  # a zeroed patch still is a token
    assert torch.allclose(network(images), plain, atol=1e-6)
