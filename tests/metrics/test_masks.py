"""From raw maps to masks."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from xattn.metrics import degenerate, to_masks


def test_a_mask_is_min_maxed_per_image_at_its_own_resolution_then_upsampled() -> None:
    raw = torch.randn(3, 5, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
    found = to_masks(raw, (20, 15))
    for i in range(3):
        scaled = (raw[i] - raw[i].min()) / (raw[i].max() - raw[i].min())
        expected = functional.interpolate(scaled[None, None], size=(20, 15), mode="bilinear", align_corners=False)[0, 0]
        assert torch.allclose(found.masks[i], expected.clamp(0, 1), atol=1e-6)
    assert not found.degenerate.any()


def test_a_map_of_one_image_does_not_depend_on_the_others() -> None:
    raw = torch.rand(4, 7, 7)
    raw[2] *= 1000
    assert torch.equal(to_masks(raw, (28, 28)).masks[1], to_masks(raw[1:2], (28, 28)).masks[0])


@pytest.mark.parametrize(
    "values", [torch.zeros(3, 3), torch.full((3, 3), 2.5), torch.full((3, 3), torch.nan), torch.tensor([[1.0, torch.inf], [0.0, 0.0]])]
)
def test_a_map_without_contrast_or_not_finite_gives_a_zero_mask_and_is_flagged(values: torch.Tensor) -> None:
    found = to_masks(values[None], (6, 6))
    assert bool(found.degenerate[0])
    assert not found.masks.any()


def test_contrast_is_relative_to_the_largest_magnitude() -> None:
    tiny = torch.tensor([[[0.0, 1e-30]]])
    nearly = torch.tensor([[[1.0, 1.0 + 5e-7]]])
    assert degenerate(tiny).tolist() == [False]
    assert degenerate(nearly).tolist() == [True]
