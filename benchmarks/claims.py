"""Pages of results: a table, and one line per claim with its verdict, both from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from estimates import Estimate, estimate
from torch import Tensor

from xattn.metrics.sheets import SIGNIFICANT
from xattn.metrics.statistics import Interval, holm

Line = dict[str, str]
ANSWERS = {"reproduced": "yes", "not reproduced: it is the other way round": "no, the other way round"}


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, or our own question, about a difference of two means.

    Attributes:
        text: the claim, or the question with its question mark.
        difference: difference of the two compared means.
        way: sign of the difference according to the claim; 0: no difference beyond the margin.
        margin: the largest difference that counts as none.
        digits: number of decimals.
        asked: whether it is a question, namely whether the difference is above 0.
        note: text after the numbers.
        undecided: text after the numbers if the claim is not decided.
    """

    text: str
    difference: Estimate
    way: int = 1
    margin: float = 0.0
    digits: int = 2
    asked: bool = False
    note: str = ""
    undecided: str = ""

    def tests(self) -> tuple[float, ...]:
        """Returns p-values: that there is a difference, and for a claim of no difference, also that it is within the margin."""
        differs = self.difference.differs()
        return (differs,) if self.way else (differs, self.difference.within(self.margin))


def claim(text: str, difference: Estimate, way: int, digits: int = 2, margin: float = 0.0, note: str = "", undecided: str = "") -> Claim:
    """Makes a claim of a paper; the arguments are those of `Claim`."""
    return Claim(text, difference, way, margin, digits, note=note, undecided=undecided)


def question(text: str, difference: Estimate, digits: int = 2) -> Claim:
    """Makes our own question, with its question mark, whether a difference is above 0."""
    return Claim(text, difference, digits=digits, asked=True)


def verdicts(claims: Sequence[Claim]) -> str:
    """Writes one line per claim with its verdict, and how they were decided. All tests of the claims are one family, adjusted by Holm."""
    tests = [claim.tests() for claim in claims]
    left = iter(holm([p for of_claim in tests for p in of_claim]))
    lines = [f"- {_line(claim, [next(left) for _ in of_claim])}" for claim, of_claim in zip(claims, tests, strict=True)]
    count = sum(map(len, tests))
    family = f"adjusted by Holm over the {count} tests of this page" if count > 1 else "that of the only test of this page"
    said = (
        f"A claim is decided if p < {SIGNIFICANT:g}. p is {family}; the 95 % interval is for its claim alone. Errors over seeds × birds "
        "(or other pictures) come from a two-way bootstrap of both, errors over seeds alone from Student's distribution. A result over "
        "pictures alone is of one network and holds for that network only."
    )
    if any(not claim.way for claim in claims):
        said += (
            " A claim of no difference has two tests, one for a difference and one for none beyond the margin; the smaller p is printed."
        )
    return "\n".join(lines) + f"\n\n{said}"


def verdict(claim: Claim, p: Sequence[float]) -> str:
    """Returns the verdict: reproduced, not reproduced, or not decided. A large p-value shows neither a difference nor its absence.

    Args:
        claim: the claim.
        p: adjusted p-values of its tests.
    """
    if math.isnan(claim.difference.error) or math.isnan(claim.tests()[0]):
        return "not testable here"
    differs, way = p[0] < SIGNIFICANT, 1 if claim.difference.mean > 0 else -1
    if claim.way == 0 and p[1] < SIGNIFICANT:
        return f"reproduced, within {claim.margin:g}"
    if not differs:
        return "not decided"
    if claim.way == 0:
        return "not reproduced: they differ"
    return "reproduced" if claim.way == way else "not reproduced: it is the other way round"


def _line(claim: Claim, p: Sequence[float]) -> str:
    found, of = verdict(claim, p), claim.difference
    if claim.asked:
        found = "no difference at all" if of.mean == of.error == 0 else ANSWERS.get(found, found)
    numbers = f"{of.over}"
    if not math.isnan(of.error):
        low, high, digits = of.mean - of.half, of.mean + of.half, claim.digits
        numbers = f"{of.mean:+.{digits}f}, 95 % [{low:+.{digits}f}, {high:+.{digits}f}], {of.over}, p {_p(min(p))}"
    behind = [each for each in (claim.note, claim.undecided if found == "not decided" else "") if each]
    return f"{claim.text}{' ' if claim.asked else ': '}**{found}** ({'; '.join([numbers, *behind])})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def cell(values: Tensor, digits: int = 2) -> str:
    """Formats a mean with half of its interval: over pictures `(n,)`, or over seeds and pictures, `(seeds, pictures)`."""
    found = estimate(values)
    return _shown(found.mean, found.half, digits)


def over_seeds(values: Sequence[float], digits: int = 2) -> str:
    """Formats a mean over seeds with half of its interval."""
    return cell(torch.tensor(values, dtype=torch.float64), digits)


def shown(interval: Interval, digits: int = 2) -> str:
    """Formats an interval as mean ± half its width."""
    return _shown(interval.mean, interval.high - interval.mean, digits)


def _shown(mean: float, half: float, digits: int) -> str:
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def page(title: str, about: Sequence[str], table: pd.DataFrame, claims: Sequence[Claim] = ()) -> str:
    """Writes one page of Markdown."""
    parts = [f"# {title}", *about, table.to_markdown(index=False, disable_numparse=True)]
    if claims:
        parts.append(verdicts(claims))
    return "\n\n".join(parts) + "\n"
