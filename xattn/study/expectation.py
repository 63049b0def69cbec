"""Explains why a network predicts one class and not another: maps of both classes and their contrast, with controls and warnings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tabulate import tabulate
from torch import Tensor
from torch.nn import functional

from xattn.errors import InputError, UnsupportedError
from xattn.explainers.api import explain
from xattn.explainers.base import Need, created
from xattn.explainers.maps import Maps
from xattn.metrics.probability import widened
from xattn.metrics.similarity import spearman
from xattn.metrics.typeset import markdown_text
from xattn.models.classifier import Classifier
from xattn.models.stages import GUESSED
from xattn.study.evaluation import evaluate
from xattn.text import counted

METHODS = ("grad-cam", "layer-cam", "occlusion")
WITHOUT_STAGE = ("integrated-gradients", "smooth-grad", "occlusion")  # for networks without a default stage
CONTROLS = ("random", "centre")
METRICS = ("average-drop", "insertion", "deletion")
CELLS = 7  # per side of the grid on which methods are compared
UNSURE, SURE, AGREE, SAME = 0.1, 1e-4, 0.3, 0.95  # thresholds of probabilities, of 1 − p, and of rank correlations


@dataclass(frozen=True, repr=False)
class Why:
    """Explanation of the predicted class against an expected one, on one picture.

    Attributes:
        maps: by question: the predicted class, the expected one, and "A - B", the evidence for A and against B.
        classifier: name, head and stage.
        probabilities: of the classes: name, p, and rank from 1; predicted and expected first.
        agreement: Spearman's correlation of every two methods, over a grid of 7 × 7 cells, by question.
        rows: scores of methods and controls on the predicted class, as from `xattn.evaluate`.
        warnings: sentences; empty if there are none.
    """

    maps: dict[str, Maps]
    classifier: str
    probabilities: pd.DataFrame
    agreement: pd.DataFrame
    rows: pd.DataFrame
    warnings: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Why {' and '.join(self.maps)}: {counted(len(self.warnings), 'warning')}"

    def text(self) -> str:
        """Returns a report of one page in Markdown."""
        predicted, expected, _ = self.maps
        name = next(iter(self.maps.values())).names[0]
        scores = self.rows.pivot_table(index="method", columns="metric", values="value", sort=False, dropna=False)
        parts = [
            f"# {markdown_text(name)}: {markdown_text(predicted)}, and not {markdown_text(expected)}?",
            markdown_text(self.classifier),
            _table(self.probabilities, ".3g"),
            f"## Do the methods agree?\n\nSpearman's rank correlation of two methods' maps over {CELLS} × {CELLS} cells.",
            _table(self.agreement, ".2f"),
            f"## Are the maps of {markdown_text(predicted)} better than none?\n\nOne picture decides nothing: read them against the "
            f"controls {' and '.join(CONTROLS)}. Lower is better for average-drop and deletion, higher for insertion.",
            _table(scores.reset_index(), ".2f"),
            "## Warnings\n\n" + ("\n".join(f"- {markdown_text(warning)}" for warning in self.warnings) or "None."),
        ]
        return "\n\n".join(parts) + "\n"


def why(
    classifier: Classifier,
    image: Tensor | str | Path,
    expected: int | str | None = None,
    *,
    methods: Sequence[str] | None = None,
    stage: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Why:
    """Explains a picture's predicted class, an expected class, and the evidence for one against the other.

    Args:
        classifier: a classifier with one class per picture.
        image: a file, or `(1, C, H, W)` in pixel space.
        expected: the expected class; None, or the predicted class: the second most probable one.
        methods: at least two; None: grad-cam, layer-cam and occlusion, or others for a network without a default stage.
        stage: where features are taken; None: the default.
        seed: seed of everything random.
        progress: show progress.

    Raises:
        InputError: the input is not one picture, or there are fewer than two methods.
        NameUnknownError: the class or method does not exist.
        UnsupportedError: the classifier does not choose between at least two classes.

    >>> import torch, xattn
    >>> clf = xattn.load("birds:gap", device="cpu")
    >>> list(xattn.why(clf, torch.rand(1, 3, 64, 64), "duskspoon").maps)[1]
    'duskspoon'
    """
    if classifier.reader.dense or classifier.multi_label or classifier.regression or classifier.class_count < 2:
        raise UnsupportedError(f"why compares the predicted class with another, and {classifier.name} does not give one class of several.")
    if methods is None:
        methods = WITHOUT_STAGE if stage is None and not classifier.stages else METHODS
    components = created(methods)
    if len(components) < 2:
        raise InputError(f"why compares methods: give two or more; got {', '.join(methods) or 'none'}.")
    methods = [component.spec for component in components]
    wanted = None if expected is None else classifier.class_index(expected)

    def explained(target: int | str, of: Tensor | str | Path, names: Sequence[str]) -> Maps:
        return explain(classifier, of, names, target=target, stage=stage, seed=seed, progress=progress)

    with_controls = [*methods, *(control for control in CONTROLS if control not in methods)]
    first = explained("predicted", image, with_controls)
    if len(first.names) != 1:
        raise InputError(f"why takes one picture; got {len(first.names)}.")
    p = widened(first.output).softmax(dim=1)[0]
    order = p.argsort(descending=True, stable=True).tolist()
    best = order[0]
    other = order[1] if wanted in (None, best) else wanted
    name, against = classifier.label(best), classifier.label(other)
    second = explained(other, first.images, methods)
    contrast = explained(f"{best} - {other}", first.images, methods)
    maps = {name: first, against: second, f"{name} - {against}": contrast}
    shown = list(dict.fromkeys([best, other, *order[:5]]))
    ranks = [order.index(index) + 1 for index in shown]
    table = pd.DataFrame({"class": [classifier.label(index) for index in shown], "p": p[shown].tolist(), "rank": ranks})
    used = any(Need.FEATURES in component.metadata.needs for component in components)
    where = f" · stage {first.stage}" if used and first.stage is not None else ""
    agreement = _agreement(maps, methods)
    rows = evaluate(classifier, first.images, first, METRICS, progress=progress)
    warnings = [
        *(["no class was expected: the predicted one is compared with the second most probable"] if wanted is None else []),
        *([f"{name} is expected, and predicted: it is compared with the second most probable class"] if wanted == best else []),
        *([f"the stage {first.stage} is a guess: {first.stage.found}"] if used and first.stage and first.stage.found == GUESSED else []),
        *_of_probabilities(p, best, other, name, against, order),
        *_of_maps(maps, methods, agreement),
        *_of_scores(rows, methods),
    ]
    return Why(maps, f"{classifier.name} · {classifier.head_name}{where}", table, agreement, rows, tuple(warnings))


def _of_probabilities(p: Tensor, best: int, other: int, name: str, against: str, order: list[int]) -> list[str]:
    found = []
    if float(1 - p[best]) < SURE:
        found.append(f"the network is sure (1 − p = {float(1 - p[best]):.1e}): no mask can raise {name} further")
    if float(p[best] - p[order[1]]) < UNSURE:
        found.append(f"the network is unsure: the two most probable classes are {100 * float(p[best] - p[order[1]]):.1f} points apart")
    if order.index(other) >= 5:
        found.append(f"{against} is not among the five most probable classes (rank {order.index(other) + 1}): its maps explain little")
    return found


def _of_maps(maps: dict[str, Maps], methods: Sequence[str], agreement: pd.DataFrame) -> list[str]:
    found = [
        f"{method} shows nothing of {question}: {reason}"
        for question, of in maps.items()
        for method in methods
        if (reason := of.reasons[method][0]) is not None
    ]
    (predicted, first), (against, second), (contrast, _) = maps.items()
    for method in methods:
        same = float(spearman(_cells(first[method]), _cells(second[method])))
        if same > SAME:
            found.append(f"{method} shows the same of {predicted} and {against} (rank correlation {same:.2f}): look at {contrast}")
    for question in maps:
        means = agreement[question].mean()
        if means < AGREE:
            found.append(f"the methods disagree on {question} (mean rank correlation {means:.2f}): believe none of them alone")
    return found


def _of_scores(rows: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    values = rows.set_index(["method", "metric"])["value"]
    found = []
    for metric, better in (("insertion", 1), ("deletion", -1)):
        control = max(better * values[each, metric] for each in CONTROLS)
        for method in methods:
            if better * values[method, metric] < control:
                found.append(f"{method} is no better than a control by {metric} on this picture")
    return found


def _cells(masks: Tensor) -> Tensor:
    return functional.adaptive_avg_pool2d(masks[:, None], CELLS)[:, 0]


def _agreement(maps: dict[str, Maps], methods: Sequence[str]) -> pd.DataFrame:
    pairs = [(one, other) for place, one in enumerate(methods) for other in methods[place + 1 :]]
    columns = {question: [float(spearman(_cells(of[one]), _cells(of[other]))) for one, other in pairs] for question, of in maps.items()}
    return pd.DataFrame({"methods": [f"{one}, {other}" for one, other in pairs]} | columns)


def _table(frame: pd.DataFrame, digits: str) -> str:
    cells = frame.astype(object).where(frame.notna(), "–")
    rows = [[_cell(value, digits) for value in line] for line in cells.to_numpy()]
    return str(tabulate(rows, [markdown_text(str(name)) for name in frame.columns], tablefmt="pipe", disable_numparse=True))


def _cell(value: object, digits: str) -> str:
    return format(value, digits) if isinstance(value, float) else markdown_text(str(value))
