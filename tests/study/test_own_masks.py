"""Masks of a user's own in the tables of the library."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

import xattn
from xattn.errors import InputError, UnsupportedError
from xattn.metrics import average_drop, insertion, sparsity
from xattn.metrics.tables import comparison
from xattn.models import Classifier

METRICS = ["average-drop", "insertion", "sparsity"]


def test_own_masks_have_the_values_of_the_functions_and_stand_in_a_table_beside_ours(tiny: Classifier, images: Tensor) -> None:
    masks = torch.rand(len(images), 32, 32, generator=torch.Generator().manual_seed(0))
    masks[0] = 0
    rows = xattn.evaluate(tiny, images, {"mine": masks}, METRICS, target=3, batch_size=3, progress=False)
    values = {metric: rows.loc[rows["metric"] == metric, "value"].to_list() for metric in METRICS}
    targets = torch.full((len(images),), 3)
    assert values["average-drop"] == pytest.approx(average_drop(tiny.predict, images, masks, targets).tolist())
    assert values["insertion"] == pytest.approx(insertion(tiny.predict, images, masks, targets, fill=tiny.mean).tolist(), abs=1e-3)
    assert values["sparsity"] == pytest.approx(sparsity(masks).tolist(), nan_ok=True)
    assert math.isnan(values["sparsity"][0])
    assert rows.loc[rows["metric"] == "sparsity", "degenerate"].tolist() == [True] + [False] * (len(images) - 1)
    ours = xattn.evaluate(tiny, images, xattn.explain(tiny, images, ["grad-cam"], target=3, progress=False), METRICS)
    table = comparison(pd.concat([ours, rows]), against="mine")
    assert table.frame["method"].tolist() == ["grad-cam", "mine"]
    assert table.frame["n"].tolist() == [len(images)] * 2
    assert 0 <= table.frame["average-drop p"][0] <= 1


def test_own_masks_of_files_are_paired_with_the_maps_of_these_files(tiny: Classifier, folder: Path) -> None:
    maps = xattn.explain(tiny, folder, ["grad-cam", "random"], progress=False)
    rows = xattn.evaluate(tiny, maps.images, maps, ["sparsity"], progress=False)
    mine = xattn.evaluate(tiny, folder, {"mine": 1 - maps["random"]}, ["sparsity"], progress=False)
    assert set(mine["image"]) == set(rows["image"]) == set(maps.names)
    found = comparison(pd.concat([rows, mine]), against="random")
    assert 0 <= found.frame.set_index("method")["sparsity p"]["mine"] <= 1
    assert not any("different images" in note for note in found.notes)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "masks by name, {'mine': masks}; got dict"),
        (torch.zeros(7, 32, 32), "got Tensor"),
        ({"mine": torch.zeros(7, 8, 8)}, r"masks are tensors \(7, 32, 32\).*got \(7, 8, 8\) for 'mine'"),
        ({"mine": [[0.0]]}, "'mine' are a tensor, or a NumPy array; got list"),
        ({"mine": torch.full((7, 32, 32), 2.0)}, r"'mine' are not all in \[0, 1\]"),
        ({"mine": torch.full((7, 32, 32), math.nan)}, "'mine' are finite numbers; those of 7 of 7 images hold NaN"),
    ],
)
def test_what_is_no_mask_is_refused(tiny: Classifier, images: Tensor, masks: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        xattn.evaluate(tiny, images, masks, METRICS)  # type: ignore[arg-type]  # wrong on purpose


def test_metrics_that_explain_again_are_refused_for_masks(tiny: Classifier, images: Tensor) -> None:
    with pytest.raises(UnsupportedError, match="coherency explains images again"):
        xattn.evaluate(tiny, images, {"mine": torch.rand(7, 32, 32)}, ["coherency"])
