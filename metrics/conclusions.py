"""Test results in words: the conclusion for each pair of methods, and the tables of a metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xattn.metrics.base import metrics
from xattn.metrics.blocks import Block
from xattn.metrics.paired_tests import FEWEST, RESAMPLES
from xattn.metrics.sheets import SIGNIFICANT, decimals
from xattn.metrics.statistics import EXACT_TO, MOST_NEEDED, POWER, rounded
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.typeset import markdown_text
from xattn.text import counted

ARROWS = {"lower": "↓", "higher": "↑"}
DIFFERENCE = ("difference", "difference_low", "difference_high")
Line = Mapping[str, Any]
"""A row of a result, by column."""
ADJUSTED_BY = {
    "holm": "Holm (the chance of any false one)",
    "benjamini-hochberg": "Benjamini and Hochberg (the share of false ones among those found)",
}


def conclusion(line: Line, higher: bool) -> str:
    """The conclusion that the tests of a pair of methods allow.

    Args:
        line: the pair's results, with adjusted p-values.
        higher: whether higher is better.
    """
    first, second, margin = line["first"], line["second"], line["margin"]
    within = line["equivalence_p_adjusted"] < SIGNIFICANT
    if line["p_adjusted"] < SIGNIFICANT:
        in_mean = first if (line["difference"] > 0) == higher else second
        on_more = in_mean if line["better_share"] == 0.5 else first if line["better_share"] > 0.5 else second
        if line["difference_low"] <= 0 <= line["difference_high"]:
            return f"{on_more} is better on more pictures; the interval of the mean difference holds 0"
        if in_mean != on_more:
            return f"they differ: {in_mean} is better in the mean, {on_more} on more pictures"
        return f"{in_mean} is better" + (f", by less than {margin:g}" if within else "")
    if within:
        return f"equivalent: within ±{margin:g}"
    if math.isnan(line["p_adjusted"]) and line["difference"]:
        better = first if (line["difference"] > 0) == higher else second
        return f"{better} is better by the same everywhere: differences that do not vary are not tested"
    n, count = line["n"], line["needed"]
    if "seeds" in line:
        undecided = f"{counted(n, 'picture')} and {counted(max(line['seeds'], line['other_seeds']), 'seed')} do not decide this"
    else:
        undecided = f"{counted(n, 'picture does', 'pictures do')} not decide this"
    if line["difference"] == 0:
        return f"{undecided}: their mean difference is 0"
    if "seeds" in line:
        return f"{undecided}; with seeds so far apart more pictures alone would not" if count == math.inf else undecided
    if not count < MOST_NEEDED:
        return f"{undecided}; for so small a difference no number in practice would"
    return f"{undecided}; about {rounded(count):,} would" if count > n else f"{undecided}, although the mean difference is large"


def section(block: Block, methods: Sequence[Line], pairs: Sequence[Line], ranking: Line | None) -> str:
    """The tables of a block in Markdown, with the pictures that they cover."""
    from tabulate import tabulate

    about = metrics.create(block.metric).metadata
    title = f"{block.metric} {ARROWS[about.better]}{' (%)' if about.unit == '%' else ''}"
    of = " · ".join(block.classifiers[0]) if len(block.classifiers) == 1 else block.rows[0][2]
    digits = decimals([(line["high"] - line["low"]) / 2 for line in methods])
    rows = [
        [
            markdown_text(block.name(place)),
            _interval(line["mean"], line["low"], line["high"], digits),
            _number(line["median"], digits),
            f"{line['mean_rank']:.2f}",
            f"{line['degenerate_share']:.1%}",
        ]
        for place, line in enumerate(methods)
    ]
    headers = ["method" if len(block.classifiers) == 1 else "classifier", "mean [95 %]", "median", "mean rank", "degenerate"]
    texts = [f"### {markdown_text(title)}, {markdown_text(of)}\n", _pipes(tabulate, rows, headers), f"\n{_pictures(block)}"]
    if ranking is not None:
        texts.append(
            f"Friedman's χ² of {ranking['compared'] - 1} degrees of freedom is {ranking['friedman_statistic']:.1f}, "
            f"{_p(ranking['p'], 'p')}; Kendall's W {ranking['agreement']:.2f}; Nemenyi's critical difference of mean ranks "
            f"{ranking['critical_difference']:.2f}."
        )
    equivalent = any(math.isfinite(line["margin"]) for line in pairs)
    rows = [
        [
            markdown_text(f"{line['first']} − {line['second']}{_of_some(line, block)}"),
            _interval(*_difference(line), decimals([(line["difference_high"] - line["difference_low"]) / 2])),
            f"{line['better_share']:.0%}",
            *(_p(line[key]) for key in ("p", "p_adjusted", *(["equivalence_p_adjusted"] if equivalent else []))),
            markdown_text(line["conclusion"]),
        ]
        for line in pairs
    ]
    headers = ["pair", "difference [95 %]", "better on", "p", "adjusted", *(["equivalence"] if equivalent else []), "conclusion"]
    return "\n".join([*texts, "", _pipes(tabulate, rows, headers), ""])


def _pipes(tabulate: Any, rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    aligned = ["left", *["right"] * (len(headers) - 2), "left" if headers[-1] == "conclusion" else "right"]
    return str(tabulate(rows, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned))


def _of_some(line: Line, block: Block) -> str:
    """The number of seeds that both methods of a pair have, if that is not all seeds of the block."""
    if not block.networks or line["seeds"] != line["other_seeds"] or all(line["seeds"] == each.shape[1] for each in block.networks):
        return ""
    return f" ({counted(line['seeds'], 'seed')} in common)"


def _pictures(block: Block) -> str:
    """A sentence about the pictures of a block and those that are left out."""
    n, out = len(block.values), block.pictures - len(block.values)
    pictures = counted(n, "picture")
    is_one = len(block.classifiers) == 1
    called = " · ".join(block.classifiers[0]) if is_one else f"{len(block.classifiers)} classifiers"
    counts = sorted({networks.shape[1] for networks in block.networks})
    if counts == [1]:
        text = f"{pictures} of one seed of {called}: this speaks of these networks only."
    elif counts:
        seeds = counted(counts[-1], "seed") if len(counts) == 1 else f"{counts[0]} to {counted(counts[-1], 'seed')}"
        alone = ", of one seed of that network only" if counts[0] == 1 else ""
        text = f"{pictures}, and {seeds} of {called}: this speaks of networks trained like these{alone}."
    elif is_one:
        text = f"{pictures} of one network ({called}): this speaks of that network only."
    else:
        text = f"{pictures} of {len(block.classifiers)} networks: this speaks of these networks only."
    if counts and block.left_networks:
        text += f" Left out, without a value of some method: {', '.join(block.left_networks)}."
    if out:
        lacking = [f"{block.name(place)} of {count}" for place, count in enumerate(block.lacking) if count]
        text += f" Left out: {out} of {block.pictures}, without a value of {', '.join(lacking)}."
    return markdown_text(text)


def stated(blocks: Sequence[Block], adjustment: str, margins: Mapping[str, float], rules: Sequence[str]) -> tuple[str, ...]:
    """The notes below the tables: the intervals, the tests and the families of tests.

    Args:
        blocks: the compared values.
        adjustment: of p-values.
        margins: of equivalence, by metric.
        rules: by which targets were chosen.
    """
    of_one = [block for block in blocks if not block.networks]
    binary = any(block.binary for block in of_one)
    several = any(not block.binary for block in of_one)
    of_seeds = len(of_one) < len(blocks)
    intervals = [f"BCa bootstrap of {RESAMPLES} resamples (Student's where it degenerates, and below {FEWEST} pictures)"] * several
    intervals += ["of yes/no metrics Wilson's, of their differences Bonett and Price's"] * binary
    tests = [f"Wilcoxon signed-rank, zeros by Pratt, exact up to {EXACT_TO} differences"] * several
    tests += ["of yes/no metrics McNemar, exact"] * binary
    if of_seeds:
        intervals.append(
            "of several seeds over seeds and pictures as crossed random effects (t, Howe's combination, of proportions at least Wilson's; "
            "of differences wider, so as to hold at every level)"
        )
        tests.append("of several seeds the t-test over seeds and pictures")
    families = [sum(len(block.pairs) for block in blocks if block.metric == metric) for metric in dict.fromkeys(b.metric for b in blocks)]
    count = counted(families[0], "pair") if len(set(families)) == 1 else f"{min(families)} to {counted(max(families), 'pair')}"
    notes = [
        "All of a metric is over the pictures of which every method that is compared has a value.",
        f"95 % intervals: {'; '.join(intervals)}. They are of one comparison each.",
        f"Tests of pairs: {'; '.join(tests)}. Family: {count} of a metric; adjusted by {ADJUSTED_BY[adjustment]}, decided at "
        f"{SIGNIFICANT:g}.",
        "better on: share of pictures on which the first is better, ties counting half (common-language effect size)"
        + ("; of several seeds, of pictures and networks." if of_seeds else "."),
    ]
    if of_one:
        notes.append(
            f"about … would: the pictures with values of all methods with which a t-test at {SIGNIFICANT:g} over the family's size finds a "
            f"difference as large in {POWER:.0%} of runs."
        )
    if of_seeds:
        notes.append(
            "Of several seeds, medians and ranks are of each picture's mean over the networks. Left out there, as they have no form over "
            "seeds and pictures: the tests of Friedman, Nemenyi, Wilcoxon and McNemar, and how many pictures would decide."
        )
    notes.append(f"Target: {', '.join(rules)}.{' A picture with several has the mean over them.' * any(map(_per_label, rules))}")
    if "predicted" in rules and any(len(block.classifiers) > 1 or block.networks for block in blocks):
        notes.append("Each classifier is explained for its own prediction: rows of different classifiers answer different questions.")
    if margins:
        listed = ", ".join(f"{metric} ±{margin:g}" for metric, margin in margins.items())
        notes.append(f"Equivalence: two one-sided t-tests, margin {listed}; the same family and adjustment.")
    return tuple(notes)


def _per_label(rule: str) -> bool:
    return rule.startswith(PER_LABEL)


def _interval(mean: float, low: float, high: float, digits: int) -> str:
    return _number(mean, digits) + ("" if math.isnan(low) else f" [{_number(low, digits)}, {_number(high, digits)}]")


def _difference(line: Mapping[str, Any]) -> tuple[float, float, float]:
    """A pair's difference and the ends of its interval."""
    mean, low, high = (line[key] for key in DIFFERENCE)
    return mean, low, high


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _p(value: float, name: str = "") -> str:
    if math.isnan(value):
        return "–"
    if value < 0.001:
        return f"{name} < 0.001".strip() if name else "<0.001"
    return f"{name} = {value:.2g}" if name else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"
