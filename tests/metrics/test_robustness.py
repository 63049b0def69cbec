"""Sensitivity of a map to small noise: written out, and by the methods themselves."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from xattn.errors import InputError, SettingError
from xattn.metrics import average_sensitivity, max_sensitivity
from xattn.metrics.perturbations import Noised, noised_images
from xattn.metrics.seeds import content_seeds
from xattn.models import Classifier


def test_noise_stays_within_its_radius_and_the_image_within_0_and_1() -> None:
    images = networks.pictures(3, size=64)
    images[0], images[1] = 0.5, 1.0
    noise = [noised_images(images, Noised(0.1, draw), content_seeds(images)) - images for draw in (0, 1)]
    assert float(noise[0].abs().max()) <= 0.1 + 1e-6
    assert float((noise[0][0].abs() > 0.09).float().mean()) == pytest.approx(0.1, abs=0.02)  # uniform
    assert float(noise[0][1].max()) <= 0
    assert not torch.equal(noise[0], noise[1])


def test_noise_is_of_the_picture_and_not_of_its_place() -> None:
    images = networks.pictures(3)
    whole = noised_images(images, Noised(0.1, 4), content_seeds(images))
    alone = noised_images(images[2:], Noised(0.1, 4), content_seeds(images[2:]))
    assert torch.equal(whole[2:], alone)


def test_sensitivity_is_the_largest_and_the_mean_change_relative_to_the_mask() -> None:
    images, masks = networks.pictures(3).double(), torch.rand(3, 32, 32, dtype=torch.float64)
    seen: list[Tensor] = []

    def explain(noisy: Tensor) -> Tensor:
        seen.append(noisy)
        return noisy.mean(dim=1)

    most = max_sensitivity(images, masks, explain, radius=0.05, samples=3)
    mean = average_sensitivity(images, masks, explain, radius=0.05, samples=3)
    assert len(seen) == 6
    for i in range(3):
        changes = [float((noisy[i].mean(dim=0) - masks[i]).square().sum().sqrt() / masks[i].square().sum().sqrt()) for noisy in seen[:3]]
        assert most[i].item() == pytest.approx(max(changes), abs=1e-12)
        assert mean[i].item() == pytest.approx(sum(changes) / 3, abs=1e-12)


def test_known_answers() -> None:
    images, masks = networks.pictures(1), torch.rand(1, 32, 32) / 2
    assert max_sensitivity(images, masks, lambda noisy: masks).item() == 0
    assert max_sensitivity(images, masks, lambda noisy: 2 * masks).item() == pytest.approx(1, abs=1e-6)
    assert average_sensitivity(images, masks, lambda noisy: 0 * masks).item() == pytest.approx(1, abs=1e-12)
    assert max_sensitivity(images, 0 * masks, lambda noisy: masks).isnan().all()


def test_maps_that_ignore_the_picture_are_not_sensitive_at_all_and_noise_is_the_most(tiny: Classifier, images: Tensor) -> None:
    """The metric cannot recognise a map that shows nothing: constant controls are the most robust methods there are."""
    controls = ["uniform", "centre", "fake-cam", "random"]
    rows = xattn.evaluate(tiny, images, xattn.explain(tiny, images, ["grad-cam", *controls]), ["max-sensitivity:samples=3"])
    found = rows.groupby("method")["value"].mean()
    assert found[["uniform", "centre", "fake-cam"]].to_list() == [0, 0, 0]
    assert found["random"] == pytest.approx(0.5**0.5, abs=0.05)  # ‖U − U'‖/‖U‖ of independent uniform noise
    assert found["grad-cam"] > 0


def test_a_run_adds_the_noise_that_the_function_adds(tiny: Classifier, images: Tensor) -> None:
    maps = xattn.explain(tiny, images, ["grad-cam"], seed=5)
    given = ["max-sensitivity:radius=0.1,samples=2", "average-sensitivity:radius=0.1,samples=2"]
    rows = [xattn.evaluate(tiny, images, maps, given, batch_size=size) for size in (1, 7)]
    assert rows[0]["value"].to_list() == pytest.approx(rows[1]["value"].to_list(), abs=1e-5)

    def explain(noisy: Tensor) -> Tensor:
        return xattn.explain(tiny, noisy, ["grad-cam"], target=maps.targets, seed=5)["grad-cam"]

    for spec, function in zip(given, (max_sensitivity, average_sensitivity), strict=True):
        expected = function(images, maps["grad-cam"], explain, radius=0.1, samples=2, seed=5)
        found = torch.tensor(rows[1][rows[1]["metric"] == spec]["value"].to_list(), dtype=torch.float64)
        assert torch.allclose(found, expected, atol=1e-6, equal_nan=True)


def test_what_cannot_be_measured_says_why() -> None:
    images, masks = networks.pictures(1), torch.rand(1, 32, 32)
    with pytest.raises(SettingError, match=r"a radius in \(0, 1\] of pixel space and at least one sample; got radius=0, samples=10"):
        max_sensitivity(images, masks, lambda noisy: masks, radius=0)
    with pytest.raises(InputError, match=r"explain must give masks \(1, 32, 32\)"):
        max_sensitivity(images, masks, lambda noisy: masks[:, :8])
    for before, after in ((255 * masks, masks), (masks, 255 * masks), (masks, masks - 1)):
        with pytest.raises(InputError, match=r"masks lie in \[0, 1\]"):
            max_sensitivity(images, before, lambda noisy, after=after: after)
