"""Metrics that explain again: coherency, ADCC and ARCC, written out, and by the methods themselves."""

from __future__ import annotations

from pathlib import Path

import numpy
import pandas as pd
import pytest
import torch
from torch import Tensor

import xattn
from tests import networks
from tests.own_methods import OF_ANY_HEAD
from xattn.errors import InputError
from xattn.metrics import adcc, arcc, average_drop, coherency, complexity
from xattn.models import Classifier

SIZE = 4


def constant(images: Tensor) -> Tensor:
    return torch.zeros(len(images), 2, dtype=torch.float64)


def cells(*on: int) -> Tensor:
    mask = torch.zeros(SIZE * SIZE, dtype=torch.float64)
    mask[list(on)] = 1
    return mask.view(1, SIZE, SIZE)


def test_a_quarter_of_the_image_that_is_coherent_and_drops_nothing_has_an_adcc_of_nine_tenths() -> None:  # known answer 5
    images, quarter, target = torch.rand(1, 3, SIZE, SIZE, dtype=torch.float64), cells(0, 1, 2, 3), torch.tensor([0])
    assert complexity(quarter).item() == 0.25
    assert coherency(images, quarter, lambda masked: quarter).item() == pytest.approx(1, abs=1e-12)
    assert average_drop(constant, images, quarter, target).item() == 0
    assert adcc(constant, images, quarter, target, lambda masked: quarter).item() == pytest.approx(0.9, abs=1e-12)


def test_fake_cam_scores_next_to_nothing() -> None:  # known answer 5
    """It keeps all of the image but a pixel: 1 − complexity is that pixel's share."""
    images = torch.rand(1, 3, 224, 224, dtype=torch.float64)
    almost_all = torch.ones(1, 224, 224, dtype=torch.float64)
    almost_all[0, 0, 0] = 0
    found = adcc(constant, images, almost_all, torch.tensor([0]), lambda masked: almost_all)
    assert 0 < found.item() < 1e-4


@pytest.mark.parametrize("case", ["opposite", "no drop left", "nothing shown", "shows nothing again"])
def test_adcc_is_0_where_one_of_its_terms_is(case: str) -> None:
    images, mask, again = torch.ones(1, 3, SIZE, SIZE, dtype=torch.float64), cells(0, 1), cells(0, 1)

    def predict(given: Tensor) -> Tensor:
        seen = (given.mean(dim=(1, 2, 3)) == 1).double()
        return torch.stack([seen, 1 - seen], dim=1) * 1000

    if case == "opposite":
        again = 1 - mask  # r = −1
    elif case == "nothing shown":
        mask = torch.zeros_like(mask)
    elif case == "shows nothing again":
        again = torch.zeros_like(mask)
    found = adcc(predict if case == "no drop left" else constant, images, mask, torch.tensor([0]), lambda masked: again)
    assert 0 <= found.item() < 1e-12
    if case in ("nothing shown", "shows nothing again"):
        assert coherency(images, mask, lambda masked: again).item() == 0


def test_coherency_is_numpy_s_correlation_brought_to_0_and_1() -> None:
    images, masks, other = networks.pictures(3).double(), *torch.rand(2, 3, 32, 32, dtype=torch.float64)
    found = coherency(images, masks, lambda masked: other)
    for value, a, b in zip(found, masks, other, strict=True):
        assert value.item() == pytest.approx((numpy.corrcoef(a.flatten(), b.flatten())[0, 1] + 1) / 2, abs=1e-12)


def test_what_is_explained_again_is_the_image_behind_its_mask(images: Tensor) -> None:
    masks, seen = torch.rand(7, 32, 32), []
    coherency(images, masks, lambda masked: seen.append(masked) or masks)
    assert torch.equal(seen[0], images * masks[:, None])


def test_an_explain_of_another_size_says_what_came(images: Tensor) -> None:
    with pytest.raises(InputError, match=r"explain must give masks \(7, 32, 32\) for the images that it is given; got \(7, 8, 8\)"):
        coherency(images, torch.rand(7, 32, 32), lambda masked: torch.rand(7, 8, 8))


@pytest.mark.parametrize("method", OF_ANY_HEAD)
def test_a_run_explains_again_as_explain_does_for_the_same_targets(method: str, tiny: Classifier, images: Tensor) -> None:
    maps = xattn.explain(tiny, images, [method])
    rows = xattn.evaluate(tiny, images, maps, ["coherency", "complexity", "average-drop", "adcc"])
    by_metric = {metric: torch.tensor(group["value"].to_numpy()) for metric, group in rows.groupby("metric")}

    def explain(masked: Tensor) -> Tensor:
        return xattn.explain(tiny, masked, [method], target=maps.targets)[method]

    assert torch.allclose(by_metric["coherency"], coherency(images, maps[method], explain).cpu(), atol=1e-6)
    terms = torch.stack([by_metric["coherency"], 1 - by_metric["complexity"], 1 - by_metric["average-drop"] / 100])
    expected = torch.where((terms > 0).all(dim=0), 3 / (1 / terms).sum(dim=0), 0)
    assert torch.allclose(by_metric["adcc"], expected, atol=1e-12)


def test_a_study_takes_metrics_that_explain_again_beside_the_others(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    chosen = ["average-drop", "coherency", "adcc", "complexity"]
    study = xattn.Study([tiny], ["grad-cam", "random"], chosen, folder, tmp_path / "run", workers=0, progress=False, batch_size=4)
    study.run()
    maps = xattn.explain(tiny, folder, ["grad-cam", "random"])
    alone = xattn.evaluate(tiny, folder, maps, chosen)
    order = ["image", "method", "metric"]
    one, other = (frame.sort_values(order).reset_index(drop=True) for frame in (study.scores(), alone))
    pd.testing.assert_series_equal(one["value"], other["value"], rtol=1e-4, atol=1e-4)
    assert set(study.table().columns) >= set(chosen)


def test_arcc_is_the_harmonic_mean_with_road_in_the_place_of_one_minus_average_drop() -> None:
    """p falls with the share of the mask's quarter that is black, so that ROAD, by shares of 20, …, 80 %, is known."""
    quarter = torch.zeros(1, 8, 8, dtype=torch.float64)
    quarter[:, :4, :4] = 1

    def predict(given: Tensor) -> Tensor:
        p = (given[:, 0] * quarter).sum(dim=(1, 2)) / 16
        return torch.stack([p, 1 - p], dim=1)

    images, target = torch.ones(1, 3, 8, 8, dtype=torch.float64), torch.tensor([0])
    found = arcc(predict, images, quarter, target, lambda masked: quarter, fill=[0.0] * 3, replace_with="black", outputs="probabilities")
    highest_first = [max(0, 16 - 64 * k // 5) / 16 for k in (1, 2, 3, 4)]
    lowest_first = [min(16, 64 * k // 5) / 16 for k in (1, 2, 3, 4)]
    road = (sum(lowest_first) - sum(highest_first)) / 4
    assert found.item() == pytest.approx(3 / (1 + 1 / 0.75 + 1 / road), abs=1e-9)
    against = arcc(
        predict, images, 1 - quarter, target, lambda masked: quarter, fill=[0.0] * 3, replace_with="black", outputs="probabilities"
    )
    assert against.item() == 0  # what it shows is what the network does not need


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # it hands tensors to NumPy
def test_arcc_is_that_of_pytorch_grad_cam_to_its_noise() -> None:
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.arcc")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    class Bright(torch.nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            score = given[:, :, 4:10, 4:10].mean(dim=(1, 2, 3)) * 6 - 3
            return torch.stack([score, -score], dim=1)

    images, masks = 0.3 * networks.pictures(4, size=16), torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(2))
    images[:, :, 4:10, 4:10] += 0.6
    masks[:, 4:10, 5:10] += 1
    masks = (masks - masks.amin(dim=(1, 2), keepdim=True)) / (masks.amax(dim=(1, 2), keepdim=True) - masks.amin(dim=(1, 2), keepdim=True))
    again = masks.roll(1, dims=2)
    metric = theirs.ARCC(lambda input_tensor, targets: again.numpy())
    expected = metric(images, masks.numpy(), [ClassifierOutputSoftmaxTarget(0)] * 4, Bright())
    found = arcc(Bright(), images, masks, torch.zeros(4, dtype=torch.long), lambda masked: again)
    assert float(found.min()) > 0.05
    assert torch.allclose(found, torch.as_tensor(expected).double(), atol=5e-3)
