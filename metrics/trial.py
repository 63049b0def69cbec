"""Tests metrics from tidy rows: whether a metric ranks planted wrong maps behind those of methods, and whether its order is reliable.

Sources: Adebayo et al. 2018 and Poppi et al. 2021 (maps that a metric must not rank high); Tomsett et al. 2020 (reliability of metrics).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from xattn.catalogue import is_bound, is_planted
from xattn.errors import InputError, NameUnknownError
from xattn.metrics.base import metrics
from xattn.metrics.sheets import FAILS, SIGNIFICANT
from xattn.metrics.statistics import adjusted, mean_interval, paired, unit_of
from xattn.text import counted

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["passes", "fails", "undecided"]
Form = Literal["markdown", "csv"]

LEAST_PICTURES = 6  # with fewer, the smallest p of a two-sided signed-rank test, 2/2ⁿ, is above 0.05
MOST_UNITS = 2000  # most pictures for one reliability: its memory grows with their square
AGREED = 0.667  # Krippendorff 2004: the lowest α from which tentative conclusions are drawn
CHANCE = "random"
EXPLAINED = ["image", "target"]


@dataclass(frozen=True, repr=False)
class Trial:
    """Results of a trial of metrics.

    Attributes:
        frame: one row per model × head × metric: `verdict` and `reason`; `methods` and `planted`, the number of maps of each; `n`, the
            number of pictures; `behind`, the number of planted maps behind the methods, and the names of those `ahead`, `undecided` and
            `undefined`; `reached`, the position of the methods between `random` (0) and the best of a greedy search (1), if the rows have
            these; `agreement of pictures` and `agreement of methods`, Krippendorff's α; `stability`, the lowest Spearman correlation of the
            order of maps with that of the same metric under other settings, and `least like`, these settings; with a truth also `truth`,
            `truth low` and `truth high`.
        notes: remarks that a reader needs.
    """

    frame: pd.DataFrame
    notes: tuple[str, ...]

    def text(self, form: Form = "markdown") -> str:
        """The trial as Markdown with its notes, or as CSV with every column and digit."""
        if form == "csv":
            return str(self.frame.to_csv(index=False))
        from tabulate import tabulate

        several = len(self.frame[["model", "head"]].drop_duplicates()) > 1
        truth = "truth" in self.frame
        headers = ["model", "head"] * several
        bound = bool(self.frame["reached"].notna().any())
        headers += ["metric", "verdict", "planted behind", *["reached"] * bound, "α of pictures", "α of methods", "stability"]
        headers += [*["truth"] * truth, "why"]
        lines = []
        for line in self.frame.to_dict("records"):
            cells = [line["model"], line["head"]] if several else []
            mark = f" {FAILS}" if line["verdict"] == "fails" else ""
            cells += [line["metric"], f"{line['verdict']}{mark}", f"{line['behind']} of {line['planted']}"]
            cells += [_written(line["reached"])] if bound else []
            cells += [_written(line[name]) for name in ("agreement of pictures", "agreement of methods", "stability")]
            cells += [_written(line["truth"], line["truth low"], line["truth high"])] if truth else []
            lines.append([*cells, line["reason"]])
        aligned = ["left"] * (2 * several + 2) + ["right"] * (4 + bound + truth) + ["left"]
        body = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
        return f"{body}\n\n" + "".join(f"- {note}\n" for note in self.notes)

    def __repr__(self) -> str:
        """The text, for terminals."""
        return self.text()


def trial(rows: pd.DataFrame, planted: Sequence[str] = (), truth: pd.DataFrame | None = None) -> Trial:
    """Tests every metric of some rows with planted wrong maps, and, if given, a known truth.

    A metric passes if each planted map is behind the methods: for each picture the median of the methods' values is taken, and a Wilcoxon
    signed-rank test over the pictures finds it better than the planted map's value (adjusted by Benjamini and Hochberg within the metric, p
    < 0.05). It fails if it ranks a planted map ahead of the methods by the same test, or, with a truth, if it orders maps against the
    truth: if the interval of its rank correlation lies below 0. Otherwise it is undecided.

    Args:
        rows: with the columns of `scores.csv`, of one run or several.
        planted: further methods that should be behind, in addition to the registered controls, such as methods that use no target.
        truth: how good each map is: columns image, model, head, method, target and value, higher for a better one.

    Raises:
        InputError: the rows have no scores, no methods or no planted maps.
        NameUnknownError: there are no rows of a method of `planted`.
    """
    rows = rows[rows["metric"].notna() & rows["method"].notna()]
    known = list(dict.fromkeys(rows["method"]))
    if missing := [name for name in planted if name not in known]:
        raise NameUnknownError("method in these runs", missing[0], known)
    cheats = [method for method in known if is_planted(method) or method in planted]
    methods = [method for method in known if method not in cheats and not is_bound(method)]
    if not methods or not cheats:
        lacks = "no method" if not methods else "no control"
        raise InputError(
            f"a trial compares methods with controls, and these rows have {lacks}: they are of {', '.join(known) or 'nothing'}. Add some "
            "(xattn explain … --method grad-cam --method random --method centre --method edges --method fake-cam --out RUN)."
        )
    lines = []
    for (model, head), group in rows.groupby(["model", "head"], sort=False):
        truths = None if truth is None else truth[(truth["model"] == model) & (truth["head"] == head)]
        tables = {str(metric): _table(of, str(metric)) for metric, of in group.groupby("metric", sort=False)}
        orders = {metric: table.mean() for metric, table in tables.items()}
        for metric, table in tables.items():
            line = {"model": model, "head": head, "metric": metric}
            line |= _against(metric, table, methods, cheats) | {"reached": _reached(metric, table, methods)}
            line |= _agreement(table, methods) | _stability(metric, orders)
            line |= {} if truths is None else _truth(table, truths)
            lines.append(line | _verdict(line))
    import pandas as pd

    return Trial(pd.DataFrame(lines), _notes(pd.DataFrame(lines), methods, cheats))


def _table(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """A metric's values, pictures × methods, higher for better ones."""
    table = rows.drop_duplicates([*EXPLAINED, "method"]).set_index([*EXPLAINED, "method"])["value"].unstack("method")
    return table if metrics.create(metric).metadata.better == "higher" else -table


def _against(metric: str, table: pd.DataFrame, methods: Sequence[str], cheats: Sequence[str]) -> dict[str, Any]:
    """Which planted maps are behind the methods."""
    floor = unit_of(metrics.create(metric).metadata.limits)
    own = table[[method for method in methods if method in table]].median(axis=1)
    here = [cheat for cheat in cheats if cheat in table]
    found = [paired(own.to_list(), table[cheat].to_list(), floor=floor) for cheat in here]
    said: dict[str, list[str]] = {"behind": [], "ahead": [], "undecided": [], "undefined": []}
    for cheat, comparison, p in zip(here, found, adjusted([comparison.p for comparison in found]), strict=True):
        place = "behind" if comparison.difference.mean > 0 else "ahead"
        apart = [one - other for one, other in zip(own, table[cheat], strict=True) if math.isfinite(one - other)]
        most = sum((value > 0) - (value < 0) for value in apart)
        agrees = (most >= 0) if place == "behind" else (most <= 0)  # a few large values must not outweigh most pictures
        place = place if p < SIGNIFICANT and agrees else "undecided"
        said["undefined" if math.isnan(p) else place].append(cheat)
    count = {"methods": sum(method in table for method in methods), "planted": len(here) - len(said["undefined"]), "n": len(table)}
    names = {place: ", ".join(said[place]) for place in ("ahead", "undecided", "undefined")}
    return count | {"behind": len(said["behind"])} | names


def _reached(metric: str, table: pd.DataFrame, methods: Sequence[str]) -> float:
    """Position of the mean of the methods' medians between that of `random` and the best of the bounds that search for this curve."""
    name, _, given = metric.partition(":")
    if any(f"{setting}=" in given for setting in ("protocol", "fill", "blur")):
        return math.nan  # bounds search for the curve with default settings
    bounds = [method for method in map(str, table.columns) if is_bound(method) and name == _searched(method)]
    if not bounds or CHANCE not in table:
        return math.nan
    own = table[[method for method in methods if method in table]].median(axis=1)
    both = table.assign(own=own)[["own", CHANCE, *bounds]].dropna()
    if both.empty:
        return math.nan
    reached, chance, best = float(both["own"].mean()), float(both[CHANCE].mean()), float(both[bounds].mean().max())
    return (reached - chance) / (best - chance) if best > chance else math.nan


def _searched(bound: str) -> str:
    """The metric that a bound searches for, from its setting `curve`."""
    return "insertion" if "curve=insertion" in bound.partition(":")[2].split(",") else "deletion"


def _agreement(table: pd.DataFrame, methods: Sequence[str]) -> dict[str, float]:
    """Krippendorff's α of ranks: pictures that rank methods, and methods that rank pictures; NaN if the package is missing."""
    own = table[[method for method in methods if method in table]]
    return {"agreement of pictures": _alpha(own.rank(axis=1)), "agreement of methods": _alpha(own.iloc[:MOST_UNITS].rank().T)}


def _alpha(ranks: pd.DataFrame) -> float:
    """Krippendorff's ordinal α, with raters in rows and ranked items in columns."""
    try:
        import krippendorff
    except ImportError:
        return math.nan
    ranks = ranks.loc[:, ranks.notna().sum() > 1]
    several = ranks.nunique(axis=1).max() > 1 if len(ranks) else False
    if min(ranks.shape) < 2 or not several:  # nothing is ranked
        return math.nan
    return float(krippendorff.alpha(reliability_data=ranks.to_numpy(), level_of_measurement="ordinal"))


def _stability(metric: str, orders: dict[str, pd.Series]) -> dict[str, Any]:
    """Similarity of the order of all maps to that of the same metric under other settings: the lowest correlation."""
    name = metric.partition(":")[0]
    same = {other: order for other, order in orders.items() if other.partition(":")[0] == name and order.nunique() > 1}
    others = {other: orders[metric].corr(order, method="spearman") for other, order in same.items() if metric in same}
    others = {other: r for other, r in others.items() if other != metric and not math.isnan(r)}
    if not others or orders[metric].notna().sum() < 3:
        return {"stability": math.nan, "least like": ""}
    least = min(others, key=others.__getitem__)
    return {"stability": others[least], "least like": least}


def _truth(table: pd.DataFrame, truth: pd.DataFrame) -> dict[str, float]:
    """The mean over pictures of Spearman's correlation between the metric and the truth, over the maps of a picture."""
    true = truth.drop_duplicates([*EXPLAINED, "method"]).set_index([*EXPLAINED, "method"])["value"].unstack("method")
    both = [method for method in table if method in true]
    true = true[both].reindex(table.index)
    found = table[both].where(true.notna()).rank(axis=1).corrwith(true.where(table[both].notna()).rank(axis=1), axis=1)
    interval = mean_interval(found.to_list(), (-1, 1))
    return {"truth": interval.mean, "truth low": interval.low, "truth high": interval.high}


def _verdict(line: dict[str, Any]) -> dict[str, str]:
    """The verdict, and its reason in words."""
    reasons = []
    verdict: Verdict = "passes"
    if not line["planted"]:
        return {"verdict": "undecided", "reason": "it has no value of any planted map"}
    if line["undecided"]:
        verdict = "undecided"
        reasons.append(f"it does not tell {line['undecided']} from the methods")
    if line["ahead"]:
        verdict = "fails"
        reasons.insert(0, f"it puts {line['ahead']} ahead of the methods")
    if line.get("truth high", math.nan) < 0:
        verdict = "fails"
        reasons.insert(0, "it orders maps against the truth")
    if not reasons:
        reasons.append("it puts every planted map behind the methods")
    if line["agreement of pictures"] < AGREED:
        reasons.append("pictures do not agree on the order of the methods")
    if line["stability"] < AGREED:
        reasons.append(f"its order turns with its settings ({line['least like']})")
    return {"verdict": verdict, "reason": "; ".join(reasons)}


def _notes(frame: pd.DataFrame, methods: Sequence[str], cheats: Sequence[str]) -> tuple[str, ...]:
    n = int(frame["n"].max())
    notes = [
        f"Methods: {', '.join(methods)}. Planted: {', '.join(cheats)}. n = {counted(n, 'picture')}.",
        "Behind: the median of the methods is better on the same pictures (Wilcoxon signed-rank, p < "
        f"{SIGNIFICANT}, Benjamini–Hochberg within a metric). A metric that fails is marked {FAILS}.",
        "A control may be right: for a network that looks at the centre, a Gaussian there is a good map. What fails on one network and on "
        "some pictures need not on others.",
    ]
    if n < LEAST_PICTURES:
        notes.append(f"Nothing can be found better or worse on {counted(n, 'picture')}: the test needs {LEAST_PICTURES} or more.")
    if frame["agreement of pictures"].isna().all() and not _has_krippendorff():
        notes.append("α is not computed: the package krippendorff is not installed (pip install 'xattn[reliability]').")
    else:
        notes.append(
            f"α: Krippendorff's, ordinal. Of pictures: whether they rank the methods alike ({AGREED} is the least that conclusions are "
            "drawn from); of methods: whether they rank the pictures alike."
        )
        if n > MOST_UNITS:
            notes.append(f"α of methods is over the first {MOST_UNITS} pictures.")
    if frame["stability"].notna().any():
        notes.append("Stability: the lowest Spearman correlation of the order of all maps with that under another setting of the metric.")
    if frame["reached"].notna().any():
        notes.append("Reached: how far the median of the methods is from random (0) to the best that a greedy search found (1).")
    if "truth" in frame:
        notes.append("Truth: Spearman's correlation, over the maps of a picture, of the metric with how well they follow the truth [95 %].")
    return tuple(notes)


def _has_krippendorff() -> bool:
    import importlib.util

    return importlib.util.find_spec("krippendorff") is not None


def _written(mean: float, low: float = math.nan, high: float = math.nan) -> str:
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return "–" if math.isnan(mean) else f"{mean:.2f}{ends}"
