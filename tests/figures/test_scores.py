"""Figures of scores show what the rows say: ranks, critical differences, curves, means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from scipy import stats

import xattn
from xattn.figures import pages
from xattn.figures.curves import band
from xattn.figures.heat import decimals
from xattn.figures.plots import looks
from xattn.figures.ranks import cliques, ranking
from xattn.figures.scatter import Scatter, methods_before
from xattn.figures.score_data import ScoreData, interpolated, read_scores
from xattn.figures.style import FigureStyle
from xattn.models import Classifier
from xattn.study.store import Store


def planted(n: int = 30) -> np.ndarray:
    """Three methods that do not differ, then two that are worse and do not differ from each other."""
    noise = torch.randn(n, 5, generator=torch.Generator().manual_seed(0)).double().numpy()
    return noise + np.array([3.0, 3.0, 3.0, 0.0, 0.0])


@pytest.mark.parametrize("test", ["nemenyi", "wilcoxon"])
def test_methods_that_do_not_differ_are_joined_and_others_are_not(test: str) -> None:
    found = ranking(list("abcde"), planted(), True, test)  # type: ignore[arg-type]
    assert set(found.names[:3]) == set("abc")
    assert found.cliques == [(0, 2), (3, 4)]
    assert found.friedman == pytest.approx(stats.friedmanchisquare(*planted().T.tolist()).pvalue)
    assert found.ranks == sorted(found.ranks)
    turned = ranking(list("abcde"), planted(), False, test)  # type: ignore[arg-type]
    assert set(turned.names[:2]) == set("de")


def test_a_bar_joins_only_methods_of_which_no_two_differ() -> None:
    same = {(0, 1): True, (1, 2): True, (0, 2): False, (2, 3): True, (1, 3): True, (0, 3): False}
    assert cliques(same, 4) == [(0, 1), (1, 3)]


def test_methods_that_are_all_equal_are_one_group() -> None:
    found = ranking(list("abc"), np.ones((8, 3)), True)
    assert (found.cliques, found.friedman, found.ranks) == ([(0, 2)], 1.0, [2.0, 2.0, 2.0])


def test_the_band_is_the_student_t_interval_at_each_step() -> None:
    p = np.random.default_rng(0).random((12, 5), dtype=np.float32)
    mean, low, high = band(p)
    for step in range(5):
        own = p[:, step]
        ends = stats.t.interval(0.95, 11, own.mean(), stats.sem(own))
        assert (float(mean[step]), float(low[step]), float(high[step])) == pytest.approx((own.mean(), *ends), abs=1e-6)


def test_a_curve_at_other_steps_is_interpolated() -> None:
    shares, p = np.array([0.0, 0.5, 1.0]), np.array([1.0, 0.0, 0.5])
    assert interpolated(np.array([0.0, 0.25, 0.75, 1.0]), shares, p).tolist() == [1.0, 0.5, 0.25, 0.5]


def test_decimals_follow_the_intervals() -> None:
    assert [decimals([half]) for half in (31.0, 3.1, 0.31, 0.031, 1e-9)] == [0, 1, 2, 3, 3]
    assert decimals([float("nan")]) == 2


def test_a_run_s_curves_are_those_it_scored(tiny: Classifier, folder: Path, tmp_path: Path) -> None:
    metrics = ["insertion", "deletion", "insertion-correlation", "deletion:tolerance=2"]
    xattn.Study([tiny], ["grad-cam", "random"], metrics, folder, tmp_path / "run", workers=0, progress=False).run()
    shown = read_scores([tmp_path / "run"])
    found = shown.curves()
    assert {series[3] for series in found} == {
        "insertion",
        "deletion",
        "deletion:tolerance=2.0",
    }  # the correlation follows insertion's curve
    for metric in ("insertion", "deletion"):
        curves = found["tiny", "gap", "grad-cam", metric]
        areas = 100 * torch.trapezoid(torch.tensor(curves.p).double(), torch.tensor(curves.shares).double(), dim=1)
        rows = shown.rows[(shown.rows["metric"] == metric) & (shown.rows["method"] == "grad-cam")]
        assert sorted(areas.tolist()) == pytest.approx(sorted(rows["value"]), abs=1e-4)
    chosen = read_scores([tmp_path / "run"], methods=["random"], metrics=["deletion"], count=3)
    assert {series: len(curves.p) for series, curves in chosen.curves().items()} == {("tiny", "gap", "random", "deletion"): 3}
    twice = read_scores([tmp_path / "run", tmp_path / "run"])
    assert len(twice.curves()["tiny", "gap", "random", "deletion"].p) == 10
    drawn = pages([tmp_path / "run"], "curves")[0]
    line = drawn.axes[0].get_lines()[0]
    assert line.get_ydata()[0] == pytest.approx(float(found["tiny", "gap", "grad-cam", "insertion"].p.mean(axis=0)[0]), abs=1e-6)
    assert Store(tmp_path / "run").curves().keys() == dict(Store(tmp_path / "run").each_curve()).keys()
    heat = pages([tmp_path / "run"], "heat")[0]
    means = shown.rows.groupby(["metric", "method"])["value"].mean()
    written = [text.get_text() for text in heat.axes[0].texts]
    for method in ("grad-cam", "random"):
        assert any(text.startswith(f"{means['insertion', method]:.1f}"[:3]) for text in written)


def test_looks_of_methods_differ_and_controls_are_grey() -> None:
    methods = [f"m{number}" for number in range(12)] + ["random", "centre"]
    found = looks(methods, FigureStyle())
    assert len({(look.colour, look.dash) for look in found.values()}) == len(methods)
    assert all(found[f"m{place}"].dash != found[f"m{place + 1}"].dash for place in range(11))  # where two lines coincide, both are seen
    assert found["random"].colour == found["centre"].colour == "#888888"
    assert len({look.colour for look in looks(methods[:3], FigureStyle(cmap="viridis")).values()}) == 3


def test_a_scatter_says_how_many_images_are_behind_its_points() -> None:
    rows = [
        {"image": f"{number}.png", "model": "net", "head": "gap", "method": method, "target": "1", "metric": metric, "value": float(number)}
        for number in range(6)
        for method in ("grad-cam", "random")
        for metric in ("insertion", "deletion")
    ]
    rows[0]["value"] = float("nan")
    (page,) = Scatter()(ScoreData(pd.DataFrame(rows), []), FigureStyle())
    assert any("n = 5 to 6" in text.get_text() for text in page.findobj(Text))


@pytest.mark.parametrize("each", ["method", "image"])
def test_points_of_methods_at_the_same_place_are_rings_of_growing_size_and_the_caption_says_so(each: str) -> None:
    def drawn(shifts: dict[str, float]) -> tuple[list[tuple[float, str]], str]:
        rows = [
            {
                "image": f"{i}.png",
                "model": "net",
                "head": "gap",
                "method": method,
                "target": "1",
                "metric": metric,
                "value": shift + i * slope,
            }
            for method, shift in shifts.items()
            for i in range(3)
            for metric, slope in (("insertion", 9.0), ("deletion", 5.0))
        ]
        (page,) = Scatter(each)(ScoreData(pd.DataFrame(rows), []), FigureStyle())  # type: ignore[arg-type]
        lines = [line for line in page.axes[0].get_lines() if line.get_marker() not in ("None", "", None)]
        text = " ".join(text.get_text() for text in page.findobj(Text))
        return [(line.get_markersize(), line.get_markerfacecolor()) for line in lines], text

    apart, said = drawn({"grad-cam": 0.0, "layer-cam": 30.0})
    assert len({size for size, _ in apart}) == 1
    assert "ring" not in said
    alike, said = drawn({"grad-cam": 0.0, "layer-cam": 0.0, "random": 0.0, "score-cam": 30.0})
    sizes = [size for size, _ in alike]
    assert sizes[0] < sizes[1] < sizes[2]  # each is seen around those before it
    assert sizes[3] == sizes[0]
    assert [face == "none" for _, face in alike] == [False, True, True, False]
    assert "a ring: another method at the same place" in said


def test_methods_at_the_same_place_are_counted_as_if_each_pair_were_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    points = [[(float(x), float(y)) for x, y in torch.rand(40, 2, generator=generator) * 3 - 1] for _ in range(4)]
    for reach in ((0.1, 0.3), (1e-6, 1e-6), (5.0, 5.0)):
        expected = [
            [
                sum(any(abs(a - x) <= reach[0] and abs(b - y) <= reach[1] for a, b in before) for before in points[:number])
                for x, y in several
            ]
            for number, several in enumerate(points)
        ]
        assert methods_before(points, reach) == expected
