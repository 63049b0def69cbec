"""Kinds of evidence: the metrics of each, how methods rank by each, and contradictions between two kinds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau

from xattn.catalogue import is_planted
from xattn.metrics import metrics
from xattn.metrics.statistics import Interval, holm, mean_interval, paired
from xattn.study.trial import trial_runs

KINDS = {
    "faithfulness": ("deletion", "insertion", "average-drop"),
    "localisation": ("pointing-game", "energy-pointing", "relevance-rank", "segmentation-ap"),
    "true parts": (
        "parts-removal",
        "parts-shapley",
        "parts-preservation",
        "parts-deletion",
        "distractibility",
        "background-independence",
        "target-sensitivity",
        "clever-hans",
    ),
}
SAME_FOR_ALL = ("background-independence",)  # describes the network, and ranks no method
SIGNIFICANT = 0.05
DRAWS = 400  # bootstrap resamples


@dataclass(frozen=True)
class Ranks:
    """Ranks of methods by one kind of evidence on one network.

    Attributes:
        kind: kind of evidence.
        data: the pictures.
        network: name of the model.
        ranks: images × methods, 1 is best, averaged over the metrics of the kind.
    """

    kind: str
    data: str
    network: str
    ranks: pd.DataFrame

    @property
    def best(self) -> str:
        """The method with the lowest mean rank."""
        return str(self.ranks.mean().idxmin())

    def interval(self, method: str) -> Interval:
        """Returns the interval of a method's mean rank."""
        return mean_interval(self.ranks[method].to_list(), (1, self.ranks.shape[1]))

    def decided(self) -> dict[tuple[str, str], float]:
        """Returns by pair, the better method first, the mean difference of ranks if Wilcoxon's test is significant (Holm, all pairs)."""
        pairs = list(combinations(self.ranks, 2))
        found = [paired(self.ranks[one].to_list(), self.ranks[other].to_list()) for one, other in pairs]
        told = {}
        for (one, other), comparison, p in zip(pairs, found, holm([comparison.p for comparison in found]), strict=True):
            mean = comparison.difference.mean
            if p < SIGNIFICANT and mean != 0:
                told[(one, other) if mean < 0 else (other, one)] = abs(mean)
        return told


def ranks_of(rows: pd.DataFrame, kind: str, data: str, network: str) -> Ranks:
    """Ranks the methods that are not controls. A map without a value ranks last if others have one.

    Args:
        rows: rows of one network, with the columns of `scores.csv`.
        kind: kind of evidence.
        data: the rows' pictures.
        network: name of the model.
    """
    rows = rows[~rows["method"].map(is_planted)]
    found = []
    for metric, of in rows.groupby("metric", sort=False):
        name = str(metric).partition(":")[0]
        if name not in KINDS[kind] or name in SAME_FOR_ALL:
            continue
        table = of.pivot(index="image", columns="method", values="value").dropna(how="all")
        table = table if metrics.create(str(metric)).metadata.better == "higher" else -table
        found.append(table.round(6).fillna(-math.inf).rank(axis=1, ascending=False))
    ranks = pd.concat(found).groupby(level=0).mean()
    return Ranks(kind, data, network, ranks[list(dict.fromkeys(rows["method"]))])


def best_table(all_ranks: Sequence[Ranks]) -> pd.DataFrame:
    """Lists the best method of each kind on each network, with its interval, and the methods that do not differ significantly."""
    lines = []
    for each in all_ranks:
        behind = {worse for better, worse in each.decided() if better == each.best}
        level = [method for method in each.ranks if method not in behind and method != each.best]
        line = {"evidence": each.kind, "pictures": each.data, "network": each.network, "n": str(len(each.ranks)), "best": each.best}
        lines.append(line | {"mean rank": shown(each.interval(each.best)), "not told from it": ", ".join(level) or "none"})
    return pd.DataFrame(lines)


def shown(interval: Interval, digits: int = 2) -> str:
    """Formats a mean with its interval."""
    ends = "" if math.isnan(interval.low) else f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
    return f"{interval.mean:.{digits}f}{ends}"


def pairs_of(all_ranks: Sequence[Ranks]) -> list[tuple[Ranks, Ranks]]:
    """Returns every two kinds of evidence on one network."""
    return [(one, other) for one, other in combinations(all_ranks, 2) if one.network == other.network and one.kind != other.kind]


def tau(one: Ranks, other: Ranks) -> tuple[float, float, float]:
    """Returns Kendall's τ_b of the mean ranks by two kinds, with a 95 % percentile interval over pictures, drawn jointly where shared."""
    methods = [method for method in one.ranks if method in other.ranks]
    a, b = one.ranks[methods], other.ranks[methods]
    if one.data == other.data:
        both = [image for image in a.index if image in b.index]
        a, b = a.loc[both], b.loc[both]
    first, second = a.to_numpy(), b.to_numpy()
    draw = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        chosen = draw.integers(len(first), size=len(first))
        others = chosen if one.data == other.data else draw.integers(len(second), size=len(second))
        found.append(kendalltau(first[chosen].mean(axis=0), second[others].mean(axis=0)).statistic)
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(kendalltau(first.mean(axis=0), second.mean(axis=0)).statistic), float(low), float(high)


def tau_table(all_ranks: Sequence[Ranks]) -> pd.DataFrame:
    """Writes whether two kinds of evidence order the methods alike, and how often they contradict each other."""
    lines = []
    for one, other in pairs_of(all_ranks):
        mean, low, high = tau(one, other)
        mine, theirs = one.decided(), other.decided()
        agree = [pair for pair in mine if pair in theirs]
        against = {pair: least for pair in mine if (least := min(mine[pair], theirs.get(pair[::-1], 0.0))) > 0}
        widest = max(against, key=against.__getitem__, default=None)
        lines.append(
            {
                "network": one.network,
                "kinds": f"{one.kind}, {other.kind}",
                "Kendall's τ": f"{mean:.2f} [{low:.2f}, {high:.2f}]",
                "decided by both": str(len(agree) + len(against)),
                "contradict": str(len(against)),
                "the widest": "" if widest is None else f"{widest[0]} before {widest[1]} by {one.kind}, behind it by {other.kind}",
                "τ": mean,
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(lines)


def over_networks(all_ranks: Sequence[Ranks], kind: str, data: str) -> tuple[pd.Series, int]:
    """Returns the mean rank of each method that ran on all networks, averaged over networks, best first; and the number of networks."""
    some = [each for each in all_ranks if each.kind == kind and each.data == data]
    common = [method for method in some[0].ranks if all(method in each.ranks for each in some)]
    ranks = pd.DataFrame([each.ranks[common].mean().rank() for each in some])
    return ranks.mean().sort_values(), len(some)


def trials(folders: Sequence[Path]) -> pd.DataFrame:
    """Counts how each metric fares in the trials of some runs."""
    frame = pd.concat([trial_runs([folder]).frame for folder in folders])
    frame["name"] = frame["metric"].map(lambda metric: metric.partition(":")[0])
    lines = []
    for name, of in frame.groupby("name", sort=False):
        verdicts = of["verdict"].value_counts()
        ahead = pd.Series([each for names in of["ahead"] for each in names.split(", ") if each]).value_counts()
        line = {"metric": name} | {verdict: str(int(verdicts.get(verdict, 0))) for verdict in ("passes", "undecided", "fails")}
        lines.append(line | {"ahead of the methods": ", ".join(f"{each} ({times})" for each, times in ahead.items())})
    return pd.DataFrame(lines)
