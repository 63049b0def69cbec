"""Training of streams with other alignments."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.training.conftest import fresh
from xattn.training import Recipe, fit

ALONE = Recipe(epochs=2, batch_size=8, lr=0.01, optimiser="sgd")


@pytest.mark.parametrize(
    ("spec", "untrained"),
    [
        ("deep,distribution=entmax15", "none"),
        ("generalised-kernel:random_features=8,distribution=sum", r"align\.\d\.projection"),
        ("location-based", "none"),
        ("feature-based", r"query|\w+\.[0-{before}]\..*"),  # it does not read the query, which brings the earlier stages to the last
    ],
)
def test_what_has_part_in_the_logits_is_trained_and_a_training_that_was_cut_off_ends_with_the_same_weights(
    spec: str, untrained: str, painted: Path, tmp_path: Path
) -> None:
    class Cut(Exception):
        pass

    def cut(epoch: int, accuracy: float) -> None:
        raise Cut

    head = f"ca-stream:align={spec}"
    whole, before = fresh(head), fresh(head).head.state_dict()
    fit(whole, painted, tmp_path / "whole.safetensors", recipe=ALONE, workers=0, progress=False)
    expected = whole.head.state_dict()
    pattern = untrained.replace("{before}", str(len(whole.head.project) - 2))
    assert {key for key in before if torch.equal(before[key], expected[key])} == {key for key in before if re.fullmatch(pattern, key)}
    with pytest.raises(Cut):
        fit(fresh(head), painted, tmp_path / "cut.safetensors", recipe=ALONE, workers=0, progress=False, on_epoch=cut)
    again = fresh(head)
    fit(again, painted, tmp_path / "cut.safetensors", recipe=ALONE, workers=0, progress=False)
    assert all(torch.equal(value, expected[key]) for key, value in again.head.state_dict().items())
