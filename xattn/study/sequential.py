"""Sequential stopping: runs that use pictures until a metric has decided the order of the methods."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex

from xattn.errors import InputError, SettingError
from xattn.metrics.base import metrics
from xattn.metrics.confidence_sequences import decided_after, sequence_interval
from xattn.metrics.statistics import CONFIDENCE, MOST_NEEDED, rounded
from xattn.text import counted

if TYPE_CHECKING:
    import pyarrow as pa

    from xattn.data.images import ImageSource

FIRST_ROUND, GROWTH = 16, 1.25  # pictures in the first round; after each later round the total is this many times larger
MOST_LISTED = 10  # pairs that a note lists
Pair = tuple[str, str, str, str]
"""Model, head and two methods."""


@dataclass(frozen=True)
class UntilDecided:
    """Stopping rule: a run ends when a metric has decided the order of every two methods of a classifier.

    Attributes:
        metric: name of the metric, with settings.
        margin: the largest difference that does not matter, in the metric's unit: methods that differ by less also count as decided. None:
            only the order of two methods decides.

    Raises:
        NameUnknownError: the metric does not exist.
        InputError: the metric's values have no bounds.
        SettingError: the margin is not positive, or not below the metric's range.
    """

    metric: str
    margin: float | None = None

    def __post_init__(self) -> None:
        component = metrics.create(self.metric)
        object.__setattr__(self, "metric", component.spec)
        if not all(map(math.isfinite, component.metadata.limits)):
            raise InputError(
                f"until_decided needs a metric that is bounded on both sides; {self.metric} is not: name another, such as deletion."
            )
        if self.margin is None:
            return
        is_number = isinstance(self.margin, (SupportsFloat, SupportsIndex)) and not isinstance(self.margin, bool)
        if not is_number or not 0 < float(self.margin) < self.span:
            raise SettingError(
                f"a margin is the largest difference of {self.metric} that does not matter, above 0 and below {self.span:g}; got "
                f"{self.margin!r:.40}."
            )
        object.__setattr__(self, "margin", float(self.margin))

    @property
    def span(self) -> float:
        """The largest possible difference."""
        low, high = metrics.create(self.metric).metadata.limits
        return high - low

    def refuse(self, known: Sequence[str], pairs: Sequence[Pair], shards: int) -> None:
        """Refuses a run that cannot be decided.

        Args:
            known: the run's metrics.
            pairs: pairs of the run's methods.
            shards: number of shards that its pictures are split into.

        Raises:
            InputError: the run cannot be decided; says what to do.
        """
        if self.metric not in known:
            raise InputError(
                f"the run shall continue until {self.metric} has decided, but it only scores {', '.join(known)}: add the metric "
                f"(--metric {self.metric})."
            )
        if not pairs:
            raise InputError("until_decided needs at least two methods of one classifier to compare: name another method.")
        if shards > 1:
            raise InputError("until_decided needs one run over all pictures, but a shard sees only its own: leave one out.")


def asked(metric: str | None, margin: float | None, has_gallery: bool) -> UntilDecided | None:
    """Returns the stopping rule of a run; None: the run uses all pictures.

    Raises:
        InputError: a margin is given without a metric, or pictures are explained in pairs.
    """
    if metric is None:
        if margin is not None:
            raise InputError(
                "a margin is only for a run that continues until a metric has decided: name the metric "
                "(--until-decided), or leave the margin out."
            )
        return None
    if has_gallery:
        raise InputError("pairs of a gallery share pictures, but until_decided needs independent pictures: leave one out.")
    return UntilDecided(metric, margin)


def shuffled(source: ImageSource, seed: int) -> ImageSource:
    """Returns the source with its images in a random order that depends only on their names and the seed."""
    found = copy.copy(source)
    found.images = sorted(
        source.images, key=lambda image: hashlib.sha256(f"{seed}\0{image.name}".encode(errors="surrogateescape")).digest()
    )
    return found


def ends_of_rounds(count: int, batch_size: int) -> list[int]:
    """Returns the numbers of pictures after which a run checks whether it is decided; whole batches except for the last.

    Args:
        count: number of all pictures.
        batch_size: pictures per batch.
    """
    batches, found = -(-count // batch_size), [-(-FIRST_ROUND // batch_size)]
    while found[-1] < batches:
        found.append(max(found[-1] + 1, math.floor(found[-1] * GROWTH)))
    return [min(end * batch_size, count) for end in found]


def pairs_of(methods: Mapping[tuple[str, str], Sequence[str]]) -> list[Pair]:
    """Returns every two methods of each classifier.

    Args:
        methods: methods of each classifier, by its name and head.
    """
    return [(*classifier, first, second) for classifier, own in methods.items() for first, second in combinations(own, 2)]


class Evidence:
    """Values of the metric so far, and the pairs of methods that they decide.

    Every pair has its own confidence sequence of the mean paired difference, over the pictures for which both methods have a value, in the
    order in which the run used them; a picture that is explained for several targets counts with the mean over them. The error of 5 % is
    shared equally among the pairs (Bonferroni): with 95 % confidence no pair is ever decided wrongly.

    Args:
        until: the metric and the margin.
        pairs: the pairs to decide.
    """

    def __init__(self, until: UntilDecided, pairs: Sequence[Pair]) -> None:
        self.until, self.pairs = until, pairs
        self.confidence = 1 - (1 - CONFIDENCE) / len(pairs)
        self._order: list[str] = []
        self._values: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}  # by model, head, method; by image and target

    def take(self, images: Sequence[str], tables: Sequence[pa.Table]) -> None:
        """Adds the results of a round.

        Args:
            images: names of its pictures, in their order.
            tables: the parts that hold them.
        """
        self._order += images
        for table in tables:
            for row in table.select(["image", "model", "head", "method", "metric", "target", "value"]).to_pylist():
                if row["metric"] == self.until.metric and row["value"] is not None:
                    own = self._values.setdefault((row["model"], row["head"], row["method"]), {})
                    own.setdefault(row["image"], {})[row["target"]] = row["value"]

    def undecided(self) -> int:
        """Returns the number of undecided pairs."""
        return sum(math.isinf(self._decided_after(self.differences(pair))) for pair in self.pairs)

    def differences(self, pair: Pair) -> list[float]:
        """Returns the first method's value minus the second's on each picture, in order; NaN if either has no value."""
        model, head, *methods = pair
        one, other = (self._values.get((model, head, method), {}) for method in methods)
        found = []
        for image in self._order:
            first, second = one.get(image, {}), other.get(image, {})
            both = [first[target] - second[target] for target in first if target in second]
            finite = [value for value in both if math.isfinite(value)]
            found.append(math.fsum(finite) / len(finite) if finite else math.nan)
        return found

    def _decided_after(self, differences: Sequence[float], *, ahead: bool = False) -> float:
        return decided_after(differences, self.until.span, self.until.margin, self.confidence, ahead=ahead)

    def as_json(self, count: int) -> dict[str, Any]:
        """Returns what `run.json` keeps for the note of a table.

        Args:
            count: number of all pictures that were given to the run.
        """
        return {
            "metric": self.until.metric,
            "margin": self.until.margin,
            "confidence": CONFIDENCE,
            "pictures": len(self._order),
            "of": count,
            "pairs": [self._pair(pair) for pair in self.pairs],
        }

    def _pair(self, pair: Pair) -> dict[str, Any]:
        differences, span = self.differences(pair), self.until.span
        mean, low, high, n = sequence_interval(differences, (-span, span), self.confidence)
        after, needed = self._pictures(differences, n)
        model, head, first, second = pair
        return {
            **{"model": model, "head": head, "first": first, "second": second, "n": n},
            **{"difference": _plain(mean), "low": low, "high": high, "decided_after": _plain(after), "needed": _plain(needed)},
            "conclusion": self._conclusion(pair, low, high, after, needed, n),
        }

    def _pictures(self, differences: Sequence[float], n: int) -> tuple[float, float]:
        """Returns after how many pictures the pair was decided, and about how many will decide it; pictures without both values count."""
        after = self._decided_after(differences)
        if math.isfinite(after):
            places = [place for place, value in enumerate(differences, 1) if math.isfinite(value)]
            return (taken := places[int(after) - 1]), taken
        ahead = self._decided_after(differences, ahead=True)
        return after, math.ceil(ahead * len(differences) / n) if math.isfinite(ahead) else ahead

    def _conclusion(self, pair: Pair, low: float, high: float, after: float, needed: float, n: int) -> str:
        higher = metrics.create(self.until.metric).metadata.better == "higher"
        if math.isfinite(after) and (low >= 0 or high <= 0):
            return f"{pair[2] if (low >= 0) == higher else pair[3]} is better"
        if math.isfinite(after):
            return f"equivalent: within ±{self.until.margin:g}"
        if n == 0:
            return "open: no picture has a value of both"
        if needed == math.inf:
            return f"open: {MOST_NEEDED:,} would not decide it"
        return f"open: about {rounded(needed):,} pictures would decide it"


def _plain(value: float) -> float | None:
    """Returns a number that JSON can hold; None for one that is not finite."""
    return value if math.isfinite(value) else None


def stated(kept: Mapping[str, Any]) -> list[str]:
    """Returns sentences that a reader of such a run's values must know.

    Args:
        kept: its entry in `run.json`, from `Evidence.as_json`.
    """
    pairs, metric = kept["pairs"], kept["metric"]
    opened = sum(pair["decided_after"] is None for pair in pairs)
    within = "" if kept["margin"] is None else f" (or their equivalence within ±{kept['margin']:g})"
    stop = (
        f"until {metric} had the order of all methods{within}"
        if not opened
        else f"to the last, and {metric} leaves {opened} of {counted(len(pairs), 'pair')} open"
    )
    said = [
        f"Pictures were taken {stop}: {kept['pictures']} of {kept['of']}. n was chosen by the data: other intervals and tests take it as "
        f"fixed, and do not hold for this run. Those of the confidence sequence hold at any n, {kept['confidence']:.0%} for all pairs "
        "together:"
    ]
    classifiers = len({(pair["model"], pair["head"]) for pair in pairs})
    digits = 1 if metrics.create(metric).metadata.unit == "%" else 3
    for pair in pairs[:MOST_LISTED]:
        of = f"{pair['model']} · {pair['head']}: " if classifiers > 1 else ""
        mean = "–" if pair["difference"] is None else _number(pair["difference"], digits)
        ends = f"[{_number(pair['low'], digits)}, {_number(pair['high'], digits)}]"
        of_pictures = f" on {counted(pair['n'], 'picture')} with a value of both" if 0 < pair["n"] < kept["pictures"] else ""
        said.append(f"{of}{pair['first']} less {pair['second']}, {metric}: {mean} {ends}{of_pictures}, {pair['conclusion']}.")
    if len(pairs) > MOST_LISTED:
        said.append(f"The other {len(pairs) - MOST_LISTED} pairs are in run.json, under 'sequence'.")
    return said


def _number(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")
