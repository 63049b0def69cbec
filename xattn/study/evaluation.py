"""Scores maps or a user's own masks of some images without a run: `xattn.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from xattn.errors import InputError, UnsupportedError
from xattn.explainers.api import QUIET_S, Images, explain, refuse_wrong_images
from xattn.explainers.maps import Maps
from xattn.inference.memory import kept_pages
from xattn.inference.predictor import Predictor
from xattn.metrics.base import metrics as registry
from xattn.metrics.inputs import as_masks, as_regions, as_tensor, refuse_chunk
from xattn.metrics.known_parts import KnownParts
from xattn.metrics.target_base import PER_LABEL
from xattn.metrics.targets import ClassTarget
from xattn.metrics.values import is_value
from xattn.models.asked_targets import Asked
from xattn.models.classifier import Classifier
from xattn.models.loading import refuse_no_classifier
from xattn.progress import Progress
from xattn.study.known_parts import PartsOfBatch
from xattn.study.plan import key_of
from xattn.study.regions import ABSENT, Regions
from xattn.study.schema import COLUMNS, Row
from xattn.study.scoring import rows_of, score

GIVEN_SO = "the mask was given so: all zeros"
OTHER_IMAGE = 1 / 255  # largest difference between pixels of the same image
OTHER_OUTPUT = 0.1  # largest difference between outputs of the same network across precisions and layouts, as a share of their spread


def evaluate(
    classifier: Classifier,
    images: Images,
    maps: Maps | Mapping[str, Tensor],
    metrics: Sequence[str] = ("average-drop", "average-gain", "average-increase", "insertion", "deletion", "sparsity"),
    *,
    target: Asked = "predicted",
    labels: Tensor | Sequence[Any] | None = None,
    regions: Tensor | None = None,
    parts: KnownParts | None = None,
    batch_size: int = 8,
    predictor: Predictor | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Scores explanation maps on the targets they explain, or masks of your own.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        images: the images that were explained: `(B, 3, H, W)` in pixel space, or their files, which `maps` holds decoded. For masks of your
            own give the files again: their rows then carry the pictures' names, and tables pair them with the rows of `explain`.
        maps: the result of `explain`, or masks of your own by name, `{"mine": masks}`: `(B, H, W)` in [0, 1] at the size of the images.
            Such masks are also used as raw maps.
        metrics: names with settings, `name[:key=value,…]`.
        target: the target on which your own masks are scored, as for `explain`; the maps of `explain` carry their targets.
        labels: the images' labels, for your own masks, as for `explain`.
        regions: where each target's object is, for metrics that need it: bool, `(B, H, W)`, or `(B, N, H, W)` with N objects, at the size
            of the images; all False where there is no object.
        parts: the effects of the images' parts on the maps' targets, for metrics that need them; for SketchBirds from
            `xattn.birds.known_parts`.
        batch_size: images scored at once.
        predictor: for perturbed images, from `xattn.inference.fastest`; None: the default one, unmeasured.
        progress: after two seconds, show a progress bar if stderr is a terminal, log lines otherwise.

    Returns:
        One row per value, with the columns of a run's `scores.csv`. `xattn.metrics.tables.comparison` turns the rows into a table with
        intervals; the rows of several calls can be concatenated.

    Raises:
        InputError: maps of other images or of another classifier, images that are not in pixel space, or masks that are not finite or not
            `(B, H, W)` in [0, 1].
        UnsupportedError: a metric needs a probability, and the target has none; or it explains images again, which is impossible for masks
            of your own.

    >>> import torch, xattn
    >>> clf, images = xattn.load("birds:gap", device="cpu"), torch.rand(2, 3, 64, 64)
    >>> rows = xattn.evaluate(clf, images, xattn.explain(clf, images), ["average-drop", "sparsity"])
    >>> rows["metric"].to_list()
    ['average-drop', 'sparsity', 'average-drop', 'sparsity']
    """
    refuse_no_classifier(classifier)
    refuse_chunk(batch_size, "batch_size")
    if images is None or hasattr(images, "__array__"):
        images = as_tensor(images, "images")
    elif not isinstance(images, (str, Path)) and not hasattr(images, "__getitem__") and not hasattr(images, "__iter__"):
        raise InputError(f"images must be those that were explained, as a tensor or as files; got {type(images).__name__}.")
    components = registry.create_all(metrics)
    if regions is None and (without := [metric.spec for metric in components if metric.instance.needs_regions]):
        raise InputError(f"{', '.join(without)} needs the regions of objects: pass regions=, bool, (batch, height, width).")
    if parts is None and (without := [metric.spec for metric in components if metric.instance.needs_parts]):
        raise InputError(f"{', '.join(without)} needs to know the parts of the images: pass parts=, for birds xattn.birds.known_parts(…).")
    own = not isinstance(maps, Maps)
    if not isinstance(maps, Maps):
        if again := [metric.spec for metric in components if metric.instance.explained or metric.instance.needs_rivals]:
            raise UnsupportedError(f"{', '.join(again)} explains images again, which masks cannot: leave it out, or register a method.")
        about = explain(
            classifier, images, ["uniform"], target=target, labels=labels, predictor=predictor, untrained=True, progress=progress
        )
        maps = _own_maps(about, maps)
    # `maps` holds the decoded files, and an image once for each label if several are explained.
    images = images.to(maps.images.device) if isinstance(images, Tensor) and not maps.target_rule.startswith(PER_LABEL) else maps.images
    if images.shape != maps.images.shape:
        raise InputError(
            f"maps are of images {tuple(maps.images.shape)}; got images {tuple(images.shape)}. Pass the images that were explained."
        )
    if not own:  # the forward from which masks take their targets has just been run
        _refuse_other_maps(classifier, images, maps, batch_size)
    where = None if regions is None else _regions(regions, maps.images)
    known = None if parts is None else _parts(parts, maps)
    runs = predictor or Predictor(classifier)
    rows: list[Row] = []
    with kept_pages(), Progress(len(images), progress, QUIET_S) as shown:
        for start in range(0, len(images), batch_size):
            piece = maps.part(start, start + batch_size, images)
            here = None if where is None else where.part(slice(start, start + batch_size))
            these = None if known is None else known.part(slice(start, start + batch_size))
            scores = score(classifier, piece, components, runs, regions=here, parts=these)
            rows += rows_of(classifier, piece, scores, [None] * len(piece.names))
            shown.add(len(piece.names))
    return frame_of(pd.DataFrame([{name: getattr(row, name) for name in COLUMNS} for row in rows], columns=list(COLUMNS)))


def _regions(given: Tensor, images: Tensor) -> Regions:
    """Checks a user's regions."""
    masks = as_regions(given, images)
    if masks.shape[2:] != images.shape[2:]:
        raise InputError(f"regions are at the size of the images, {tuple(images.shape[2:])}; got {tuple(masks.shape[2:])}.")
    return Regions(masks, tuple(None if there else ABSENT for there in masks.flatten(1).any(dim=1).tolist()))


def _parts(given: KnownParts, maps: Maps) -> PartsOfBatch:
    """Checks a user's known parts."""
    target = maps.target
    if not isinstance(target, ClassTarget) or not torch.equal(target.classes.cpu(), given.targets.cpu()):
        asked = ", ".join(map(str, given.targets.tolist()[:3]))
        raise InputError(f"the parts are known for classes {asked}, …, and the maps explain {', '.join(target.names()[:3])}, …: give one.")
    if given.visible.shape[2:] != maps.images.shape[2:]:
        raise InputError(f"parts are at the size of the images, {tuple(maps.images.shape[2:])}; got {tuple(given.visible.shape[2:])}.")
    return PartsOfBatch(given, (None,) * len(given))


def _refuse_other_maps(classifier: Classifier, images: Tensor, maps: Maps, batch_size: int) -> None:
    """Raises if the maps are not of these images by this classifier, judged by its output for the first image."""
    refuse_wrong_images(classifier, images)
    if (off := float((images - maps.images).abs().max())) > OTHER_IMAGE:
        raise InputError(f"maps are from other images: pixels differ by up to {off:.2g}. Pass the images that were explained.")
    size = tuple(images.shape[2:])
    for method, masks in maps.masks.items():
        if as_masks(masks, len(images), f"masks by {method}").shape[1:] != size:
            raise InputError(f"masks by {method} are {tuple(masks.shape[1:])}, and images {size}: explain these images.")
    output, before = classifier.predict(images[:batch_size]), maps.output[:batch_size]
    same = output.shape == before.shape
    if same:
        spread = float(before.flatten(1).float().std(dim=1).max()) if before[0].numel() > 1 else float(before.float().abs().max())
        same = not float((output.to(before) - before).float().abs().max()) > OTHER_OUTPUT * spread
    if not same:
        raise InputError(
            f"maps are from another classifier than {key_of(classifier)}: its output for these images differs from when they were "
            f"made. Explain the images with it. If it is the same classifier, its output is not repeatable (a dropout that stays on?)."
        )


def _own_maps(about: Maps, given: object) -> Maps:
    """Wraps a user's own masks as maps.

    Args:
        about: maps of the same images, whose targets the masks take.
        given: masks `(B, H, W)` by name.
    """
    if not isinstance(given, Mapping) or not given:
        raise InputError(f"evaluate scores the result of explain, or masks by name, {{'mine': masks}}; got {type(given).__name__}.")
    size = (len(about.names), *about.images.shape[2:])
    masks: dict[str, Tensor] = {}
    for name, given_mask in given.items():
        mask = as_masks(given_mask, len(about.names), f"masks '{name}'")
        if not isinstance(name, str) or tuple(mask.shape) != size:
            came = tuple(mask.shape)
            raise InputError(
                f"masks are tensors {size}, (images, height, width), by name; got {came} for {name!r}. xattn.metrics.to_masks "
                f"makes them from maps."
            )
        masks[name] = mask.detach().to(about.images.device, torch.float64 if mask.dtype == torch.float64 else torch.float32)
        if not bool(((masks[name] >= 0) & (masks[name] <= 1)).all()):
            raise InputError(f"the masks '{name}' are not all in [0, 1]: make masks from maps by xattn.metrics.to_masks.")
    flags = {name: ~mask.flatten(1).any(dim=1) for name, mask in masks.items()}
    reasons = {name: tuple(GIVEN_SO if flag else None for flag in found.tolist()) for name, found in flags.items()}
    return replace(about, masks=masks, raw=masks, low_res_masks=masks, degenerate=flags, reasons=reasons, head_maps=None, errors={})


def frame_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns tidy rows with class indices as nullable integers (also in `target` if all targets are classes) and values as floats."""
    targets = rows["target"].dropna()
    if targets.map(lambda target: is_value(str(target))).any():
        return rows.astype(dict.fromkeys(("label", "predicted"), "float64"))
    kinds = dict.fromkeys(("label", "predicted"), "Int64")
    if targets.map(lambda target: str(target).isdecimal()).all():
        rows = rows.assign(target=pd.to_numeric(rows["target"]))
        kinds["target"] = "Int64"
    return rows.astype(kinds)
