"""Comparison tables from tidy rows."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from scipy import stats

from xattn.metrics.tables import comparison


def rows_of(values: dict[str, list[float]], metric: str = "average-drop", **columns: object) -> pd.DataFrame:
    """One row per method and image."""
    given = {"model": "net", "head": "gap", "metric": metric, "target_rule": "label", "target": "1", "label": 1.0, "predicted": 1.0}
    rows = [
        {**given, "method": method, "image": f"{number}.png", "value": value, "degenerate": False, **columns}
        for method, of_images in values.items()
        for number, value in enumerate(of_images)
    ]
    return pd.DataFrame(rows)


def test_two_images_give_an_interval_within_the_range_of_the_metric_and_a_note() -> None:
    table = comparison(rows_of({"grad-cam": [0.0, 100.0]}))
    markdown = table.text("markdown")
    assert "50 [0, 100]" in markdown
    assert "n is below 30" in markdown
    assert "635" not in markdown


def test_average_increase_and_accuracy_have_wilson_s_interval() -> None:
    rows = rows_of({"grad-cam": [0.0] * 5 + [100.0]}, "average-increase")
    rows.loc[0, "predicted"] = 2.0
    line = comparison(rows).frame.iloc[0]
    one, five = (stats.binomtest(count, 6).proportion_ci(method="wilson") for count in (1, 5))
    assert line[["average-increase", "average-increase low", "average-increase high"]].tolist() == pytest.approx(
        [100 / 6, 100 * one.low, 100 * one.high]
    )
    assert line[["accuracy", "accuracy low", "accuracy high"]].tolist() == pytest.approx([500 / 6, 100 * five.low, 100 * five.high])


def test_no_mark_rests_on_four_images_that_differ() -> None:
    flat = [10.0] * 40
    few, many = [90.0] * 4 + flat[4:], [90.0] * 12 + flat[12:]
    rounding = [value + 1e-9 for value in flat]
    table = comparison(rows_of({"random": flat, "few": few, "many": many, "rounding": rounding}), "random")
    p = table.frame.set_index("method")["average-drop p"]
    assert p["few"] > 0.05 > p["many"]
    assert p["rounding"] == 1
    marked = {line.split("|")[3].strip() for line in table.text("markdown").splitlines() if "▽" in line and line.startswith("|")}
    assert marked == {"many"}


def test_what_is_not_decided_says_how_many_images_would_decide_it() -> None:
    reference, better = [50.0, 40.0] * 20, [49.0, 30.0] * 20
    shaky = [value + (9 if number % 3 else -16) for number, value in enumerate(reference)]
    table = comparison(rows_of({"random": reference, "better": better, "shaky": shaky}), "random")
    found = table.frame.set_index("method")
    assert found.loc["better", "average-drop p"] < 0.05
    assert found.loc["shaky", "average-drop p"] > 0.05
    differences = pd.Series(shaky) - pd.Series(reference)
    about = (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) ** 2 * differences.var() / differences.mean() ** 2
    assert about > 40
    assert 0 < found.loc["shaky", "average-drop needed"] - about < 4
    (note,) = [note for note in table.notes if note.startswith("Not decided")]
    assert note.endswith(f"find 80% with so many: AD of shaky about {float(f'{about:.2g}'):,.0f}.")
    assert not any(note.startswith("Not decided") for note in comparison(rows_of({"random": reference, "better": better}), "random").notes)


def test_degenerate_maps_are_left_out_of_every_column_on_demand() -> None:
    rows = pd.concat(
        [rows_of({"grad-cam": [10.0, 20.0, 100.0]}), rows_of({"grad-cam": [2.0, 4.0, math.nan]}, "sparsity")], ignore_index=True
    )
    rows.loc[rows["image"] == "2.png", ["degenerate", "predicted"]] = [True, 3.0]
    whole = comparison(rows).frame.iloc[0]
    assert whole[["average-drop", "sparsity", "n", "degenerate_share"]].tolist() == pytest.approx([130 / 3, 3, 3, 1 / 3])
    assert whole["accuracy"] == pytest.approx(200 / 3)
    table = comparison(rows, without_degenerate=True)
    left = table.frame.iloc[0]
    assert left[["average-drop", "sparsity", "accuracy", "n", "degenerate_share"]].tolist() == pytest.approx([15, 3, 100, 2, 1 / 3])
    assert "Left out of every column but the last: 1 degenerate map" in table.text("markdown")


def test_a_method_whose_maps_are_all_degenerate_keeps_an_empty_row() -> None:
    rows = pd.concat([rows_of({"random": [1.0, 2.0]}), rows_of({"grad-cam": [100.0, 100.0]}, degenerate=True)])
    table = comparison(rows, "random", without_degenerate=True)
    line = table.frame.set_index("method").loc["grad-cam"]
    assert (line["n"], line["degenerate_share"]) == (0, 1)
    assert math.isnan(line["average-drop"])
    assert [cell.strip() for cell in table.text("markdown").splitlines()[3].split("|")[3:5]] == ["grad-cam", "–"]


def test_a_table_with_several_fills_says_how_often_methods_change_places() -> None:
    means = {
        "deletion": [1, 2, 3],
        "deletion:fill=black": [1, 3, 2],
        "deletion:fill=noise": [3, 2, 1],
        "deletion:step=9,fill=black": [1, 2, 3],
    }
    rows = pd.concat([rows_of({f"m{k}": [float(value)] * 2 for k, value in enumerate(of)}, metric) for metric, of in means.items()])
    notes = [note for note in comparison(rows).notes if "change places" in note]
    # default and black: one pair of three; default and noise: all three; black and noise: two
    assert notes == [
        "deletion (the default fill, fill=black, fill=noise): 6 of 9 pairs of methods (67%) change places between two of the 3 fills, over "
        "all pairs of fills."
    ]
    two = comparison(rows[rows["metric"].isin(["deletion", "deletion:fill=black"])])
    assert "1 of 3 pairs of methods (33%) change places between the two fills." in " ".join(two.notes)
    assert not any("change places" in note for note in comparison(rows[rows["metric"] == "deletion"]).notes)
