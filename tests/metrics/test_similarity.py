"""How alike two maps are, and the entropy of one, against scipy, scikit-image and known answers."""

from __future__ import annotations

import math

import numpy
import pytest
import scipy.stats
import torch
from skimage.metrics import structural_similarity

from xattn.errors import InputError
from xattn.metrics.similarity import entropy, pearson, spearman, ssim


def test_correlations_are_scipy_s_of_the_absolute_values_with_ties() -> None:
    a, b = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = (a * 2).round() / 2  # plateaus
    for one, other, r, rho in zip(a.abs().numpy(), b.abs().numpy(), pearson(a, b), spearman(a, b), strict=True):
        assert r.item() == pytest.approx(scipy.stats.pearsonr(one.flatten(), other.flatten()).statistic, abs=1e-12)
        assert rho.item() == pytest.approx(scipy.stats.spearmanr(one.flatten(), other.flatten()).statistic, abs=1e-3)  # rounded to 2⁻¹⁶


def test_rounding_noise_orders_nothing() -> None:
    one = torch.linspace(0, 1, 64).view(1, 8, 8).clone()
    one[0, :4] = 0.1
    other = one + torch.rand(1, 8, 8) * 1e-7
    assert spearman(one, other).item() == pytest.approx(1, abs=1e-12)


def test_a_constant_or_broken_map_has_no_correlation() -> None:
    maps = torch.rand(3, 4, 4)
    maps[0], maps[1, 0, 0] = 2.0, torch.nan
    for found in (spearman(maps, torch.rand(3, 4, 4)), pearson(torch.rand(3, 4, 4), maps)):
        assert found.isnan().tolist() == [True, True, False]


def test_ssim_is_that_of_wang_et_al_and_1_for_equal_masks() -> None:
    a, b = torch.rand(2, 2, 20, 16)
    expected = structural_similarity(
        a[1].numpy().astype(numpy.float64),
        b[1].numpy().astype(numpy.float64),
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(a, b)[1].item() == pytest.approx(expected, abs=1e-12)
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="11 pixels or more per side"):
        ssim(a[:, :8], b[:, :8])


def test_ssim_takes_two_sparse_masks_in_different_places_for_alike_and_ranks_do_not() -> None:
    a, b = torch.zeros(2, 1, 64, 64)
    a[0, 3, 3] = b[0, 50, 50] = 1
    assert ssim(a, b).item() > 0.9
    assert spearman(a, b).item() < 0


def test_entropy_is_that_of_the_histogram() -> None:
    assert entropy(torch.ones(1, 7, 7)).item() == 0
    half = torch.zeros(1, 8, 8)
    half[0, :4] = 5
    assert entropy(half).item() == pytest.approx(math.log(2))
    uniform = torch.linspace(0, 1, 16**3).view(1, 64, 64)  # 32 bins
    assert entropy(uniform).item() == pytest.approx(math.log(32), abs=1e-3)
    values = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = numpy.histogram(values.numpy(), bins=32)[0]
    assert entropy(values).item() == pytest.approx(scipy.stats.entropy(counts), abs=1e-2)
    assert entropy(values * -3 + 1).item() == pytest.approx(entropy(values).item(), abs=1e-2)


def test_maps_of_different_sizes_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"got \(1, 4, 4\) and \(1, 5, 4\)"):
        spearman(torch.rand(1, 4, 4), torch.rand(1, 5, 4))
