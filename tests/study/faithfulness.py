"""Slow replicas of the metrics that remove pixels, for `test_truth`: one picture, one step at a time."""

from __future__ import annotations

from typing import Any

from tests.metrics.test_fills import replaced_plainly
from tests.metrics.test_responses import plain_area, plain_ranks

SPECS = ("srg", "srg:step=100,fill=noise", "road-morf", "road-lerf", "road-lerf:fill=blur,steps=4", "road-morf:fill=black,measure=accuracy")


def value(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    """The value of a metric of one picture."""
    return {"srg": srg, "road-morf": road, "road-lerf": road}[name](replica, name, settings, shown)


def left(replica: Any, shown: Any, gone: list[list[int]], fill: str) -> list[list[float]]:
    """The probabilities with some pixels gone."""
    return replica.several([replaced_plainly(shown.image, some, fill) for some in gone])


def srg(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order = plain_ranks(shown.mask)
    step = int(settings.get("step", 8 * shown.mask.shape[1]))
    cuts = [*range(0, len(order), step), len(order)]
    fill = settings.get("fill", "mean")
    shares = [cut / len(order) for cut in cuts]
    highest_first = [p[shown.target] for p in left(replica, shown, [order[:cut] for cut in cuts], fill)]
    lowest_first = [p[shown.target] for p in left(replica, shown, [order[cut:] for cut in reversed(cuts)], fill)]
    return plain_area([1 - share for share in reversed(shares)], lowest_first) - plain_area(shares, highest_first)


def road(replica: Any, name: str, settings: dict[str, str], shown: Any) -> float:
    order, steps = plain_ranks(shown.mask), int(settings.get("steps", 10))
    cuts = [len(order) * number // steps for number in range(1, steps)]
    gone = [order[:cut] if name == "road-morf" else order[cut:] for cut in cuts]
    found = left(replica, shown, gone, settings.get("fill", "noisy-linear"))
    values = [p[shown.target] if settings.get("measure") != "accuracy" else p.index(max(p)) == shown.target for p in found]
    return 100 * sum(values) / len(values)
