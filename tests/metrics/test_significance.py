"""What may be concluded from rows: which pictures, which tests, which words."""

from __future__ import annotations

import io
import math
import random

import pandas as pd
import pytest
from scipy import stats

from tests.metrics.test_tables import rows_of
from xattn.errors import InputError, NameUnknownError, SettingError
from xattn.metrics.significance import significance
from xattn.metrics.statistics import Interval, holm, needed, rounded

DRAW = random.Random(0)
BASE = [DRAW.uniform(20, 60) for _ in range(40)]
METHODS = {
    "grad-cam": BASE,
    "same": [value + DRAW.gauss(0, 0.5) for value in BASE],
    "unclear": [value + 2 + DRAW.gauss(0, 12) for value in BASE],
    "random": [value + 20 + DRAW.gauss(0, 8) for value in BASE],
}


def pair(frame: pd.DataFrame, first: str, second: str) -> pd.Series:
    return frame[(frame["method"] == first) & (frame["other_method"] == second)].iloc[0]


def test_each_pair_is_better_equivalent_or_not_decided_with_the_number_of_pictures_that_would_decide_it() -> None:
    found = significance(rows_of(METHODS), margins={"average-drop": 2})
    assert len(found.pairs) == 6
    assert pair(found.pairs, "grad-cam", "random")["conclusion"] == "grad-cam is better"
    assert pair(found.pairs, "grad-cam", "same")["conclusion"] == "equivalent: within ±2"
    unclear = pair(found.pairs, "grad-cam", "unclear")
    count = unclear["needed"]
    assert 40 < count < 2000
    assert unclear["conclusion"] == f"40 pictures do not decide this; about {rounded(count):,} would"
    p = [
        stats.wilcoxon([a - b for a, b in zip(METHODS[one], METHODS[other], strict=True)]).pvalue
        for one, other in found.pairs[["method", "other_method"]].itertuples(index=False)
    ]
    assert found.pairs["p"].tolist() == pytest.approx(p)
    assert found.pairs["p_adjusted"].tolist() == pytest.approx(holm(p))
    assert "Family: 6 pairs of a metric" in found.text()


def test_needed_pictures_are_those_of_the_family_s_strictest_level() -> None:
    both = significance(rows_of(METHODS)).pairs
    alone = significance(rows_of({name: METHODS[name] for name in ("grad-cam", "unclear")})).pairs
    assert pair(both, "grad-cam", "unclear")["needed"] > pair(alone, "grad-cam", "unclear")["needed"]
    differs = [a - b for a, b in zip(METHODS["grad-cam"], METHODS["unclear"], strict=True)]
    interval = stats.t.interval(0.95, 39, sum(differs) / 40, stats.sem(differs))
    assert pair(alone, "grad-cam", "unclear")["needed"] == needed(Interval(sum(differs) / 40, *interval, 40))


def test_all_is_over_the_pictures_that_every_method_has_a_value_of_and_says_what_fell_out() -> None:
    values = {
        **METHODS,
        "same": [math.nan, math.inf, *METHODS["same"][2:]],
        "random": [METHODS["random"][0], math.nan, *METHODS["random"][2:]],
    }
    found = significance(rows_of(values))
    assert set(found.methods["n"]) == set(found.pairs["n"]) == {38}
    assert found.methods.set_index("method")["mean"]["grad-cam"] == pytest.approx(sum(BASE[2:]) / 38)
    assert found.methods.set_index("method")["lacking"].to_dict() == {"grad-cam": 0, "same": 2, "unclear": 0, "random": 1}
    text = found.text()
    assert "38 pictures of one network (net · gap): this speaks of that network only." in text
    assert "Left out: 2 of 40, without a value of same of 2, random of 1." in text


def test_pictures_with_a_degenerate_map_fall_out_for_all_methods_if_asked() -> None:
    rows = rows_of(METHODS)
    rows.loc[(rows["method"] == "same") & (rows["image"] == "3.png"), "degenerate"] = True
    assert significance(rows).methods.set_index("method")["degenerate_share"]["same"] == pytest.approx(1 / 40)
    assert set(significance(rows, without_degenerate=True).methods["n"]) == {39}


def test_yes_or_no_metrics_have_wilson_s_interval_and_mcnemar_s_test() -> None:
    one, other = [100.0] * 20 + [0.0] * 20, [100.0] * 8 + [0.0] * 32
    found = significance(rows_of({"grad-cam": one, "random": other}, "average-increase"))
    line = found.pairs.iloc[0]
    assert (line["test"], line["interval"], line["difference"]) == ("McNemar", "Bonett-Price", 30.0)
    assert line["p"] == pytest.approx(2 * 0.5**12)
    assert set(found.methods["interval"]) == {"Wilson"}
    assert line["better_share"] == pytest.approx((12 + 28 / 2) / 40)
    assert found.rankings.empty


def test_a_reference_makes_a_smaller_family() -> None:
    found = significance(rows_of(METHODS), "random")
    assert found.pairs["other_method"].tolist() == ["random"] * 3
    assert "Family: 3 pairs of a metric" in found.text()


def test_classifiers_are_compared_by_each_method_with_its_own() -> None:
    rows = pd.concat(
        [rows_of(METHODS), rows_of({name: [value + 5 for value in values] for name, values in METHODS.items()}, model="other")]
    )
    found = significance(rows, "net")
    assert found.pairs[["model", "other_model"]].drop_duplicates().to_numpy().tolist() == [["other", "net"]]
    assert found.pairs["difference"].tolist() == pytest.approx([5.0] * 4)
    assert "40 pictures of 2 networks: this speaks of these networks only." in found.text()
    assert set(found.pairs["conclusion"]) == {"net · gap is better"}


def test_a_picture_with_several_labels_counts_once() -> None:
    rows = pd.concat(
        [rows_of(METHODS, target_rule="labels"), rows_of({name: [0.0] * 40 for name in METHODS}, target_rule="labels", target="2")]
    )
    found = significance(rows)
    assert set(found.methods["n"]) == {40}
    assert found.methods.set_index("method")["mean"]["grad-cam"] == pytest.approx(sum(BASE) / 80)
    assert "A picture with several has the mean over them." in found.text()


def test_a_conclusion_names_the_better_one_whichever_way_is_better_and_says_where_mean_and_ranks_part() -> None:
    higher = significance(rows_of(METHODS, "average-gain"))
    assert pair(higher.pairs, "grad-cam", "random")["conclusion"] == "random is better"
    mostly = [value - 1 for value in BASE[:36]] + [value + 30 for value in BASE[36:]]
    found = significance(rows_of({"grad-cam": BASE, "mostly": mostly})).pairs.iloc[0]
    assert found["conclusion"] == "mostly is better on more pictures; the interval of the mean difference holds 0"
    mostly = [value - 1 for value in BASE[:34]] + [value + 60 for value in BASE[34:]]
    found = significance(rows_of({"grad-cam": BASE, "mostly": mostly})).pairs.iloc[0]
    assert found["conclusion"] == "they differ: grad-cam is better in the mean, mostly on more pictures"


def test_methods_are_compared_on_the_same_targets_of_a_picture() -> None:
    first = rows_of({"grad-cam": [10.0] * 12, "random": [10.0] * 12})
    second = rows_of({"grad-cam": [50.0] * 12, "random": [math.nan] * 12}).assign(target="b")
    found = significance(pd.concat([first, second])).pairs.iloc[0]
    assert (found["difference"], found["n"], found["left_out"]) == (0, 12, 0)


def test_rounding_has_no_ranks() -> None:
    values = {"grad-cam": BASE, "almost": [value + 1e-9 for value in BASE], "nearly": [value + 2e-9 for value in BASE]}
    assert significance(rows_of(values)).rankings["p"].item() == 1
    small = [1e-7 * (1 + number % 4) for number in range(40)]
    found = significance(rows_of({"grad-cam": small, "worse": [value + 3e-7 for value in small]}, "infidelity")).pairs.iloc[0]
    assert found["p"] < 1e-6  # of a metric without a unit, small values are no rounding


def test_no_discordant_picture_among_few_is_not_equivalent() -> None:
    same = [100.0] * 5 + [0.0] * 5
    found = significance(rows_of({"grad-cam": same, "random": same}, "average-increase"), margins={"average-increase": 2}).pairs.iloc[0]
    assert found["equivalence_p"] > 0.3


def test_csv_has_a_row_per_method_pair_and_ranking() -> None:
    frame = pd.read_csv(io.StringIO(significance(rows_of(METHODS)).text("csv")))
    assert frame["result"].value_counts().to_dict() == {"pair": 6, "method": 4, "ranking": 1}
    assert frame.set_index("result").loc["ranking", "compared"] == 4


def test_what_cannot_be_tested_is_refused_in_words() -> None:
    rows = rows_of(METHODS)
    with pytest.raises(NameUnknownError, match="average-dorp"):
        significance(rows, margins={"average-dorp": 1})
    with pytest.raises(SettingError, match="above 0; got -1"):
        significance(rows, margins={"average-drop": -1})
    with pytest.raises(NameUnknownError, match="bonferroni"):
        significance(rows, adjustment="bonferroni")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least two methods"):
        significance(rows_of({"grad-cam": BASE}))
    with pytest.raises(NameUnknownError, match="radnom"):
        significance(rows, "radnom")
