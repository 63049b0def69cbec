"""Model randomisation test: whether a method's map changes when the network's layers are re-initialised, one after the other.

Sources: Adebayo et al. 2018, Sec. 3 (the test); Hedström et al. 2024 (over noisy copies of the picture, and the rise in entropy).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor

from xattn.errors import InputError, NameUnknownError
from xattn.explainers.api import QUIET_S, Images, explain
from xattn.explainers.base import MethodComponent, created
from xattn.explainers.maps import Maps, maps_of_trace, needs_of
from xattn.explainers.trace import Trace
from xattn.inference.predictor import Predictor
from xattn.metrics.masking import to_masks
from xattn.metrics.seeds import content_seeds
from xattn.metrics.similarity import entropy, pearson, spearman, ssim
from xattn.metrics.statistics import Interval, mean_interval
from xattn.models.asked_targets import Asked
from xattn.models.classifier import Classifier
from xattn.models.layout import Stage
from xattn.models.randomised import Layer, copied, layers_of, redraw
from xattn.models.target_rules import Given
from xattn.progress import Progress
from xattn.text import counted

Order = Literal["cascading", "independent"]
ORDERS: tuple[Order, ...] = get_args(Order)
OTHER = "another picture"
"""Used instead of an order: compares with the trained network's map of the next picture."""

SIMILARITIES = ("spearman", "pearson", "ssim")
ENTROPY = "entropy-rise"
THRESHOLD = 0.3
MOST_BLANK = 0.5  # share of maps that show nothing above which the remaining maps give no verdict
NOISE = 0.15  # standard deviation, as in smooth-grad
SHOWN_PICTURES, SHOWN_STEPS = 2, 7

Verdict = Literal["passes", "fails", "undecided"]


@dataclass(frozen=True, repr=False)
class Randomisation:
    """Result of the model randomisation test for some methods on one classifier.

    Attributes:
        rows: one row per value: image, model, head, method, target, order ("cascading", "independent", or "another picture"), step (from 1,
            at the output), layer, metric ("spearman", "pearson", "ssim", "entropy-rise") and value; NaN if a map shows nothing.
        layers: names, from the output to the input.
        threshold: threshold of the verdict.
        images: the first pictures, `(n, C, H, W)` in pixel space.
        shown: raw maps of these pictures by order, step (0: the trained network) and method.
    """

    rows: pd.DataFrame
    layers: tuple[str, ...]
    threshold: float
    images: Tensor
    shown: dict[tuple[str, int, str], Tensor]

    def verdicts(self) -> pd.DataFrame:
        """Returns one row per method: the verdict and the numbers behind it, each a mean over pictures with its 95 % interval.

        A method fails if its map does not change: if Spearman's correlation with the map of the trained network, averaged over the steps of
        the cascade, is above the threshold for the whole interval over pictures. It passes if the whole interval is below the threshold.
        Without a cascade the steps of the independent order are used.
        """
        order = ORDERS[0] if (self.rows["order"] == ORDERS[0]).any() else ORDERS[1]
        return pd.DataFrame(
            [self._verdict(str(method), group, order) for method, group in self.rows.groupby("method", sort=False)],
        )

    def _verdict(self, method: str, group: pd.DataFrame, order: Order) -> dict[str, object]:
        steps = group[group["order"] == order]
        found = _over_pictures(steps[steps["metric"] == "spearman"])
        maps = steps[steps["metric"] == "spearman"]
        blank = float(maps["value"].isna().mean())
        line: dict[str, object] = {"method": method, "verdict": _verdict_of(found, self.threshold) if blank <= MOST_BLANK else "undecided"}
        line |= {"spearman": found.mean, "spearman low": found.low, "spearman high": found.high}
        last = steps[steps["step"] == steps["step"].max()]
        for metric in SIMILARITIES:
            if metric != "spearman":
                line[metric] = _over_pictures(steps[steps["metric"] == metric]).mean
            line[f"{metric} at the end"] = _over_pictures(last[last["metric"] == metric]).mean
            others = group[(group["order"] == OTHER) & (group["metric"] == metric)]
            line[f"{metric} of another picture"] = _over_pictures(others).mean
        rise = _over_pictures(group[group["metric"] == ENTROPY])
        line |= {ENTROPY: rise.mean, f"{ENTROPY} low": rise.low, f"{ENTROPY} high": rise.high}
        return line | {"n": found.n, "without contrast": blank}

    def text(self) -> str:
        """Returns the verdicts as a Markdown table, and explains its columns."""
        from tabulate import tabulate

        headers = [
            "method",
            "verdict",
            "Spearman [95 %]",
            "at the end",
            "Pearson",
            "SSIM",
            "another picture: Spearman",
            "SSIM",
            "entropy rise [95 %]",
        ]
        lines = [
            [
                line["method"],
                line["verdict"],
                _written(line["spearman"], line["spearman low"], line["spearman high"]),
                *(_written(line[name]) for name in ("spearman at the end", "pearson", "ssim")),
                *(_written(line[f"{name} of another picture"]) for name in ("spearman", "ssim")),
                _written(line[ENTROPY], line[f"{ENTROPY} low"], line[f"{ENTROPY} high"]),
            ]
            for line in self.verdicts().to_dict("records")
        ]
        body = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=["left", "left", *["right"] * (len(headers) - 2)])
        return f"{body}\n\n" + "".join(f"- {note}\n" for note in self.notes())

    def __repr__(self) -> str:
        """As a terminal shows it."""
        return self.text()

    def notes(self) -> list[str]:
        """Returns what a reader of the table must know."""
        verdicts = self.verdicts()
        n, blank = int(verdicts["n"].max()), verdicts[verdicts["without contrast"] > 0]
        notes = [
            f"Similarity of a map to that of the trained network: the mean over those of {counted(len(self.layers), 'step')} from the "
            f"output to the input at which the map shows something, over n = {counted(n, 'picture')}. A method passes if the interval of "
            f"Spearman's correlation lies below {self.threshold:g}, and fails if it lies above.",
            "Another picture: the map of the next picture by the trained network: what is alike without anything in common. SSIM is to be "
            "read against it.",
            "Entropy rise: relative rise of a map's entropy once all layers are random; of a few cells it says little.",
        ]
        notes += [
            f"{line['method']}, n = {line['n']}: {line['without contrast']:.0%} of its maps show nothing and have no similarity"
            f"{', too many for a verdict' if line['without contrast'] > MOST_BLANK else ''}."
            for line in blank.to_dict("records")
        ]
        return notes

    def save(self, folder: str | Path) -> Path:
        """Writes `scores.csv`, one row per value, and `verdicts.csv`, one row per method, into a new folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.rows.to_csv(folder / "scores.csv", index=False)
        self.verdicts().to_csv(folder / "verdicts.csv", index=False)
        return folder


def _over_pictures(rows: pd.DataFrame) -> Interval:
    """Returns the interval over pictures of each picture's mean over the steps."""
    return mean_interval(rows.groupby(["image", "target"], sort=False)["value"].mean().to_list())


def _verdict_of(found: Interval, threshold: float) -> Verdict:
    if found.low > threshold:
        return "fails"
    return "passes" if found.high < threshold else "undecided"


def _written(mean: Any, low: float = math.nan, high: float = math.nan) -> str:
    ends = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
    return "–" if math.isnan(mean) else f"{mean:.2f}{ends}"


def randomise(
    classifier: Classifier,
    images: Images,
    methods: Sequence[str],
    *,
    orders: Sequence[Order] = ("cascading",),
    steps: int | None = None,
    samples: int = 0,
    threshold: float = THRESHOLD,
    target: Asked = "predicted",
    labels: Tensor | Sequence[Any] | None = None,
    stage: str | None = None,
    batch_size: int = 8,
    seed: int = 0,
    untrained: bool = False,
    progress: bool = True,
) -> Randomisation:
    """Re-initialises the layers of a copy of the network, and compares each method's maps with those of the trained network.

    Args:
        classifier: from `xattn.load` or `xattn.attach`; it is copied, and is not changed.
        images: as for `explain`.
        methods: names with settings. Maps are compared by their absolute values, at their own resolution; SSIM compares their masks.
        orders: "cascading": from the output down, each layer on top of those before it; "independent": each layer alone.
        steps: merge neighbouring layers into this many steps; None: every layer alone.
        samples: noisy copies of each picture whose maps are averaged (the smooth test); 0: the picture itself.
        threshold: Spearman's correlation above which a map counts as unchanged.
        target: the target to explain, as for `explain`; the trained network chooses it, and it is kept for the other networks.
        labels: labels of the images, as for `explain`.
        stage: the stage from which features are taken.
        batch_size: images per forward.
        seed: seed of the new weights and of the noise.
        untrained: also accept a head that was never trained.
        progress: as for `explain`.

    Returns:
        The values, and a verdict for each method.

    Raises:
        NameUnknownError: a method, setting, stage or order does not exist.
        InputError: images cannot be used, or a number is below one.
        ImageError: a file cannot be read.
        UnsupportedError: a method cannot run on this classifier, or the network cannot be copied or has no layer to re-initialise.

    **Differs** from Adebayo et al. 2018: see `xattn.models.randomised.redraw`; they define no threshold. From Hedström et al. 2024: they
    also average over the steps, starting at the input; here noise is clipped to [0, 1].

    >>> import torch, xattn
    >>> found = randomise(xattn.load("birds:gap", device="cpu"), torch.rand(3, 3, 64, 64), ["edges"], steps=2)
    >>> found.verdicts()["verdict"].to_list()
    ['fails']
    """
    _refuse(orders, steps, samples, threshold)
    components = created(methods)
    about = {"target": target, "labels": labels, "stage": stage, "batch_size": batch_size, "seed": seed, "untrained": untrained}
    first = explain(classifier, images, methods, progress=progress, **about)  # type: ignore[arg-type]
    run = _Test(first, components, batch_size, seed, samples)
    copy = copied(classifier)
    layers = layers_of(copy, steps)[::-1]
    if not layers:
        raise InputError(f"{classifier.name} has no parameters to randomise.")
    trained = run.maps(copy) if samples else first.raw
    shown: dict[tuple[str, int, str], Tensor] = {}
    frames = [run.compared(trained, {name: raw.roll(-1, 0) for name, raw in trained.items()}, OTHER, 0, "")] if len(first.names) > 1 else []
    with Progress(len(orders) * len(layers) * len(first.names), progress, QUIET_S) as bar:
        for order in orders:
            shown |= {(order, 0, method): raw[:SHOWN_PICTURES] for method, raw in trained.items()}
            kept = set(_spread(len(layers), SHOWN_STEPS))
            for step, layer, network in _networks(classifier, copy, layers, order, seed):
                maps = run.maps(network)
                frames.append(run.compared(trained, maps, order, step, layer.name))
                if step in kept:
                    shown |= {(order, step, method): raw[:SHOWN_PICTURES].clone() for method, raw in maps.items()}
                if order == "cascading" and step == len(layers):
                    frames.append(run.risen(trained, maps, step, layer.name))
                bar.add(len(first.names))
    rows = pd.concat(frames, ignore_index=True)
    rows.insert(1, "model", classifier.name)
    rows.insert(2, "head", classifier.head_name)
    return Randomisation(rows, tuple(layer.name for layer in layers), threshold, first.images[:SHOWN_PICTURES].cpu(), shown)


def _refuse(orders: Sequence[Order], steps: int | None, samples: int, threshold: float) -> None:
    for order in [orders] if isinstance(orders, str) else orders:
        if order not in ORDERS:
            raise NameUnknownError("order of layers", str(order), ORDERS)
    if isinstance(orders, str) or not orders:
        raise InputError(f"orders are a list of {' and '.join(ORDERS)}; got {orders!r}.")
    if (steps is not None and steps < 1) or samples < 0:
        raise InputError(f"steps must be at least 1 and samples at least 0; got steps={steps}, samples={samples}.")
    if not 0 < threshold < 1:
        raise InputError(f"a threshold of Spearman's correlation lies between 0 and 1; got {threshold}.")


def _spread(count: int, wanted: int) -> list[int]:
    """Chooses steps from 1 to `count`, evenly spaced, including the last."""
    return sorted({max(1, round(count * place / min(count, wanted))) for place in range(1, min(count, wanted) + 1)})


def _networks(
    classifier: Classifier, copy: Classifier, layers: Sequence[Layer], order: Order, seed: int
) -> Iterator[tuple[int, Layer, Classifier]]:
    """Yields the copy after each step; changes of another order are undone first."""
    trained = dict(classifier.named_parameters())

    def restore() -> None:
        with torch.no_grad():
            for name, parameter in copy.named_parameters():
                parameter.copy_(trained[name])

    restore()
    for step, layer in enumerate(layers, 1):
        redraw(copy, layer, seed)
        yield step, layer, copy
        if order == "independent":
            restore()


@dataclass(frozen=True)
class _Test:
    """The pictures and methods of a randomisation test.

    Attributes:
        first: maps of the trained network.
        components: the methods.
        batch_size: images per forward.
        seed: of the noise.
        samples: noisy copies of each picture; 0: the picture itself.
    """

    first: Maps
    components: Sequence[MethodComponent]
    batch_size: int
    seed: int
    samples: int

    def maps(self, classifier: Classifier) -> dict[str, Tensor]:
        """Computes raw maps of all pictures by a changed network, for the targets of the trained network, by method."""
        pieces = [self._batch(classifier, start) for start in range(0, len(self.first.names), self.batch_size)]
        return {component.spec: torch.cat([piece[component.spec] for piece in pieces]) for component in self.components}

    def _batch(self, classifier: Classifier, start: int) -> dict[str, Tensor]:
        part = self.first.part(start, start + self.batch_size)
        stage = None if part.stage is None else classifier.stage(part.stage.name)
        found: dict[str, Tensor] = {}
        for images in self._noisy(part.images):
            for method, raw in self._explained(classifier, part, images, stage).items():
                found[method] = found[method] + raw if method in found else raw
        return {method: raw / max(1, self.samples) for method, raw in found.items()}

    def _explained(self, classifier: Classifier, part: Maps, images: Tensor, stage: Stage | None) -> dict[str, Tensor]:
        rule = Given(part.target_rule, part.target)
        needs, predictor = needs_of(self.components), Predictor(classifier)
        trace = Trace(classifier, images, rule, stage=stage, needs=needs, predictor=predictor, seed=part.seed)
        return maps_of_trace(trace, self.components, part.names, images).raw

    def _noisy(self, images: Tensor) -> Iterator[Tensor]:
        if not self.samples:
            yield images
            return
        generators = [torch.Generator().manual_seed(seed) for seed in content_seeds(images, self.seed)]
        for _ in range(self.samples):
            noise = torch.stack([torch.randn(images.shape[1:], generator=generator) for generator in generators])
            yield (images + NOISE * noise.to(images)).clamp(0, 1)

    def compared(self, trained: dict[str, Tensor], maps: dict[str, Tensor], order: str, step: int, layer: str) -> pd.DataFrame:
        """Returns rows with the similarity of each map to that of the trained network."""
        height, width = self.first.images.shape[2:]
        frames = []
        for method, raw in maps.items():
            masks, others = (to_masks(some.abs(), (height, width)) for some in (trained[method], raw))
            alike = ssim(masks.masks, others.masks)
            blank = (masks.degenerate | others.degenerate).cpu()
            values = {"spearman": spearman(trained[method], raw), "pearson": pearson(trained[method], raw)}
            values["ssim"] = torch.where(blank, torch.nan, alike)
            frames += [self._frame(method, order, step, layer, metric, found) for metric, found in values.items()]
        return pd.concat(frames, ignore_index=True)

    def risen(self, trained: dict[str, Tensor], maps: dict[str, Tensor], step: int, layer: str) -> pd.DataFrame:
        """Returns rows with the relative rise in entropy; NaN if the map of the trained network has no entropy."""
        frames = []
        for method, raw in maps.items():
            before, after = entropy(trained[method]), entropy(raw)
            rise = (after - before) / torch.where(before > 0, before, torch.nan)
            frames.append(self._frame(method, "cascading", step, layer, ENTROPY, rise))
        return pd.concat(frames, ignore_index=True)

    def _frame(self, method: str, order: str, step: int, layer: str, metric: str, values: Tensor) -> pd.DataFrame:
        columns = {"image": self.first.names, "method": method, "target": self.first.target.names(), "order": order, "step": step}
        return pd.DataFrame({**columns, "layer": layer, "metric": metric, "value": values.tolist()})
