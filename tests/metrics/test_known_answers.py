"""The known answers of definitions.md that concern the metrics."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xattn import metrics as m
from xattn.metrics.curves import area, correlation

FILL = torch.tensor([0.0, 0.0, 0.0])
SIZE = 16


def logits_of(p: Tensor) -> Tensor:
    """Logits of two classes whose softmax gives `p` to the first."""
    p = p.double()
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def share_kept(images: Tensor) -> Tensor:
    """p = share of pixels that are white: in these tests an image is white and the baseline black."""
    return logits_of(images.double().mean(dim=(1, 2, 3)))


def white(count: int = 2, size: int = SIZE) -> Tensor:
    return torch.ones(count, 3, size, size, dtype=torch.float64)


def zeros(count: int = 2) -> Tensor:
    return torch.zeros(count, dtype=torch.long)


@pytest.mark.parametrize("step", [1, 7, 8 * SIZE, SIZE * SIZE])
def test_deletion_is_50_for_any_map_where_the_probability_is_the_share_of_pixels_kept(step: int) -> None:
    masks = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found = m.deletion(share_kept, white(), masks, zeros(), fill=FILL, step=step)
    assert torch.allclose(found, torch.full((2,), 50.0, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("step", [1, 7, SIZE * SIZE])
def test_insertion_is_50_for_any_map_where_the_probability_is_the_share_of_pixels_inserted(step: int) -> None:
    masks = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    curve = _insertion_from_black(step)
    found = area(m.evaluate_perturbations(share_kept, white(), zeros(), {"": masks}, [curve])[""].curve(curve))
    assert torch.allclose(found, torch.full((2,), 50.0, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize("c", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("protocol", list(m.PROTOCOLS))
def test_a_constant_classifier_has_insertion_and_deletion_of_100_times_its_constant(c: float, protocol: str) -> None:
    def predict(images: Tensor) -> Tensor:
        return logits_of(torch.full((len(images),), c))

    masks = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    for metric in (m.insertion, m.deletion):
        found = metric(predict, white(), masks, zeros(), fill=FILL, protocol=protocol)
        assert torch.allclose(found, torch.full((2,), 100 * c, dtype=torch.float64), atol=1e-6)
    for correlation_metric in (m.insertion_correlation, m.deletion_correlation):
        assert correlation_metric(predict, white(), masks, zeros(), fill=FILL, protocol=protocol).isnan().all()


def test_br_npa_s_area_lacks_the_first_step_of_the_curve() -> None:
    cells = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(1))
    found = m.deletion(share_kept, white(), cells, zeros(), fill=FILL, protocol="br-npa")
    assert torch.allclose(found, torch.full((2,), 50 * (1 - 1 / 16), dtype=torch.float64), atol=1e-9)  # from 15/16 down to 0
    found = m.deletion(share_kept, white(), cells, zeros(), fill=FILL, protocol="br-npa", step=16)
    assert torch.allclose(found, torch.full((2,), 50.0, dtype=torch.float64), atol=1e-9)  # a single step has both of its ends


def additive(weights: Tensor):
    """p = Σ c_i · [pixel i is white]."""

    def predict(images: Tensor) -> Tensor:
        return logits_of((images[:, 0].double() * weights).sum(dim=(1, 2)).clamp(0, 1))

    return predict


def test_an_additive_classifier_explained_by_its_own_weights_has_the_closed_form_deletion() -> None:
    size = 8
    weights = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights /= weights.sum()
    ordered, count = weights.flatten().sort(descending=True).values, size * size
    expected = 100 / count * (ordered * (torch.arange(1, count + 1) - 0.5)).sum()
    arguments = (additive(weights), white(1, size), weights[None], zeros(1))
    assert float(m.deletion(*arguments, fill=FILL, step=1)) == pytest.approx(float(expected))
    assert float(m.deletion_correlation(*arguments, fill=FILL, step=1)) == pytest.approx(1.0)


@pytest.mark.parametrize("step", [1, 5, 64])
def test_an_additive_classifier_has_insertion_100_minus_deletion_at_any_step(step: int) -> None:
    size = 8
    weights = torch.rand(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights /= weights.sum()
    arguments = (additive(weights), white(1, size), weights[None], zeros(1))
    deletion = m.deletion(*arguments, fill=FILL, step=step)
    seen = m.evaluate_perturbations(*arguments[:2], arguments[3], {"": arguments[2]}, [curve := _insertion_from_black(step)], mean=FILL)
    assert float(area(seen[""].curve(curve)) + deletion) == pytest.approx(100.0)
    if step == 1:
        assert float(correlation(seen[""].curve(curve), 1.0)) == pytest.approx(1.0)


def _insertion_from_black(step: int):
    from xattn.metrics.fills import Baseline
    from xattn.metrics.perturbations import Curve

    return Curve(True, Baseline("colour", "black"), step)


@pytest.mark.parametrize(
    ("o", "e", "drop", "gain", "increase"),
    [(0.8, 0.6, 25, 0, 0), (0.5, 0.75, 0, 50, 100), (0.5, 0.5, 0, 0, 0), (0.5, 0.5 + 5e-7, 0, 1e-4, 0)],
)
def test_average_drop_gain_and_increase_of_known_probabilities(o: float, e: float, drop: float, gain: float, increase: float) -> None:
    def predict(images: Tensor) -> Tensor:
        return logits_of(torch.tensor([o if lit else e for lit in images.mean(dim=(1, 2, 3)) > 0.99], dtype=torch.float64))

    arguments = (predict, white(1), torch.zeros(1, SIZE, SIZE), zeros(1))
    assert float(m.average_drop(*arguments)) == pytest.approx(drop)
    assert float(m.average_gain(*arguments)) == pytest.approx(gain, abs=1e-6)
    assert float(m.average_increase(*arguments)) == increase


def test_a_mask_of_ones_neither_drops_nor_gains_nor_increases() -> None:
    arguments = (share_kept, 0.5 * white(1), torch.ones(1, SIZE, SIZE), zeros(1))
    assert [float(metric(*arguments)) for metric in (m.average_drop, m.average_gain, m.average_increase)] == [0, 0, 0]
    assert float(m.average_drop_deletion(*arguments)) == pytest.approx(100.0)


def test_average_gain_keeps_its_digits_where_the_probability_is_almost_one() -> None:
    def predict(images: Tensor) -> Tensor:
        gap = torch.where(images.mean(dim=(1, 2, 3)) > 0.99, 40.0, 41.0).double()
        return torch.stack([gap, torch.zeros_like(gap)], dim=1)

    found = m.average_gain(predict, white(1), torch.zeros(1, SIZE, SIZE), zeros(1))
    rest = torch.sigmoid(-torch.tensor([40.0, 41.0], dtype=torch.float64))
    expected = 100 * (rest[0] - rest[1]) / (rest[0] + torch.finfo(torch.float64).eps)
    assert float(found) == pytest.approx(float(expected))


@pytest.mark.parametrize("k", [1, 3, 10])
def test_sparsity_of_a_k_hot_map_is_n_over_k_and_of_a_constant_positive_map_one(k: int) -> None:
    hot = torch.zeros(1, 7, 7)
    hot.view(-1)[:k] = 0.3
    assert float(m.sparsity(hot)) == pytest.approx(49 / k)
    assert float(m.sparsity(torch.full((1, 7, 7), 0.2))) == pytest.approx(1.0)
    assert float(m.sparsity(hot - 0.1)) == pytest.approx(49 / k)  # negatives count as 0
    assert float(m.sparsity(hot, definition="minmax")) == pytest.approx(49 / k)
    assert float(m.sparsity(hot[:, None].expand(-1, 3, -1, -1), definition="released")) == pytest.approx(49 / k, rel=1e-4)  # + 1e-5


def test_sparsity_of_a_map_without_a_positive_value_is_undefined() -> None:
    assert m.sparsity(torch.stack([torch.zeros(4, 4), -torch.ones(4, 4), torch.full((4, 4), torch.nan)])).isnan().all()


def test_strictly_increasing_transforms_of_the_mask_leave_insertion_and_deletion_unchanged() -> None:
    masks = torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights = torch.rand(SIZE, SIZE, dtype=torch.float64)
    predict = additive(weights / weights.sum())
    for metric in (m.insertion, m.deletion):
        before = metric(predict, white(), masks, zeros(), fill=FILL)
        for transform in (lambda x: x**3, torch.sqrt, lambda x: 0.1 + x / 2):
            assert torch.equal(before, metric(predict, white(), transform(masks), zeros(), fill=FILL))
