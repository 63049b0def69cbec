"""Metrics of where the object is, against slow replicas, other libraries and known answers."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage
from torch import Tensor

from xattn import metrics as m
from xattn.errors import XattnError
from xattn.metrics.box_accuracy import ORACLE

SIZE = (20, 26)
FUNCTIONS = {
    "pointing": lambda maps, regions: m.pointing_game(maps, regions, tolerance=0),
    "energy": m.energy_pointing,
    "mass": lambda maps, regions: 100 * m.relevance_mass(maps, regions),
    "rank": lambda maps, regions: 100 * m.relevance_rank(maps, regions),
    "AP": m.segmentation_ap,
}


def rectangle(left: int, top: int, right: int, bottom: int) -> Tensor:
    region = torch.zeros(1, *SIZE, dtype=torch.bool)
    region[:, top:bottom, left:right] = True
    return region


@pytest.fixture
def regions() -> Tensor:
    return torch.cat([rectangle(3, 4, 14, 11), rectangle(0, 0, 2, 2), rectangle(0, 0, 26, 20)])


@pytest.fixture
def masks() -> Tensor:
    """Smooth masks, two of which have plateaus."""
    coarse = torch.rand(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = m.to_masks(coarse, SIZE).masks
    found[1] = (found[1] * 4).round() / 4
    found[2] = (found[2] - 0.5).clamp(min=0) * 2
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_region_as_the_map_scores_100_and_a_uniform_map_the_region_s_share(name: str, regions: Tensor) -> None:
    every = torch.full((3, *SIZE), 0.3, dtype=torch.float64)
    assert FUNCTIONS[name](regions.double(), regions).tolist() == pytest.approx([100] * 3)
    share = 100 * regions.double().mean(dim=(1, 2))
    assert torch.allclose(FUNCTIONS[name](every, regions), share)


@pytest.mark.parametrize("name", [*FUNCTIONS, "boxes"])
def test_a_map_that_shows_nothing_and_a_region_that_is_empty_give_no_value(name: str, regions: Tensor, masks: Tensor) -> None:
    metric = FUNCTIONS.get(name, m.box_accuracy)
    assert metric(torch.zeros(3, *SIZE), regions).isnan().all()
    assert metric(masks, regions & False).isnan().all()
    assert metric(masks, torch.stack([regions, regions & False], dim=1)).tolist() == metric(masks, regions).tolist()  # N objects, one empty


@pytest.mark.parametrize("tolerance", [0, 1, 5, 15, 60])
def test_the_pointing_game_counts_maxima_by_their_distance_to_the_region(tolerance: int, regions: Tensor, masks: Tensor) -> None:
    masks = torch.cat([masks, torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(1)).double()])
    regions = torch.cat([regions, rectangle(20, 10, 21, 11), rectangle(9, 9, 12, 10), rectangle(25, 19, 26, 20)])
    expected = []
    for mask, region in zip((masks * 2**16).round(), regions, strict=True):
        maxima, inside = (mask == mask.max()).nonzero().double(), region.nonzero().double()
        expected.append(100 * (torch.cdist(maxima, inside).amin(dim=1) <= tolerance + 1e-9).double().mean())
    assert torch.allclose(m.pointing_game(masks, regions, tolerance=tolerance), torch.stack(expected))


def test_a_maximum_15_pixels_away_is_a_hit_and_one_16_pixels_away_is_none() -> None:
    mask = torch.zeros(2, *SIZE)
    mask[0, 5, 17], mask[1, 5, 18] = 1, 1
    assert m.pointing_game(mask, rectangle(0, 0, 3, 20).expand(2, -1, -1)).tolist() == [100, 0]


def test_relevance_mass_and_rank_are_of_the_positive_part_at_the_regions_size(regions: Tensor) -> None:
    raw = torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    mass, rank = m.relevance_mass(raw, regions), m.relevance_rank(raw, regions)
    for number in range(3):
        shown = torch.nn.functional.interpolate(raw[number].clamp(min=0)[None, None], size=SIZE, mode="bilinear")[0, 0]
        inside, count = regions[number], int(regions[number].sum())
        assert float(mass[number]) == pytest.approx(float(shown[inside].sum() / shown.sum()))
        draws = []
        for seed in range(60):  # ties, at zero, in any order
            order = torch.randperm(shown.numel(), generator=torch.Generator().manual_seed(seed))
            top = order[shown.flatten()[order].argsort(descending=True, stable=True)][:count]
            draws.append(float(inside.flatten()[top].double().mean()))
        assert float(rank[number]) == pytest.approx(sum(draws) / 60, abs=0.02)


def test_average_precision_is_scikit_learn_s(regions: Tensor, masks: Tensor) -> None:
    reference = pytest.importorskip("sklearn.metrics").average_precision_score
    levels = (masks * 2**16).round().flatten(1).numpy()
    expected = [100 * reference(region, mask) for region, mask in zip(regions.flatten(1).numpy(), levels, strict=True)]
    assert m.segmentation_ap(masks, regions).tolist() == pytest.approx(expected)


def slow_overlap(mask: Tensor, region: Tensor, threshold: float) -> float:
    """Largest overlap of the box of the region and one of the mask's, by scipy's connected components."""
    levels = (mask * 2**16).round()
    numbered, _ = ndimage.label((levels >= threshold * levels.max()).numpy(), structure=torch.ones(3, 3).numpy())
    rows, columns = region.any(1).nonzero()[:, 0], region.any(0).nonzero()[:, 0]
    true = torch.zeros_like(region)
    true[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    best = 0.0
    for part in ndimage.find_objects(numbered):
        box = torch.zeros_like(region)
        box[part] = True
        best = max(best, float((box & true).sum() / (box | true).sum()))
    return best


def test_boxes_of_a_mask_are_those_of_its_connected_parts(regions: Tensor, masks: Tensor) -> None:
    noise = torch.rand(6, *SIZE, generator=torch.Generator().manual_seed(1)).double()  # parts that wind and touch at corners
    masks, regions = torch.cat([masks, noise]), regions.repeat(3, 1, 1)
    thresholds = (0.0, 0.2, 0.5, 0.6, 0.7, 1.0)
    expected = [[slow_overlap(mask, region, t) for t in thresholds] for mask, region in zip(masks, regions, strict=True)]
    found = m.box_overlaps(masks, regions, thresholds)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6)
    for iou, wanted in (("30", [30]), ("70", [70]), ("all", [30, 50, 70])):
        fixed = m.box_accuracy(masks, regions, threshold=0.5, iou=iou)
        assert fixed.tolist() == pytest.approx([100 * sum(100 * row[2] >= each for each in wanted) / len(wanted) for row in expected])


def test_box_accuracy_is_the_share_of_the_three_overlaps_that_are_reached() -> None:
    region = rectangle(0, 0, 10, 10)
    for right, value in ((10, 100), (12, 100), (15, 200 / 3), (25, 100 / 3)):  # overlaps of 1, 0.83, 0.67, 0.4
        assert float(m.box_accuracy(rectangle(0, 0, right, 10).double(), region)) == pytest.approx(value)
    whole = float(m.box_accuracy(torch.ones(1, *SIZE), region))
    assert whole == 0  # 100 of 520 pixels
    two = torch.cat([rectangle(0, 0, 10, 10), rectangle(20, 10, 26, 20)])[None]
    assert float(m.box_accuracy(rectangle(20, 10, 26, 20).double(), two)) == 100  # the box of one of the objects


def test_a_threshold_is_chosen_on_held_out_pictures_and_the_oracle_is_never_below_it(regions: Tensor) -> None:
    masks = 0.41 + 0.59 * regions.double()
    masks[:, -1, -1] = 0
    chosen = m.box_threshold(masks, regions)
    assert chosen == 0.42
    assert chosen in ORACLE
    oracle = m.box_accuracy(masks, regions, threshold="oracle")
    assert (oracle >= m.box_accuracy(masks, regions, threshold=chosen)).all()
    assert oracle[0] == 100 > m.box_accuracy(masks, regions, threshold=0.2)[0]
    with pytest.raises(XattnError, match=r"none of these has both"):
        m.box_threshold(masks, regions & False)
    assert m.metrics.create("box-accuracy:threshold=oracle,iou=50").spec == "box-accuracy:threshold=oracle,iou=50"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda masks, regions: m.pointing_game(masks, regions[:2]), r"regions are .* one for each of 3 images; got \(2, 1, 20, 26\)"),
        (lambda masks, regions: m.pointing_game(masks, regions.double() * 255), r"regions are true where the object is"),
        (lambda masks, regions: m.energy_pointing(masks[:, :-1], regions), r"one size; got masks \(3, 19, 26\) and regions \(3, 20, 26\)"),
        (lambda masks, regions: m.box_accuracy(masks[:, :-1], regions), r"one size"),
        (lambda masks, regions: m.energy_pointing(masks * 3, regions), r"masks lie in \[0, 1\]"),
        (lambda masks, regions: m.pointing_game(masks, regions, tolerance=-1), r"a tolerance is 0 to 1000 pixels; got -1"),
        (lambda masks, regions: m.box_accuracy(masks, regions, threshold=1.5), r"in \[0, 1\], or 'oracle'; got 1.5"),
        (lambda masks, regions: m.box_accuracy(masks, regions, iou="40"), r"iou is 'all', '30', '50' or '70'; got '40'"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, said: str, masks: Tensor, regions: Tensor) -> None:
    with pytest.raises(XattnError, match=said):
        call(masks, regions)
