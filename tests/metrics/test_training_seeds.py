"""Means over seeds of training and pictures, by known answers, a slow replica and simulation."""

from __future__ import annotations

import math
import random

import pandas as pd
import pytest
from scipy import stats

from xattn.errors import InputError, NameUnknownError, SettingError
from xattn.metrics.paired_tests import equivalence
from xattn.metrics.significance import significance
from xattn.metrics.statistics import holm, mean_interval, proportion_interval
from xattn.metrics.tables import comparison
from xattn.metrics.training_seeds import common_names, compared, crossed


def _drawn(draw: random.Random, seeds: int, n: int, of_seeds: float, of_pictures: float = 20.0, rest: float = 10.0) -> list[list[float]]:
    """Values of crossed effects whose mean is 0, the pictures' skewed."""
    pictures = [of_pictures * (draw.expovariate(1) - 1) for _ in range(n)]
    effects = [draw.gauss(0, of_seeds) for _ in range(seeds)]
    return [[effect + picture + draw.gauss(0, rest) for picture in pictures] for effect in effects]


def test_one_seed_is_student_s_interval_and_test_over_pictures() -> None:
    draw = random.Random(0)
    one, other = ([draw.random() for _ in range(30)] for _ in range(2))
    assert crossed([one]).difference == pytest.approx(mean_interval(one))
    found, wanted = crossed([one], [other]), stats.ttest_rel(one, other)
    assert found.p == pytest.approx(wanted.pvalue)
    assert found.difference[1:3] == pytest.approx(tuple(wanted.confidence_interval()))
    assert crossed([one, one]).difference == pytest.approx(mean_interval(one))  # equal seeds add nothing


def test_pictures_that_do_not_matter_leave_student_s_interval_over_seeds() -> None:
    means = [1.0, 2.0, 4.0]
    assert crossed([[mean] * 50 for mean in means]).difference[:3] == pytest.approx(mean_interval(means)[:3])
    assert crossed([[mean] * 50 for mean in means]).p == pytest.approx(stats.ttest_1samp(means, 0).pvalue)
    other = [2.0, 5.0]
    found = crossed([[mean] * 50 for mean in means], [[mean] * 50 for mean in other]).difference
    halves = [stats.t.ppf(0.975, len(own) - 1) * stats.sem(own) for own in (means, other)]
    assert found.high - found.mean == pytest.approx(math.hypot(*halves))


def test_the_half_width_combines_those_of_the_mean_squares_of_a_two_way_table() -> None:
    draw = random.Random(1)
    values, seeds, n = _drawn(draw, 3, 12, 8.0), 3, 12
    grand = sum(map(sum, values)) / (seeds * n)
    rows = [sum(row) / n for row in values]
    columns = [sum(row[i] for row in values) / seeds for i in range(n)]
    a = n * sum((mean - grand) ** 2 for mean in rows) / (seeds - 1)
    b = seeds * sum((mean - grand) ** 2 for mean in columns) / (n - 1)
    e = sum((values[s][i] - rows[s] - columns[i] + grand) ** 2 for s in range(seeds) for i in range(n)) / ((seeds - 1) * (n - 1))
    assert a > e
    of_seeds = stats.t.ppf(0.975, seeds - 1) ** 2 * (a - e) / (seeds * n)
    half = math.sqrt(of_seeds + stats.t.ppf(0.975, n - 1) ** 2 * b / (seeds * n))
    assert crossed(values).difference == pytest.approx((grand, grand - half, grand + half, n))
    assert crossed(values, limits=(grand - half / 2, math.inf)).difference.low == pytest.approx(grand - half / 2)


def test_nothing_and_one_picture_have_no_interval_and_equal_values_one_of_no_width() -> None:
    assert crossed([[], []]).difference.n == 0
    one = crossed([[3.0], [5.0]]).difference
    assert (one.mean, one.n) == (4.0, 1)
    assert math.isnan(one.low)
    same = crossed([[2.0, 2.0], [2.0, 2.0]])
    assert same.difference == (2.0, 2.0, 2.0, 2)
    assert math.isnan(same.p)  # without a spread nothing is known
    assert crossed([[0.0, 0.0], [0.0, 0.0]]).p == 1.0


def test_three_seeds_cover_what_pictures_alone_do_not() -> None:
    draw, both, alone = random.Random(2), 0, 0
    for _ in range(200):
        values = _drawn(draw, 3, 60, 10.0)
        low, high = crossed(values).difference[1:3]
        both += low <= 0 <= high
        pictures = mean_interval([sum(column) / 3 for column in zip(*values, strict=True)])
        alone += pictures.low <= 0 <= pictures.high
    assert both >= 182  # 91 %
    assert alone < 140


def test_tests_of_few_seeds_err_no_more_than_they_say_at_any_level_and_the_interval_of_95_percent_more() -> None:
    draw, levels = random.Random(12), (0.05, 0.01)
    wrong = {any_level: [0, 0] for any_level in (False, True)}
    for _ in range(300):
        values = _drawn(draw, 2, 100, 10.0, of_pictures=3.0)
        for any_level, counts in wrong.items():
            p = crossed(values, any_level=any_level).p
            for place, level in enumerate(levels):
                counts[place] += p < level
    assert wrong[True][0] <= 25  # 15 expected
    assert wrong[True][1] <= 9  # 3 expected
    assert wrong[False][1] > 12  # seeds that agree by chance leave nothing of their spread


def _rows(values: dict[tuple[str, str, str], list[float]], predicted: dict[str, list[int]] | None = None) -> pd.DataFrame:
    """Tidy rows of some metric's values, by model, head and method; labels are 0."""
    return pd.DataFrame(
        {
            **{"image": f"{number}.png", "model": model, "head": head, "method": method, "metric": "average-drop", "value": value},
            **{"target": str((predicted or {}).get(model, [0] * 99)[number]), "target_rule": "predicted", "degenerate": False},
            **{"label": 0.0, "predicted": float((predicted or {}).get(model, [0] * 99)[number])},
        }
        for (model, head, method), own in values.items()
        for number, value in enumerate(own)
    )


def test_a_table_has_one_row_for_all_seeds_and_tests_methods_within_them() -> None:
    draw = random.Random(4)
    maps = {
        ("net@seed" + str(seed), "gap", method): [draw.uniform(10, 20) + 5 * (method == "b") + seed for _ in range(20)]
        for seed in range(3)
        for method in "ab"
    }
    predicted = {f"net@seed{seed}": [int(number < seed) for number in range(20)] for seed in range(3)}  # each network its own class
    maps[("other", "gap", "a")] = [draw.uniform(10, 20) for _ in range(20)]
    table = comparison(_rows(maps, predicted), against="a", seeds=r"@seed\d")
    line = table.frame.set_index(["model", "method"]).loc[("net", "b")]
    own, reference = ([maps[(f"net@seed{seed}", "gap", method)] for seed in range(3)] for method in "ba")
    wanted = crossed(own, limits=(0, 100)).difference
    assert (line["average-drop"], line["average-drop low"], line["average-drop high"]) == pytest.approx(wanted[:3])
    differences = [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(own, reference, strict=True)]
    tested = crossed(differences, any_level=True)
    assert line["average-drop difference"] == pytest.approx(tested.difference.mean)
    assert line["average-drop difference low"] == pytest.approx(tested.difference.low)
    assert line["average-drop p"] == pytest.approx(tested.p)
    assert (line["n"], line["seeds"]) == (20, 3)
    right = crossed([[100.0 * (guess == 0) for guess in predicted[f"net@seed{seed}"]] for seed in range(3)], limits=(0, 100)).difference
    shares = [100.0 * sum(predicted[f"net@seed{seed}"][number] == 0 for seed in range(3)) / 3 for number in range(20)]
    alone = proportion_interval(shares, (0, 100))
    assert line["accuracy"] == pytest.approx(right.mean)
    assert line["accuracy low"] <= min(right.low, alone.low)
    assert line["accuracy high"] >= max(right.high, alone.high)
    assert table.frame.set_index("model").loc["other", "seeds"] == 1
    assert table.frame.set_index("model").loc["other", "average-drop low"] == mean_interval(maps[("other", "gap", "a")], (0, 100)).low
    text = table.text("markdown")
    assert "seeds" in text
    assert "means over networks trained with them and over the images that all of them have" in text
    assert "of several seeds the t-test over seeds and pictures" in text
    only = comparison(_rows({key: own for key, own in maps.items() if key[0] != "other"}), seeds=r"@seed\d")
    for form in ("latex", "html", "typst"):
        assert "Seeds of training: 3." in only.text(form)


def test_a_picture_that_one_network_has_no_value_of_is_left_out_for_all() -> None:
    maps = {("net1", "gap", "a"): [1.0, 2.0, 3.0, math.nan], ("net2", "gap", "a"): [3.0, 2.0, 4.0, 50.0]}
    line = comparison(_rows(maps), seeds=r"\d").frame.iloc[0]
    assert line["average-drop"] == pytest.approx(2.5)
    assert line["average-drop low"] == pytest.approx(crossed([[1, 2, 3], [3, 2, 4]], limits=(0, 100)).difference.low)


def test_rounding_is_no_difference_and_shares_without_a_spread_have_wilson_s_interval() -> None:
    draw = random.Random(6)
    base = [draw.uniform(10, 20) for _ in range(40)]
    nets = {(f"net{seed}", "gap", "a"): [value + seed for value in base] for seed in range(2)}
    noisy = {(*key[:2], "b"): [value + draw.gauss(0, 1e-7) for value in own] for key, own in nets.items()}
    found = comparison(_rows(nets | noisy, {f"net{seed}": [0] * 40 for seed in range(2)}), against="a", seeds=r"\d").frame
    line = found.set_index("method").loc["b"]
    assert line["average-drop p"] == 1
    assert line["average-drop difference"] == 0
    assert line["accuracy"] == 100
    assert line["accuracy low"] == pytest.approx(proportion_interval([100.0] * 40, (0, 100)).low)


def test_n_is_of_the_pictures_that_all_networks_have_and_none_in_common_is_refused() -> None:
    rows = _rows({("net1", "gap", "a"): [1.0] * 20, ("net2", "gap", "a"): [2.0] * 20})
    some = rows[(rows["model"] == "net1") | (rows["image"] < sorted(rows["image"].unique())[5])]
    assert comparison(some, seeds=r"\d").frame["n"].tolist() == [5]
    apart = rows.assign(image=[f"{model} {image}" for model, image in zip(rows["model"], rows["image"], strict=True)])
    with pytest.raises(InputError, match="the 2 networks of net · gap · a have no picture in common"):
        comparison(apart, seeds=r"\d")


def test_networks_of_other_names_are_independent_seeds_and_of_the_same_names_pairs() -> None:
    draw = random.Random(5)
    values = [[draw.random() for _ in range(15)] for _ in range(5)]
    maps = {(f"x{number}", "gap", "a"): own for number, own in enumerate(values[:3])}
    maps |= {(f"y{number}", "gap", "a"): own for number, own in enumerate(values[3:])}
    line = comparison(_rows(maps), against="y", seeds=r"\d").frame.set_index("model").loc["x"]
    assert line["average-drop p"] == pytest.approx(crossed(values[:3], values[3:], any_level=True).p)
    heads = {(f"x{number % 2}", head, "a"): values[number] for number, head in enumerate(("gap", "gap", "ep", "ep"))}
    line = comparison(_rows(heads), against="gap", seeds=r"\d").frame.set_index("head").loc["ep"]
    pairs = [[x - y for x, y in zip(values[number + 2], values[number], strict=True)] for number in range(2)]
    assert line["average-drop p"] == pytest.approx(crossed(pairs, any_level=True).p)
    one = {("x0", "gap", "a"): values[0], ("x1", "gap", "a"): values[1], ("z", "gap", "a"): values[2]}
    line = comparison(_rows(one), against="z", seeds=r"\d").frame.set_index("model").loc["x"]
    assert line["average-drop p"] == pytest.approx(crossed(values[:2], [values[2]], any_level=True).p)


def test_names_lose_the_seed_and_brackets_that_held_it_and_others_are_refused() -> None:
    assert common_names(["net (runs/s1)", "net (runs/s2)"], r"runs/s\d") == {"net (runs/s1)": "net", "net (runs/s2)": "net"}
    with pytest.raises(InputError, match="no two models have the same name without 'seed': give a pattern that matches the seed in a, b"):
        common_names(["a", "b"], "seed")
    with pytest.raises(SettingError, match="a regular expression"):
        common_names(["a", "b"], "(")
    with pytest.raises(NameUnknownError, match="net1"):
        comparison(_rows({("net1", "gap", "a"): [1.0, 2.0], ("net2", "gap", "a"): [1.0, 2.0]}), against="net1", seeds=r"(?<=net)\d")


def _net(
    draw: random.Random, methods: dict[str, tuple[float, float]], seeds: int = 3, n: int = 40
) -> dict[tuple[str, str, str], list[float]]:
    """Values of networks of several seeds: of each method its distance from the picture's, and how far the seeds are apart in it."""
    found = {}
    for seed in range(seeds):
        base = [draw.uniform(10, 20) for _ in range(n)]
        for method, (distance, spread) in methods.items():
            found[(f"net@seed{seed}", "gap", method)] = [value + distance + seed * spread + draw.gauss(0, 2) for value in base]
    return found


def _values(maps: dict[tuple[str, str, str], list[float]], method: str) -> list[list[float]]:
    return [own for key, own in maps.items() if key[2] == method and key[0].startswith("net")]


def test_methods_of_several_seeds_are_tested_over_seeds_and_pictures_and_the_rest_is_left_out_by_name() -> None:
    draw = random.Random(7)
    maps = _net(draw, {"a": (0, 0), "b": (0.5, 1), "c": (6, 0)})
    maps |= {("other", "gap", method): [draw.uniform(10, 20) for _ in range(40)] for method in "ab"}
    predicted = {f"net@seed{seed}": [int(number % 3 < seed) for number in range(40)] for seed in range(3)}  # each network its own class
    found = significance(_rows(maps, predicted), seeds=r"@seed\d")
    pairs = found.pairs.set_index(["model", "method", "other_method"])
    tested = [
        crossed(
            [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(_values(maps, one), _values(maps, other), strict=True)],
            any_level=True,
        )
        for one, other in ("ab", "ac", "bc")
    ]
    own = pairs.loc["net"]
    assert own["p"].tolist() == pytest.approx([test.p for test in tested])
    assert own["difference_low"].tolist() == pytest.approx([test.difference.low for test in tested])
    other_p = stats.wilcoxon([x - y for x, y in zip(maps[("other", "gap", "a")], maps[("other", "gap", "b")], strict=True)]).pvalue
    assert pairs.loc[("other", "a", "b"), "p"] == pytest.approx(other_p)  # one network, and its ordinary test
    assert pairs["p_adjusted"].tolist() == pytest.approx(holm([*(test.p for test in tested), other_p]))
    wins = sum(x < y for rows in zip(_values(maps, "a"), _values(maps, "b"), strict=True) for x, y in zip(*rows, strict=True))
    assert own.loc[("a", "b"), "better_share"] == pytest.approx(wins / 120)
    assert own.loc[("a", "c"), "conclusion"] == "a is better"
    assert own.loc[("a", "b"), "needed"] == math.inf
    said = "40 pictures and 3 seeds do not decide this; with seeds so far apart more pictures alone would not"
    assert own.loc[("a", "b"), "conclusion"] == said
    method = found.methods.set_index(["model", "method"]).loc[("net", "b")]
    assert (method["mean"], method["low"], method["high"]) == pytest.approx(crossed(_values(maps, "b"), limits=(0, 100)).difference[:3])
    assert (method["n"], method["seeds"], method["interval"]) == (40, 3, "crossed effects")
    assert found.rankings.empty
    text = found.text()
    assert "40 pictures, and 3 seeds of net · gap: this speaks of networks trained like these." in text
    assert "40 pictures of one network (other · gap)" in text
    assert "no form over seeds and pictures: the tests of Friedman, Nemenyi, Wilcoxon and McNemar, and how many pictures" in text
    assert "Family: 4 pairs of a metric" in text


def test_pictures_and_networks_without_a_value_of_some_method_fall_out_and_are_said() -> None:
    maps = _net(random.Random(8), {"a": (0, 0), "b": (1, 0)})
    maps[("net@seed1", "gap", "b")][5] = math.nan
    rows = _rows(maps)
    lacks = rows[(rows["model"] != "net@seed2") | (rows["method"] != "b")]
    found = significance(lacks, seeds=r"@seed\d")
    assert (found.pairs["n"].item(), found.pairs["seeds"].item(), found.pairs["left_out"].item()) == (39, 2, 1)
    rest = [[value for number, value in enumerate(own) if number != 5] for own in _values(maps, "a")[:2]]
    assert found.methods["mean"][0] == pytest.approx(sum(map(sum, rest)) / 78)
    assert "Left out, without a value of some method: net@seed2. Left out: 1 of 40, without a value of b of 1." in found.text()
    with pytest.raises(InputError, match="no network of net · gap has values of average-drop for every compared method"):
        significance(rows[(rows["model"] == "net@seed2") ^ (rows["method"] == "b")], seeds=r"@seed\d")
    flagged = rows.assign(degenerate=(rows["model"] == "net@seed0") & (rows["image"] == "7.png"))
    assert significance(flagged, seeds=r"@seed\d").methods["degenerate_share"].tolist() == pytest.approx([1 / 117] * 2)
    assert significance(flagged, without_degenerate=True, seeds=r"@seed\d").pairs["n"].item() == 38


def test_methods_of_different_networks_are_not_compared_as_if_of_one() -> None:
    rows = _rows(_net(random.Random(8), {"a": (0, 0), "b": (1, 0)}))
    apart = rows[((rows["model"] == "net@seed1") & (rows["method"] == "a")) | ((rows["model"] == "net@seed2") & (rows["method"] == "b"))]
    with pytest.raises(InputError, match="no network of net · gap has values of average-drop for every compared method"):
        significance(apart, seeds=r"@seed\d")


def test_one_seed_that_is_left_is_told_as_one_and_a_pair_is_over_the_seeds_that_both_have() -> None:
    maps = _net(random.Random(8), {"a": (0, 0), "b": (1, 0)})
    rows = _rows(maps)
    text = significance(rows[(rows["model"] == "net@seed0") | (rows["method"] == "a")], seeds=r"@seed\d").text()
    assert "40 pictures of one seed of net · gap: this speaks of these networks only. Left out, without a value of some method:" in text
    heads = rows[rows["method"] == "a"].assign(head="gap")
    other = heads[heads["model"] == "net@seed0"].assign(head="br-npa", value=heads["value"] + 1)
    both = pd.concat([heads, other], ignore_index=True)
    found = significance(both, "gap", seeds=r"@seed\d")
    assert "(1 seed in common)" in found.text()
    assert found.pairs["difference"].abs().item() == pytest.approx(1)


def test_differences_that_do_not_vary_are_told_and_not_tested() -> None:
    maps = {(f"net@seed{seed}", "gap", method): [20.0 + (method == "b")] * 12 for seed in range(2) for method in "ab"}
    pair = significance(_rows(maps), seeds=r"@seed\d").pairs.iloc[0]
    assert math.isnan(pair["p"])
    assert pair["conclusion"] == "a is better by the same everywhere: differences that do not vary are not tested"


def test_a_difference_lies_within_what_can_be() -> None:
    one, other = pd.DataFrame({"s": [100.0, 0.0], "t": [0.0, 0.0]}), pd.DataFrame({"s": [0.0, 100.0], "t": [100.0, 100.0]})
    found = compared(one, other, (0.0, 100.0)).comparison.difference
    assert (found.low, found.mean) == (-100, -50)


def test_yes_or_no_metrics_and_pictures_with_several_labels_are_tested_over_seeds_too() -> None:
    draw = random.Random(9)
    maps = {key: [100.0 * (value > 15) for value in own] for key, own in _net(draw, {"a": (0, 0), "b": (3, 0)}).items()}
    found = significance(_rows(maps).assign(metric="average-increase"), seeds=r"@seed\d")
    apart = [[x - y for x, y in zip(*rows, strict=True)] for rows in zip(_values(maps, "a"), _values(maps, "b"), strict=True)]
    assert found.pairs[["test", "p"]].iloc[0].tolist() == ["t, crossed effects", pytest.approx(crossed(apart, any_level=True).p)]
    both = [_rows(maps).assign(target_rule="labels"), _rows(maps).assign(target_rule="labels", target="1", value=0.0)]
    assert significance(pd.concat(both), seeds=r"@seed\d").pairs["difference"].item() == pytest.approx(crossed(apart).difference.mean / 2)


def test_heads_on_the_same_networks_are_paired_and_other_networks_independent() -> None:
    draw = random.Random(10)
    values = [[draw.random() for _ in range(15)] for _ in range(5)]
    heads = {(f"x{number % 2}", head, "a"): values[number] for number, head in enumerate(("gap", "gap", "ep", "ep"))}
    pairs = [[x - y for x, y in zip(values[number + 2], values[number], strict=True)] for number in range(2)]
    assert significance(_rows(heads), "gap", seeds=r"\d").pairs["p"].item() == pytest.approx(crossed(pairs, any_level=True).p)
    part = {key: own for key, own in heads.items() if key[:2] != ("x1", "ep")}  # a head that one network has alone
    found = significance(_rows(part | {("x2", "gap", "a"): values[4]}), "gap", seeds=r"\d").pairs
    assert (found["seeds"].item(), found["p"].item()) == (1, pytest.approx(crossed(pairs[:1], any_level=True).p))
    apart = {(f"x{number}", "gap", "a"): own for number, own in enumerate(values[:3])}
    apart |= {(f"y{number}", "gap", "a"): own for number, own in enumerate(values[3:])}
    found = significance(_rows(apart), "y", seeds=r"\d").pairs
    assert found["p"].item() == pytest.approx(crossed(values[:3], values[3:], any_level=True).p)
    wins = [x < y for one in values[:3] for other in values[3:] for x, y in zip(one, other, strict=True)]
    assert found["better_share"].item() == pytest.approx(sum(wins) / 90)


def test_equivalence_over_seeds_is_the_two_one_sided_test_of_whichever_varies() -> None:
    draw = random.Random(11)
    one, none = pd.DataFrame({"s": [draw.gauss(0.2, 1) for _ in range(30)]}), pd.DataFrame({"s": [0.0] * 30})
    for margin in (0.1, 0.7, 1.5):
        assert compared(one, none).within(margin) == pytest.approx(equivalence(one["s"].tolist(), margin))
    means = [0.1, 0.3, 0.2]
    seeds = pd.DataFrame([means] * 30)
    assert compared(seeds, 0 * seeds).within(0.4) == pytest.approx(equivalence(means, 0.4))
    same = pd.DataFrame([[1.0, 1.0]] * 5)
    assert compared(same, 0 * same).within(1) == 1
    assert math.isnan(compared(same, 0 * same).within(2))  # without a spread nothing is known
