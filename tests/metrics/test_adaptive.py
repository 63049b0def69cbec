"""Curves that are evaluated only where they bend."""

from __future__ import annotations

import pytest
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

from tests import networks
from xattn import metrics as m
from xattn.errors import InputError
from xattn.metrics.adaptive import first_points, interpolated
from xattn.metrics.curves import Insertion

SIZE = 32
STEP = 32  # pixels: 32 steps, 31 of them between the ends


class Counted:
    """Counts the images that it is asked about, and answers with a function of the share of pixels that are not black."""

    def __init__(self, curve) -> None:
        self.curve = curve
        self.count = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.count += len(images)
        p = self.curve((images > 0).double().mean(dim=(1, 2, 3)))
        return torch.stack([p, 1 - p], dim=1).clamp(1e-12).log()


def areas(curve, tolerance: float | None) -> tuple[float, int]:
    """The deletion area of a network that follows the curve, and how many images it took."""
    predict = Counted(curve)
    masks = torch.arange(SIZE * SIZE, dtype=torch.float64).view(1, SIZE, SIZE) / SIZE**2
    images = torch.ones(1, 3, SIZE, SIZE, dtype=torch.float64)
    found = m.deletion(predict, images, masks, torch.tensor([0]), fill=[0.0, 0.0, 0.0], step=STEP, tolerance=tolerance, chunk=1)
    return float(found), predict.count


CURVES = {
    "straight": lambda share: share,
    "constant": lambda share: torch.full_like(share, 0.3),
    "steep": lambda share: torch.sigmoid(60 * (share - 0.4)),
    "late": lambda share: share**6,
    "wave": lambda share: 0.5 + 0.4 * torch.sin(9 * share),
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
@pytest.mark.parametrize("tolerance", [0.5, 2.0])
def test_a_smooth_curves_area_lies_within_the_tolerance_for_fewer_forwards(curve, tolerance: float) -> None:
    full, whole = areas(curve, None)
    found, some = areas(curve, tolerance)
    assert abs(found - full) <= tolerance
    assert some < 0.9 * whole


def test_a_straight_line_costs_its_first_points_and_is_exact() -> None:
    full, _ = areas(CURVES["straight"], None)
    found, some = areas(CURVES["straight"], 0.5)
    assert found == pytest.approx(full, abs=1e-9)
    assert some == 2 + 4  # the image, its baseline, four points between


@pytest.mark.parametrize("count", [2, 3, 4, 5, 29, 197])
@pytest.mark.parametrize("early", [True, False])
def test_the_first_points_lie_between_the_ends_and_early_ones_at_the_beginning(count: int, early: bool) -> None:
    points = first_points(count, early=early).tolist()
    assert points == sorted(set(points))
    assert all(0 < point < count - 1 for point in points)
    if count == 29:
        assert points == ([1, 3, 7, 14] if early else [3, 7, 14, 21])


def test_a_smaller_tolerance_costs_more_and_comes_nearer() -> None:
    counts, errors = [], []
    full, _ = areas(CURVES["steep"], None)
    for tolerance in (8.0, 2.0, 0.5, 0.05):
        found, some = areas(CURVES["steep"], tolerance)
        counts.append(some)
        errors.append(abs(found - full))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    assert errors[-1] <= 0.05 < errors[0]


def test_with_next_to_no_tolerance_every_step_that_bends_is_looked_at_and_the_area_is_the_full_one() -> None:
    predict = networks.small().double().requires_grad_(False)
    images, masks = networks.pictures(3).double(), networks.pictures(3, seed=5)[:, 0].double()
    targets, fill = torch.tensor([0, 3, 2]), [0.485, 0.456, 0.406]
    for metric in (m.insertion, m.deletion):
        full = metric(predict, images, masks, targets, fill=fill)
        found = metric(predict, images, masks, targets, fill=fill, tolerance=1e-9)
        assert torch.allclose(found, full, atol=1e-8)


def known_in_part(count: int, kind: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A curve of so many steps at uneven shares, the same with NaN at most of what lies between the ends, and the shares."""
    draw = torch.Generator().manual_seed(seed)
    shares = torch.cat([torch.zeros(1), torch.rand(count, generator=draw).cumsum(0)]).double()
    p = torch.rand(count + 1, generator=draw, dtype=torch.float64)
    p = {"rough": p, "rising": p.sort().values, "with plateaus": (3 * p).round() / 3}[kind]
    known = torch.rand(count + 1, generator=draw) < 0.3
    known[0] = known[-1] = True
    return p, torch.where(known, p, torch.nan), shares / shares[-1]


@pytest.mark.parametrize("kind", ["rough", "rising", "with plateaus"])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 28])
def test_between_the_steps_that_were_looked_at_the_curve_is_scipys_monotone_cubic(count: int, kind: str) -> None:
    for seed in range(20):
        p, some, shares = known_in_part(count, kind, seed)
        known = ~some.isnan()
        expected = PchipInterpolator(shares[known].numpy(), p[known].numpy())(shares.numpy())
        found = interpolated(some[None], shares[None])[0]
        assert torch.equal(found[known], p[known])
        assert torch.allclose(found, torch.from_numpy(expected), atol=1e-12, rtol=0)


def test_a_step_that_gave_no_number_leaves_none_in_the_pieces_beside_it_and_none_missing_elsewhere() -> None:
    some = torch.full((1, 13), torch.nan, dtype=torch.float64)
    some[0, [0, 2, 4, 6, 8, 10, 12]] = torch.tensor([0.0, 0.1, 0.3, torch.inf, 0.5, 0.8, 0.9], dtype=torch.float64)
    found = interpolated(some, torch.linspace(0, 1, 13, dtype=torch.float64)[None])[0]
    assert found[[5, 6, 7]].isnan().all()
    assert not found[[0, 1, 2, 4, 8, 10, 11, 12]].isnan().any()


def test_each_image_stops_where_it_is_known_well_enough_whatever_the_batch() -> None:
    predict = networks.small().double().requires_grad_(False)
    images, masks = networks.pictures(5).double(), networks.pictures(5, seed=5)[:, 0].double()
    targets = torch.tensor([0, 3, 2, 1, 4])

    def of(some: slice) -> Tensor:
        return m.insertion(predict, images[some], masks[some], targets[some], fill=[0.5, 0.5, 0.5], step=64, tolerance=0.01)

    assert torch.allclose(of(slice(None)), torch.cat([of(slice(0, 2)), of(slice(2, 5))]), atol=1e-9)


def test_a_probability_that_is_not_a_number_ends_the_search() -> None:
    found, some = areas(lambda share: torch.where((share > 0.4) & (share < 0.6), torch.nan, share**6), 0.5)
    assert found != found
    assert some <= 33


def test_a_tolerance_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="a tolerance is in points of area, above 0 and at most 100; got -1"):
        Insertion(tolerance=-1)
