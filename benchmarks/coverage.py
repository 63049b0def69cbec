"""How often intervals cover the true value and tests err, by simulation: python benchmarks/coverage.py > benchmarks/results/coverage.md."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations
from statistics import mean, quantiles

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from xattn.metrics.confidence_sequences import decided_after, sequence_interval
from xattn.metrics.paired_tests import bootstrap_interval, difference_of_proportions, equivalence, mcnemar
from xattn.metrics.rank_tests import friedman
from xattn.metrics.statistics import holm, mean_interval, needed, proportion_interval, signed_rank
from xattn.metrics.training_seeds import SeedTest, compared, crossed
from xattn.study.sequential import ends_of_rounds

REPEATS = 600
SIZES = (20, 40, 100)
DRAW = random.Random(0)
MEANS: dict[str, tuple[Callable[[], float], float]] = {
    "normal": (lambda: DRAW.gauss(0, 1), 0.0),
    "three of ten exponential, else 0": (lambda: DRAW.expovariate(1) if DRAW.random() < 0.3 else 0.0, 0.3),
    "beta(0.3, 1.2)": (lambda: DRAW.betavariate(0.3, 1.2), 0.2),
}

PAIRS = 6  # of four methods
LOOKS = 1000  # values up to which sequences are followed
BOUNDED: dict[str, tuple[Callable[[], float], float]] = {
    "−1, 0 or 1": (lambda: DRAW.choice((-1.0, 0.0, 0.0, 1.0)), 0.0),
    "uniform in ±0.3": (lambda: DRAW.uniform(-0.3, 0.3), 0.0),
    "one of fifty 1, else 0": (lambda: float(DRAW.random() < 0.02), 0.02),
    "beta(0.3, 1.2)": (lambda: DRAW.betavariate(0.3, 1.2), 0.2),
}
EFFECTS = ((0.1, 0.3), (0.05, 0.15), (0.05, 0.3), (0.02, 0.1))
MOST = 20_000
RESAMPLES = 400
MARGIN = 5.0
SPREADS = (0.0, 3.0, 10.0)
Array = NDArray[np.float64]
GENERATOR = np.random.default_rng(0)


def share(once: Callable[[], bool]) -> str:
    """Formats the percentage of repeats in which something holds, with its Wilson interval."""
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
    sequences()
    stopping()
    seeds()
    seed_tests()


def sequences() -> None:
    DRAW.seed(1)
    print(
        f"\n## How often intervals miss the truth at any of {LOOKS} numbers of values\n\nAt most 5 % may. Beside the confidence sequence, "
        "Student's 95 % interval after each round of a run.\n\n| values in ±1 | confidence sequence | Student's |\n|---|---|---|"
    )
    for name, (draw, truth) in BOUNDED.items():

        def drawn(draw: Callable[[], float] = draw) -> list[float]:
            return [draw() for _ in range(LOOKS)]

        missed = share(lambda drawn=drawn, truth=truth: not covers(sequence_interval(drawn(), (-1, 1)), truth))
        print(f"| {name} | {missed} |", share(lambda drawn=drawn, truth=truth: misses_in_rounds(drawn(), truth)), "|")


def misses_in_rounds(values: list[float], truth: float) -> bool:
    """Returns whether an interval of a fixed n misses after any round."""
    return any(not covers(mean_interval(values[:n]), truth) for n in ends_of_rounds(len(values), 8))


def stopping() -> None:
    DRAW.seed(2)
    print(
        f"\n## When a pair is decided\n\nNormal differences as shares of the largest one, clipped to ±1; one pair of {PAIRS}, "
        f"{REPEATS // 6} runs. The fixed n has 80 % power, for an effect and a deviation that are known beforehand.\n\n"
        "| mean | standard deviation | fixed n | mean n of the sequence | 80 % have ended by | wrong order |\n|---|---|---|---|---|---|"
    )
    strict = 1 - 0.05 / PAIRS
    for effect, deviation in EFFECTS:
        ended, wrong = [], 0
        for _ in range(REPEATS // 6):
            values = [max(-1.0, min(1.0, DRAW.gauss(effect, deviation))) for _ in range(MOST)]
            ended.append(min(MOST, decided_after(values, 1.0, confidence=strict)))
            wrong += sequence_interval(values[: int(ended[-1])], (-1, 1), strict).high < 0
        fixed = needed(mean_interval([effect + deviation, effect - deviation] * 500, confidence=strict), confidence=strict)
        print(f"| {effect:g} | {deviation:g} | {fixed:.0f} | {mean(ended):.0f} | {quantiles(ended, n=5)[-1]:.0f} | {wrong} |")


def seeds() -> None:
    print(
        "\n## How often 95 % intervals over seeds and pictures cover the truth\n\nNormal seeds of the spread given; 100 pictures, "
        "exponential, of spread 20; the rest normal, 10. The bootstraps are of percentiles: seeds, then pictures, anew for each seed or "
        "the same ones for all.\n\n| seeds | their spread | crossed effects | bootstrap, pictures anew | bootstrap, same pictures | "
        "pictures alone |\n|---|---|---|---|---|---|"
    )
    intervals: tuple[Callable[[Array], tuple[float, ...]], ...] = (
        lambda values: crossed(values.tolist()).difference[1:3],
        lambda values: resampled(values, anew=True),
        lambda values: resampled(values, anew=False),
        lambda values: mean_interval(values.mean(axis=0).tolist())[1:3],
    )
    for count in (2, 3, 5):
        for spread in SPREADS:
            cells = []
            for of in intervals:

                def once(count: int = count, spread: float = spread, of: Callable[[Array], tuple[float, ...]] = of) -> bool:
                    low, high = of(of_seeds(count, spread))
                    return low <= 0 <= high

                cells.append(share(once))
            print(f"| {count} | {spread:g} |", " | ".join(cells), "|")


def seed_tests() -> None:
    generator = np.random.default_rng(3)
    print(
        "\n## How often tests over seeds and pictures err\n\nThe same values, as differences. Of a mean of 0; of a mean at the margin, "
        f"{MARGIN:g}; and of any of the three pairs of three equal methods, adjusted by Holm.\n\n"
        "| seeds | their spread | a difference | equivalence | any difference of three |\n|---|---|---|---|---|"
    )

    def tested(first: Array, second: Array | None = None) -> SeedTest:
        return compared(pd.DataFrame(first.T), pd.DataFrame(np.zeros_like(first.T) if second is None else second.T))

    def any_of_three(count: int, spread: float) -> bool:
        methods = [of_seeds(count, spread, generator) for _ in range(3)]
        return min(holm([tested(one, other).comparison.p for one, other in combinations(methods, 2)])) < 0.05

    for count in (2, 3, 5):
        for spread in SPREADS:
            once = (
                lambda count=count, spread=spread: tested(of_seeds(count, spread, generator)).comparison.p < 0.05,
                lambda count=count, spread=spread: tested(of_seeds(count, spread, generator) + MARGIN).within(MARGIN) < 0.05,
                lambda count=count, spread=spread: any_of_three(count, spread),
            )
            print(f"| {count} | {spread:g} |", " | ".join(map(share, once)), "|")


def of_seeds(count: int, spread: float, generator: np.random.Generator = GENERATOR, n: int = 100) -> Array:
    """Draws values of networks of several seeds, `(S, n)`, whose mean is 0."""
    pictures = 20 * (generator.exponential(size=n) - 1)
    found: Array = spread * generator.normal(size=(count, 1)) + pictures + 10 * generator.normal(size=(count, n))
    return found


def resampled(values: Array, *, anew: bool) -> tuple[float, float]:
    """Returns the percentile interval of seeds, then pictures, resampled with replacement."""
    count, n = values.shape
    chosen = GENERATOR.integers(count, size=(RESAMPLES, count, 1))
    pictures = GENERATOR.integers(n, size=(RESAMPLES, count if anew else 1, n))
    low, high = np.quantile(values[chosen, pictures].mean(axis=(1, 2)), [0.025, 0.975])
    return float(low), float(high)


def rounded(n: int) -> list[float]:
    return [float(round(DRAW.gauss(0, 1))) for _ in range(n)]


def yes_or_no(n: int, first: float) -> tuple[list[bool], list[bool]]:
    """Draws two methods on n pictures; the second succeeds on three of ten."""
    return [DRAW.random() < first for _ in range(n)], [DRAW.random() < 0.3 for _ in range(n)]


def of_pairs(n: int) -> list[float]:
    values = [[DRAW.gauss(0, 1) for _ in range(n)] for _ in range(4)]
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    return [signed_rank([x - y for x, y in zip(values[a], values[b], strict=True)], zeros="pratt") for a, b in pairs]


if __name__ == "__main__":
    main()
