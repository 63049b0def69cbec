"""Significance tests from tidy rows: each pair of methods, and all methods together, on the pictures for which all have values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from xattn.deferred import numpy as np
from xattn.errors import NameUnknownError, SettingError
from xattn.metrics.base import metrics
from xattn.metrics.blocks import Block, blocks
from xattn.metrics.conclusions import conclusion, section, stated
from xattn.metrics.paired_tests import (
    Bounds,
    better_share,
    bootstrap_interval,
    bootstrap_intervals,
    difference_of_proportions,
    equivalence,
    equivalence_of_proportions,
    mcnemar,
)
from xattn.metrics.rank_tests import critical_difference, friedman, mean_ranks, nemenyi
from xattn.metrics.sheets import SIGNIFICANT
from xattn.metrics.statistics import (
    Doubles,
    adjusted,
    differences,
    holm,
    inverted,
    inverted_limits,
    levels,
    mean_interval,
    needed,
    proportion_interval,
    signed_rank,
    unit_of,
)
from xattn.metrics.tables import mean_of
from xattn.metrics.training_seeds import compared
from xattn.metrics.wide import KEYS

if TYPE_CHECKING:
    import pandas as pd

Adjustment = Literal["holm", "benjamini-hochberg"]
ADJUSTMENTS: dict[str, Callable[[Sequence[float]], list[float]]] = {"holm": holm, "benjamini-hochberg": adjusted}


@dataclass(frozen=True, repr=False)
class Significance:
    """Test results and conclusions. Every result of a metric is over the pictures for which all compared methods have a value.

    Attributes:
        methods: one row per metric and method: `model, head, method, metric`; `n`, the number of pictures, and with several seeds `seeds`,
            the number of networks; `left_out`, pictures without a value of some method, and `lacking`, without one of this method; `mean`,
            its 95 % interval `low` and `high`, and the kind of `interval`; `median`; `mean_rank`; `degenerate_share` of the n.
        pairs: one row per metric and pair: the first method as above, the second in `other_model, other_head, other_method`; the mean
            `difference`, first minus second, with its `interval`; `better_share`, the share of pictures on which the first is better, ties
            counting half; the `test`, its `p` and `p_adjusted`; `nemenyi_p`; `equivalence_p` and `equivalence_p_adjusted` for the `margin`;
            `needed`, the approximate number of pictures that a t-test at the family's strictest level needs for such a difference (with
            several seeds: infinity if more pictures of the same networks would not decide, else empty); `conclusion`, in words.
        rankings: one row per metric with three or more methods, each of one network: Friedman's `statistic` and `p`, `agreement` (Kendall's
            W) and Nemenyi's `critical_difference` of mean ranks at 0.05.
        adjustment: of p-values within the pairs of a metric.
        notes: remarks that a reader needs.
        sections: the tables of each metric in Markdown, with the pictures that they cover.
    """

    methods: pd.DataFrame
    pairs: pd.DataFrame
    rankings: pd.DataFrame
    adjustment: Adjustment
    notes: tuple[str, ...]
    sections: tuple[str, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """All rows in one frame, with the column `result`: "method", "pair" or "ranking"; columns that do not apply are empty."""
        import pandas as pd

        parts = {"method": self.methods, "pair": self.pairs, "ranking": self.rankings}
        found = pd.concat([part.assign(result=name) for name, part in parts.items() if len(part)], ignore_index=True)
        return found[["result", *(column for column in found.columns if column != "result")]]

    def text(self, form: Literal["markdown", "csv"] = "markdown") -> str:
        """A section per metric with its tables and conclusions, and the notes; or `frame` as CSV, with every digit."""
        if form == "csv":
            return str(self.frame.to_csv(index=False))
        return "\n".join([*self.sections, "".join(f"- {note}\n" for note in self.notes)])

    def __repr__(self) -> str:
        """The text, for terminals."""
        return self.text()


def significance(
    rows: pd.DataFrame,
    against: str | None = None,
    *,
    adjustment: Adjustment = "holm",
    margins: Mapping[str, float] | None = None,
    without_degenerate: bool = False,
    seeds: str | None = None,
) -> Significance:
    """Tests methods on the same pictures, from tidy rows.

    Networks of several seeds are tested over seeds and pictures as crossed random effects (`training_seeds.crossed`). Results without such
    a form are left out for them: Friedman's, Nemenyi's, Wilcoxon's and McNemar's tests, whose blocks are only pictures, and required
    numbers.

    Args:
        rows: with the columns of `scores.csv`, of one run or several.
        against: the reference: a method, with which the others of its classifier are compared; or a model, a head or "model · head", with
            which the same method of every other classifier is compared; None: all pairs of methods of a classifier.
        adjustment: of the p-values of a family, the pairs of one metric: "holm" controls the probability of any false discovery;
            "benjamini-hochberg" controls the share of false discoveries.
        margins: by metric, in its unit, the largest difference that does not matter: pairs are tested for equivalence within it.
        without_degenerate: leave out pictures with a map that is flagged `degenerate`.
        seeds: regular expression that matches the training seed in the models' names, as for `comparison`.

    Raises:
        NameUnknownError: there are no rows of `against`, or no such metric or adjustment.
        SettingError: a margin is not positive, or `seeds` is not a regular expression.
        InputError: there are no scores, no two methods with the same pictures, or no models that differ only by their seeds.
    """
    import pandas as pd

    if adjustment not in ADJUSTMENTS:
        raise NameUnknownError("adjustment", str(adjustment), list(ADJUSTMENTS))
    found = blocks(rows, against, without_degenerate=without_degenerate, seeds=seeds)
    limits = _checked_margins(margins, list(dict.fromkeys(block.metric for block in found)))
    methods: list[dict[str, object]] = []
    pairs: list[dict[str, object]] = []
    rankings: list[dict[str, object]] = []
    sections = []
    for metric in dict.fromkeys(block.metric for block in found):
        own = [block for block in found if block.metric == metric]
        family = sum(len(block.pairs) for block in own)
        lines = [_pair_lines(block, family, limits.get(metric)) for block in own]
        _adjust([line for several in lines for line in several], ADJUSTMENTS[adjustment], metric)
        for block, several in zip(own, lines, strict=True):
            of_methods = _method_lines(block)
            ranking = _ranking_line(block) if len(block.rows) > 2 and not block.networks else None
            sections.append(section(block, of_methods, several, ranking))
            methods += of_methods
            pairs += [{key: value for key, value in line.items() if key not in ("first", "second")} for line in several]
            rankings += [ranking] if ranking else []
    notes = stated(found, adjustment, limits, sorted(rows["target_rule"].dropna().unique()))
    return Significance(pd.DataFrame(methods), pd.DataFrame(pairs), pd.DataFrame(rankings), adjustment, notes, tuple(sections))


def _adjust(lines: Sequence[dict[str, object]], adjust: Callable[[Sequence[float]], list[float]], metric: str) -> None:
    """Adds adjusted p-values and conclusions to the pairs of a family."""
    for key in ("p", "equivalence_p"):
        values = [float(str(line[key])) for line in lines]
        tested = not all(math.isnan(value) for value in values)
        for line, value in zip(lines, adjust(values) if tested else values, strict=True):
            line[f"{key}_adjusted"] = value
    for line in lines:
        line["conclusion"] = conclusion(line, metrics.create(metric).metadata.better == "higher")


def _levels(block: Block) -> Doubles:
    return levels(block.values, unit_of(metrics.create(block.metric).metadata.limits))


def _method_lines(block: Block) -> list[dict[str, object]]:
    """Mean, interval, median and mean rank of each column of a block."""
    component = metrics.create(block.metric)
    limits, aggregation = component.metadata.limits, component.instance.aggregation
    ranks = mean_ranks(_levels(block), component.metadata.better == "higher")
    lines = []
    for place, row in enumerate(block.rows):
        values = block.column(place)
        if block.networks:
            found = Bounds(mean_of(block.networks[place], block.metric), "crossed effects")
        elif block.binary:
            found = Bounds(proportion_interval(values, limits), "Wilson")
        elif aggregation == "harmonic mean":
            found = _harmonic(values, limits)
        else:
            found = bootstrap_interval(values, limits)
        line: dict[str, object] = {**dict(zip(KEYS, row, strict=True)), "metric": block.metric, "n": len(values)}
        line |= {"seeds": block.networks[place].shape[1]} if block.networks else {}
        line |= {"left_out": block.pictures - len(values), "lacking": block.lacking[place], "mean": found.interval.mean}
        line |= {"low": found.interval.low, "high": found.interval.high, "interval": found.name, "median": _median(values)}
        lines.append(line | {"mean_rank": ranks[place], "degenerate_share": block.degenerate[place]})
    return lines


def _median(values: Doubles) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered, n = np.sort(values), len(values)
    return float((ordered[(n - 1) // 2] + ordered[n // 2]) / 2)


def _harmonic(values: Doubles, limits: tuple[float, float]) -> Bounds:
    """The interval of the harmonic mean."""
    inverse, name = bootstrap_interval(1 / values[values != 0], inverted_limits(limits))
    return Bounds(inverted(inverse), name)


def _pair_lines(block: Block, family: int, margin: float | None) -> list[dict[str, object]]:
    """The tests of the pairs of a block, before adjustment.

    Args:
        block: the values of one metric.
        family: number of tests in the family whose p-values are adjusted together.
        margin: the largest difference that does not matter; None: equivalence is not tested.
    """
    component = metrics.create(block.metric)
    higher = component.metadata.better == "higher"
    ranks, k, n = mean_ranks(_levels(block), higher), len(block.rows), len(block.values)
    lines = []
    bounds = _pair_bounds(block)
    for first, second in block.pairs:
        found = (
            _tested_over_seeds(block, first, second, family, margin)
            if block.networks
            else _tested(block, first, second, family, margin, next(bounds))
        )
        line: dict[str, object] = {**dict(zip(KEYS, block.rows[first], strict=True)), "metric": block.metric}
        line |= {f"other_{key}": value for key, value in zip(KEYS, block.rows[second], strict=True)}
        line |= {"n": n, "left_out": block.pictures - n, "difference": found.bounds.interval.mean}
        line |= {"seeds": found.networks[0], "other_seeds": found.networks[1]} if found.networks else {}
        line |= {"difference_low": found.bounds.interval.low, "difference_high": found.bounds.interval.high, "interval": found.bounds.name}
        line |= {"better_share": better_share(found.differences, higher), "test": found.test, "p": found.p}
        line["nemenyi_p"] = nemenyi(ranks[first] - ranks[second], k, n) if k > 2 and not block.networks else math.nan
        line["margin"] = math.nan if margin is None else margin
        line |= {"equivalence_p": found.within, "needed": found.needed}
        lines.append(line | {"first": block.name(first), "second": block.name(second)})
    return lines


class _Tested(NamedTuple):
    """Test results of a pair of columns.

    Attributes:
        bounds: the mean difference, with its interval.
        differences: of the pictures.
        test: name of the test.
        p: its p-value.
        within: the p-value of equivalence; NaN without a margin.
        needed: number of pictures that would decide.
        networks: with several seeds, the number of networks on each side.
    """

    bounds: Bounds
    differences: Doubles
    test: str
    p: float
    within: float
    needed: float
    networks: tuple[int, int] | None = None


def _pair_bounds(block: Block) -> Iterator[Bounds]:
    """The interval of the difference of each pair of columns of one network each."""
    low, high = metrics.create(block.metric).metadata.limits
    if not block.binary:
        yield from bootstrap_intervals(differences(block.column(a), block.column(b), unit_of((low, high)))[0] for a, b in block.pairs)
        return
    span = high - low
    for pair in block.pairs:
        interval = difference_of_proportions(*(block.column(place) == high for place in pair))
        yield Bounds(interval._replace(mean=span * interval.mean, low=span * interval.low, high=span * interval.high), "Bonett-Price")


def _tested(block: Block, first: int, second: int, family: int, margin: float | None, found: Bounds) -> _Tested:
    """Tests two columns of a block, each of one network, whose difference has this interval."""
    low, high = metrics.create(block.metric).metadata.limits
    difference, same = differences(block.column(first), block.column(second), unit_of((low, high)))
    if block.binary:
        one, other = (block.column(place) == high for place in (first, second))
        test, p = "McNemar", mcnemar(one, other)
        within = math.nan if margin is None else equivalence_of_proportions(one, other, margin / (high - low))
    else:
        test, p = "Wilcoxon", signed_rank(difference, same, zeros="pratt")
        within = math.nan if margin is None else equivalence(difference, margin)
    strict = 1 - SIGNIFICANT / family
    # With fewer pairs, no p-value can be below the level: the smallest two-sided one is 2 / 2ⁿ.
    fewest = math.ceil(1 - math.log2(1 - strict))
    count = max(needed(mean_interval(difference, confidence=strict), confidence=strict), fewest)
    return _Tested(found, difference, test, p, within, count)


def _tested_over_seeds(block: Block, first: int, second: int, family: int, margin: float | None) -> _Tested:
    """Tests two columns of a block, of networks of several seeds, over seeds and pictures."""
    found = compared(block.networks[first], block.networks[second], metrics.create(block.metric).metadata.limits)
    interval, p = found.comparison
    within = math.nan if margin is None else found.within(margin)
    count = math.nan if found.pictures_suffice(1 - SIGNIFICANT / family) else math.inf
    return _Tested(Bounds(interval, "crossed effects"), found.differences, "t, crossed effects", p, within, count, found.networks)


def _ranking_line(block: Block) -> dict[str, object]:
    """Friedman's test of a block of three or more columns."""
    found, k, n = friedman(_levels(block)), len(block.rows), len(block.values)
    (model, head), of_one = block.classifiers[0], len(block.classifiers) == 1
    line: dict[str, object] = {"model": model, "head": head} if of_one else {"method": block.rows[0][2]}
    line |= {"metric": block.metric, "n": n, "left_out": block.pictures - n, "compared": k, "friedman_statistic": found.statistic}
    return line | {"p": found.p, "agreement": found.agreement, "critical_difference": critical_difference(k, n)}


def _checked_margins(margins: Mapping[str, float] | None, known: Sequence[str]) -> dict[str, float]:
    """The margins of equivalence, by metric.

    Raises:
        NameUnknownError: the rows have no such metric.
        SettingError: a margin is not positive.
    """
    named = {metrics.create(metric).metadata.symbol: metric for metric in reversed(known)}
    margins = {named.get(metric, metric): margin for metric, margin in (margins or {}).items()}
    for metric, margin in margins.items():
        if metric not in known:
            raise NameUnknownError("metric in these runs", metric, known)
        if not 0 < margin < math.inf:
            raise SettingError(f"a margin is the largest difference that does not matter, above 0; got {margin:g} for {metric}.")
    return margins
