"""The grid figure shows what was stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import xattn
from xattn.figures.canvas import overlay
from xattn.metrics import to_masks
from xattn.models import Classifier
from xattn.study.store import Store


def test_an_overlay_is_the_grey_picture_where_the_mask_is_0_and_bright_where_it_is_1() -> None:
    crop = np.full((3, 4, 4), 255, dtype=np.uint8)
    mask = np.zeros((4, 4), dtype=np.float32)
    mask[0, 0] = 1
    shown = overlay(crop, mask)
    assert shown.shape == (4, 4, 3)
    assert np.allclose(shown[3, 3], 0.4, atol=0.02)
    assert shown[0, 0].sum() > shown[3, 3].sum()


def test_the_stored_map_gives_the_mask_that_was_scored(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    xattn.Study([tiny], ["grad-cam"], ["sparsity"], folder, tmp_path / "run", workers=0, progress=False).run()
    stored = Store(tmp_path / "run").maps(["0.png"])["0.png", "tiny", "gap", "grad-cam"]
    mask = xattn.explain(tiny, folder / "0.png", ["grad-cam"])["grad-cam"][0]
    assert torch.allclose(to_masks(torch.from_numpy(stored.raw)[None], (32, 32)).masks[0], mask, atol=2e-3)
