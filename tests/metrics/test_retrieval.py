"""CMC and mAP: Market-1501's rules on hand-made cases, a replica in loops, scikit-learn, ties, and the bootstrap."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from xattn.errors import InputError
from xattn.metrics import retrieval
from xattn.metrics.retrieval import Ranking, rank_gallery

IDS, CAMERAS = torch.tensor([7]), torch.tensor([1])


def ranked(similarities: list[float], ids: list[int], cameras: list[int]) -> tuple[int, float]:
    found = rank_gallery(torch.tensor([similarities]), IDS, torch.tensor(ids), CAMERAS, torch.tensor(cameras))
    return int(found.first), float(found.average_precision)


def test_junk_and_the_query_s_own_camera_do_not_count_and_distractors_do() -> None:
    assert ranked([0.9, 0.8, 0.7], [-1, 7, 7], [2, 1, 2]) == (1, 1.0)
    assert ranked([0.9, 0.8, 0.7], [0, 7, 7], [2, 1, 2]) == (2, 0.5)
    assert ranked([0.9, 0.8, 0.7, 0.6], [3, 7, 0, 7], [1, 2, 1, 3]) == (2, 0.5)
    first, precision = ranked([0.9, 0.8, 0.7, 0.6, 0.5], [7, 3, 7, 7, -1], [3, 1, 2, 1, 1])
    assert (first, precision) == (1, pytest.approx((1 + 2 / 3) / 2))


def test_a_query_without_a_match_is_left_out() -> None:
    for ids, cameras in (([3, 0], [2, 2]), ([7, -1], [1, 2])):
        first, precision = ranked([0.9, 0.8], ids, cameras)
        assert first == 0
        assert math.isnan(precision)
    found = rank_gallery(torch.rand(2, 3), torch.tensor([1, 2]), torch.tensor([1, 1, 1]))
    assert found.first.tolist() == [1, 0]
    assert {name: (score.mean, score.n) for name, score in found.scores(resamples=10).items()} == dict.fromkeys(
        ("rank-1", "rank-5", "rank-10", "mAP"), (1.0, 1)
    )
    nobody = rank_gallery(torch.rand(1, 3), torch.tensor([2]), torch.tensor([1, 1, 1])).scores()
    assert nobody["mAP"].n == 0
    assert math.isnan(nobody["mAP"].mean)


def test_among_equal_similarities_matches_come_last_whatever_the_order_of_the_gallery() -> None:
    ids, cameras = torch.tensor([7, 3, 7, 4, -1]), torch.full((5,), 2)
    for order in (torch.arange(5), torch.arange(5).flip(0), torch.tensor([2, 4, 0, 3, 1])):
        found = rank_gallery(torch.ones(1, 5), IDS, ids[order], CAMERAS, cameras[order])
        assert (int(found.first), float(found.average_precision)) == (3, pytest.approx((1 / 3 + 2 / 4) / 2))


def loops(similarities: Tensor, query: Tensor, gallery: Tensor, query_cameras: Tensor, gallery_cameras: Tensor) -> list[tuple[int, float]]:
    """The rules one picture after the other."""
    found = []
    for q in range(len(query)):
        kept = []
        for g in range(len(gallery)):
            if gallery[g] == -1 or (gallery[g] == query[q] and gallery_cameras[g] == query_cameras[q]):
                continue
            kept.append((-float(similarities[q, g]), bool(gallery[g] == query[q])))
        kept.sort()  # of equal ones, those that do not match first
        hits, first, precisions = 0, 0, []
        for place, (_, is_match) in enumerate(kept, start=1):
            if is_match:
                hits += 1
                first = first or place
                precisions.append(hits / place)
        found.append((first, sum(precisions) / hits if hits else math.nan))
    return found


@pytest.mark.parametrize("levels", [4, 100_000])
@pytest.mark.parametrize("at_once", [1, 100, 2**24])
def test_ranking_is_that_of_loops(levels: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(levels)
    similarities = torch.randint(levels, (20, 60), generator=generator).double() / levels
    query, gallery = torch.randint(1, 6, (20,), generator=generator), torch.randint(-1, 9, (60,), generator=generator)
    cameras = torch.randint(1, 4, (20,), generator=generator), torch.randint(1, 4, (60,), generator=generator)
    found = rank_gallery(similarities, query, gallery, *cameras)
    expected = loops(similarities, query, gallery, *cameras)
    assert found.first.tolist() == [first for first, _ in expected]
    assert found.average_precision.tolist() == pytest.approx([precision for _, precision in expected], nan_ok=True)


def test_average_precision_is_scikit_learn_s_where_no_similarities_are_equal() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(3)
    similarities, gallery = torch.rand((6, 40), generator=generator, dtype=torch.float64), torch.randint(3, (40,), generator=generator)
    query = torch.tensor([0, 1, 2, 0, 1, 2])
    found = rank_gallery(similarities, query, gallery).average_precision.tolist()
    expected = [
        sklearn.average_precision_score((gallery == one).numpy(), row.numpy()) for one, row in zip(query, similarities, strict=True)
    ]
    assert found == pytest.approx(expected)


def test_intervals_of_ranks_are_wilson_s_and_that_of_map_the_bootstrap_s() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = torch.rand(400, generator=generator) < 0.7
    ranking = Ranking(torch.where(hits, 1, 7), torch.rand(400, generator=generator, dtype=torch.float64))
    scores = ranking.scores()
    assert scores == ranking.scores()
    assert scores["rank-1"].mean == scores["rank-5"].mean == pytest.approx(float(hits.double().mean()))
    for name, count in (("rank-1", int(hits.sum())), ("rank-10", 400)):
        expected = binomtest(count, 400).proportion_ci(method="wilson")
        assert scores[name] == pytest.approx((count / 400, expected.low, expected.high, 400))
    error = float(ranking.average_precision.std()) / 20
    assert scores["mAP"].low == pytest.approx(scores["mAP"].mean - 1.96 * error, abs=0.3 * error)
    assert scores["mAP"].high == pytest.approx(scores["mAP"].mean + 1.96 * error, abs=0.3 * error)
    assert Ranking(torch.ones(3).long(), torch.ones(3).double()).scores()["rank-1"].low < 0.5  # 3 of 3 say little


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InputError, match=r"got \(2, 3\), 1 and 3 identities, None and None cameras"):
        rank_gallery(torch.rand(2, 3), torch.tensor([1]), torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match="1 and None cameras"):
        rank_gallery(torch.rand(1, 3), torch.tensor([1]), torch.tensor([1, 2, 3]), torch.tensor([1]))
    with pytest.raises(InputError, match="similarities must be finite"):
        rank_gallery(torch.tensor([[0.1, math.nan]]), torch.tensor([1]), torch.tensor([1, 2]))
