"""How often intervals cover the truth and tests err, by simulation: python benchmarks/coverage.py > benchmarks/results/coverage.md."""

from __future__ import annotations

import random
from collections.abc import Callable

from xattn.metrics.paired_tests import bootstrap_interval, difference_of_proportions, equivalence, mcnemar
from xattn.metrics.rank_tests import friedman
from xattn.metrics.statistics import holm, mean_interval, proportion_interval, signed_rank

REPEATS = 600
SIZES = (20, 40, 100)
DRAW = random.Random(0)
MEANS: dict[str, tuple[Callable[[], float], float]] = {
    "normal": (lambda: DRAW.gauss(0, 1), 0.0),
    "three of ten exponential, else 0": (lambda: DRAW.expovariate(1) if DRAW.random() < 0.3 else 0.0, 0.3),
    "beta(0.3, 1.2)": (lambda: DRAW.betavariate(0.3, 1.2), 0.2),
}


def share(once: Callable[[], bool]) -> str:
    """The percentage of repeats in which something holds, with its Wilson interval."""
    found = proportion_interval([100.0 * once() for _ in range(REPEATS)], (0, 100))
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def covers(found: tuple[float, float, float, int], truth: float) -> bool:
    return found[1] <= truth <= found[2]


def main() -> None:
    print("# Coverage and error rates\n\nMade by `benchmarks/coverage.py`: percent of", REPEATS, "simulated runs [95 % interval].\n")
    print(
        "## How often 95 % intervals cover the truth\n\n| interval | values |",
        " | ".join(f"n = {n}" for n in SIZES),
        "|\n|---|---|" + "---|" * 3,
    )
    for name, (draw, truth) in MEANS.items():
        for label, of in (("Student", mean_interval), ("BCa", lambda values: bootstrap_interval(values).interval)):
            cells = [share(lambda n=n, of=of, draw=draw, truth=truth: covers(of([draw() for _ in range(n)]), truth)) for n in SIZES]
            print(f"| {label} | {name} |", " | ".join(cells), "|")
    cells = [share(lambda n=n: covers(proportion_interval([DRAW.random() < 0.1 for _ in range(n)]), 0.1)) for n in SIZES]
    print("| Wilson | proportion 0.1 |", " | ".join(cells), "|")
    cells = [share(lambda n=n: covers(difference_of_proportions(*yes_or_no(n, 0.5)), 0.2)) for n in SIZES]
    print("| Bonett-Price | proportions 0.5 and 0.3 |", " | ".join(cells), "|")
    print("\n## How often tests at 0.05 err\n\n| test | of |", " | ".join(f"n = {n}" for n in SIZES), "|\n|---|---|" + "---|" * 3)
    tests: dict[tuple[str, str], Callable[[int], bool]] = {
        ("Wilcoxon, Pratt", "rounded normal differences"): lambda n: signed_rank(rounded(n), zeros="pratt") < 0.05,
        ("McNemar, exact", "two proportions of 0.3"): lambda n: mcnemar(*yes_or_no(n, 0.3)) < 0.05,
        ("two one-sided", "a mean at the margin"): lambda n: equivalence([DRAW.gauss(0.5, 1) for _ in range(n)], 0.5) < 0.05,
        ("Friedman", "four equal methods"): lambda n: friedman([[DRAW.random() for _ in range(4)] for _ in range(n)]).p < 0.05,
        ("Holm", "any of six pairs of four equal methods"): lambda n: min(holm(of_pairs(n))) < 0.05,
    }
    for (name, of_what), once in tests.items():
        print(f"| {name} | {of_what} |", " | ".join(share(lambda n=n, once=once: once(n)) for n in SIZES), "|")


def rounded(n: int) -> list[float]:
    return [float(round(DRAW.gauss(0, 1))) for _ in range(n)]


def yes_or_no(n: int, first: float) -> tuple[list[bool], list[bool]]:
    """Two methods on n pictures; the second succeeds on three of ten."""
    return [DRAW.random() < first for _ in range(n)], [DRAW.random() < 0.3 for _ in range(n)]


def of_pairs(n: int) -> list[float]:
    values = [[DRAW.gauss(0, 1) for _ in range(n)] for _ in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    return [signed_rank([x - y for x, y in zip(values[a], values[b], strict=True)], zeros="pratt") for a, b in pairs]


if __name__ == "__main__":
    main()
