"""SaCo, sensitivity-n and infidelity by known answers and captum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import networks
from tests.metrics.test_known_answers import FILL, additive, logits_of, white, zeros
from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics.random_subsets import Infidelity, SensitivityN
from xattn.metrics.saco import SaCo

SIZE = 8


def weights(seed: int = 2) -> Tensor:
    found = torch.rand(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return found / found.sum()


def arguments(mask: Tensor) -> tuple:
    return additive(weights()), white(1, SIZE), mask[None], zeros(1)


@pytest.mark.parametrize("groups", [2, 4, 64])
def test_an_additive_classifier_explained_by_its_own_weights_has_saco_1_and_turned_round_minus_1(groups: int) -> None:
    assert float(m.saco(*arguments(weights()), fill=FILL, groups=groups)) == pytest.approx(1.0)
    assert float(m.saco(*arguments(-weights() + 1), fill=FILL, groups=groups)) == pytest.approx(-1.0)


def test_saco_weighs_a_pair_by_how_far_its_groups_are_apart() -> None:
    """Three groups that weigh 3, 2 and 0, of which the second lowers the probability most: pairs of 1, 3 and 2, the first against."""
    mask = torch.tensor([[3.0, 2.0, 0.0]], dtype=torch.float64) / 3
    falls = torch.tensor([0.2, 0.5, 0.1], dtype=torch.float64)

    def predict(images: Tensor) -> Tensor:
        return logits_of(0.9 - ((1 - images[:, 0, 0].double()) * falls).sum(dim=1))

    found = m.saco(predict, torch.ones(1, 3, 1, 3, dtype=torch.float64), mask[None], zeros(1), fill=FILL, groups=3)
    assert float(found) == pytest.approx((-1 + 3 + 2) / 6)


def test_metrics_of_removals_say_of_a_mask_without_contrast_that_they_are_undefined() -> None:
    flat = torch.full((SIZE, SIZE), 0.3, dtype=torch.float64)
    assert m.saco(*arguments(flat), fill=FILL).isnan().all()
    assert m.sensitivity_n(*arguments(flat), fill=FILL, patch=1).isnan().all()
    constant = (lambda images: logits_of(torch.full((len(images),), 0.4)), *arguments(weights())[1:])
    assert m.sensitivity_n(*constant, fill=FILL, patch=1).isnan().all()
    assert float(m.infidelity(*constant, fill=FILL, patch=1)) == pytest.approx(0.0)


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_an_additive_classifier_explained_by_its_own_weights_is_sensitive_to_n_and_faithful(patch: int) -> None:
    for mask in (weights(), 3 * weights() + 0.1 * (patch < 3)):  # of patches of several sizes a constant does not cancel
        assert float(m.sensitivity_n(*arguments(mask), fill=FILL, patch=patch)) == pytest.approx(1.0)
    assert float(m.sensitivity_n(*arguments(1 - weights()), fill=FILL, patch=1)) == pytest.approx(-1.0)
    for factor in (1, 7, -2):
        assert float(m.infidelity(*arguments(factor * weights()), fill=FILL, patch=patch)) == pytest.approx(0, abs=1e-12)
    assert float(m.infidelity(*arguments(weights()), fill=FILL, patch=patch, scale="raw")) == pytest.approx(0, abs=1e-12)
    assert float(m.infidelity(*arguments(2 * weights()), fill=FILL, patch=patch, scale="raw")) > 1e-3


def test_raw_infidelity_is_captum_s_over_the_same_subsets() -> None:
    captum = pytest.importorskip("captum.metrics")
    from xattn.metrics.fills import Baseline
    from xattn.metrics.perturbations import Subsets
    from xattn.metrics.removals import chosen_patches

    network = networks.small().double().requires_grad_(False)
    images, targets = networks.pictures(2).double(), torch.tensor([1, 3])
    maps = torch.rand(2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 1000
    subsets = Subsets(30, 0.2, 4, Baseline("colour", "black"))
    chosen = chosen_patches(images, subsets).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)

    def perturbed(repeated: Tensor) -> tuple[Tensor, Tensor]:  # captum sums over the channels too
        gone = chosen.flatten(0, 1)[:, None].double()
        return gone.expand_as(repeated) / 3, repeated * (1 - gone)

    theirs = captum.infidelity(
        lambda x: network(x).softmax(dim=1), perturbed, images, maps[:, None].expand(-1, 3, -1, -1), target=targets, n_perturb_samples=30
    )
    settings = {"subsets": 30, "patch": 4, "replace_with": "black"}
    ours = m.infidelity(network, images, maps, targets, fill=None, scale="raw", **settings)
    assert torch.allclose(ours, theirs.double(), rtol=1e-6)
    assert bool((m.infidelity(network, images, maps, targets, fill=None, **settings) < ours).all())


def test_subsets_are_run_once_for_all_masks_and_both_metrics() -> None:
    seen = 0

    def predict(images: Tensor) -> Tensor:
        nonlocal seen
        seen += len(images)
        return additive(weights())(images)

    asked = dict.fromkeys([*SensitivityN(patch=1).perturbations, *Infidelity(patch=1).perturbations])
    masks = {str(seed): weights(seed)[None] for seed in range(3)}
    m.evaluate_perturbations(predict, white(1, SIZE), zeros(1), masks, list(asked), mean=FILL, chunk=1)
    assert seen == 1 + 100


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InputError, match="the number of groups must be a whole number from 2 to 1000; got 1"):
        SaCo(groups=1)
    with pytest.raises(InputError, match="the share of patches in a subset lies between 0 and 1; got 1"):
        SensitivityN(share=1.0)
    with pytest.raises(InputError, match="the number of pixels along a patch must be a whole number from 1 to 1024; got 0"):
        Infidelity(patch=0)
    with pytest.raises(InputError, match="a scale is 'optimal' or 'raw'; got 'best'"):
        Infidelity(scale="best")
