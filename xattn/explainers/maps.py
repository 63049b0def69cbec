"""Maps of a batch by several methods: one trace serves them all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from torch.utils.data import Dataset

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.forwards import Predictor
from xattn.classifiers.preprocessing import pixels
from xattn.classifiers.stages import Stage
from xattn.errors import ImageError, InputError, UnsupportedError
from xattn.explainers.facts import MethodFacts, methods
from xattn.explainers.trace import TargetRule, Trace, trace
from xattn.heads import ClassifierHead
from xattn.images import ImageSource
from xattn.memory import kept_pages
from xattn.metrics.masking import Masks, to_masks
from xattn.registry import Part

Images = Tensor | str | Path | Sequence[str | Path] | Dataset[Any]
Target = str | int | Tensor | Sequence[int]


@dataclass(frozen=True)
class Maps(Mapping[str, Tensor]):
    """Masks by method, with the raw maps they were made from.

    `maps["grad-cam"]` is `(B, H, W)` in [0, 1].

    Attributes:
        masks: by method, `(B, H, W)`.
        raw: by method, `(B, h, w)` at the method's own resolution.
        cells: by method, masks at the raw map's resolution.
        degenerate: by method, `(B,)` bool: the map says nothing and its mask is all zeros.
        logits: `(B, K)` of the unmasked images.
        targets: `(B,)` class indices.
        target_rule: "predicted", "label" or "given".
        names: of the images.
        images: `(B, 3, H, W)` in pixel space.
        seed: of the run.
        ranked: `(B, N, h, w)`, maps of a head that has several, in their order, times the min-maxed norm of the features; else None.
    """

    masks: dict[str, Tensor]
    raw: dict[str, Tensor]
    cells: dict[str, Tensor]
    degenerate: dict[str, Tensor]
    logits: Tensor
    targets: Tensor
    target_rule: TargetRule
    names: tuple[str, ...]
    images: Tensor
    seed: int = 0
    ranked: Tensor | None = None

    def __getitem__(self, method: str) -> Tensor:
        if method not in self.masks:
            raise KeyError(f"no maps of '{method}' here; there are those of {', '.join(self.masks)}")
        return self.masks[method]

    def __repr__(self) -> str:
        return f"Maps of {len(self.names)} images by {', '.join(self.masks)}, target {self.target_rule}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def part(self, start: int, stop: int, images: Tensor | None = None) -> Maps:
        """The maps of some of the images."""

        def cut(by_method: dict[str, Tensor]) -> dict[str, Tensor]:
            return {method: found[start:stop] for method, found in by_method.items()}

        return Maps(
            cut(self.masks),
            cut(self.raw),
            cut(self.cells),
            cut(self.degenerate),
            self.logits[start:stop],
            self.targets[start:stop],
            self.target_rule,
            self.names[start:stop],
            (self.images if images is None else images)[start:stop],
            self.seed,
            None if self.ranked is None else self.ranked[start:stop],
        )


def explain(
    classifier: Classifier,
    images: Images,
    methods: Sequence[str] = ("grad-cam",),
    *,
    target: Target = "predicted",
    labels: Tensor | Sequence[int] | None = None,
    stage: str | None = None,
    batch_size: int = 8,
    predictor: Predictor | None = None,
    seed: int = 0,
    untrained: bool = False,
) -> Maps:
    """Explains images by several methods at once.

    Args:
        classifier: from `xattn.load` or `xattn.attach`.
        images: `(B, 3, H, W)` in pixel space (float in [0, 1], not normalised), or files: a folder, a glob, a path, a list of paths;
            or a torch data set of pictures, or of pairs of picture and label.
        methods: names with settings, `name[:key=value,…]`.
        target: "predicted", "label", a class index or name, or an index an image.
        labels: `(B,)` class indices, for target "label".
        stage: where to take features; what enters the pooling if None.
        batch_size: images a forward.
        predictor: for methods that run the network again, from `xattn.classifiers.fastest`; the default one, unmeasured, if None.
        seed: of what is random; mixed with each image's content.
        untrained: explain a head that was never trained all the same.

    Raises:
        NameUnknownError: an unknown method, setting, stage or class.
        ImageError: a file that cannot be read.
        UnsupportedError: a method cannot run on this classifier, or its head was never trained.
    """
    parts = method_parts(methods)
    if not untrained:
        refuse_untrained(classifier)
    names, tensor, found_labels = _images(classifier, images)
    targets, rule = resolve_targets(classifier, target, found_labels if labels is None else labels, len(names))
    place = classifier.stage(stage)
    runs = predictor or Predictor(classifier)
    runs_again = len(names) > batch_size or any(hasattr(part.run, "forwards") for part in parts)
    with kept_pages() if runs_again else nullcontext():  # one pass uses no page twice, and would leave none to the next call
        pieces = [
            maps_of_batch(
                classifier,
                tensor[start : start + batch_size],
                parts,
                None if targets is None else targets[start : start + batch_size],
                rule,
                names[start : start + batch_size],
                place,
                runs,
                seed,
            )
            for start in range(0, len(names), batch_size)
        ]
    return _joined(pieces)


def refuse_untrained(classifier: Classifier) -> None:
    """Raises where a head's logits are those of chance."""
    if not classifier.trained:
        raise UnsupportedError(
            f"{classifier.head_name} on {classifier.name} was never trained: its logits and maps say nothing. Train it (xattn train), "
            "load a trained file, or ask for it all the same: --untrained, in Python untrained=True (or .trained = True after a loop of "
            "your own)."
        )


def method_parts(specs: Sequence[str]) -> list[Part[MethodFacts]]:
    """The methods that specs name, each once."""
    if isinstance(specs, str):
        raise InputError(f"methods are a list: write methods=['{specs}'].")
    if not specs:
        raise InputError("no method is named: write methods=['grad-cam'].")
    return list({part.spec: part for part in (methods.part(spec) for spec in specs)}.values())


def maps_of_batch(
    classifier: Classifier,
    images: Tensor,
    parts: Sequence[Part[MethodFacts]],
    targets: Tensor | None,
    rule: TargetRule,
    names: Sequence[str],
    stage: Stage,
    predictor: Predictor,
    seed: int = 0,
) -> Maps:
    """All methods' maps of one batch, from one trace."""
    return maps_of_trace(trace_of_batch(classifier, images, parts, targets, stage, predictor, seed), parts, rule, names, images)


def trace_of_batch(
    classifier: Classifier,
    images: Tensor,
    parts: Sequence[Part[MethodFacts]],
    targets: Tensor | None,
    stage: Stage,
    predictor: Predictor,
    seed: int = 0,
) -> Trace:
    """One trace for what all methods need."""
    needs = frozenset().union(*(part.facts.needs for part in parts))
    return trace(classifier, images, targets, stage=stage, needs=needs, predictor=predictor, seed=seed)


def maps_of_trace(traced: Trace, parts: Sequence[Part[MethodFacts]], rule: TargetRule, names: Sequence[str], images: Tensor) -> Maps:
    """All methods' maps from one trace."""
    size = (images.shape[2], images.shape[3])
    raw: dict[str, Tensor] = {}
    masks: dict[str, Masks] = {}
    cells: dict[str, Tensor] = {}
    for part in parts:
        with torch.inference_mode(False):
            found = part.run(traced).detach()
        found = found if found.dtype == torch.float64 else found.float()
        raw[part.spec] = found
        if part.facts.direct:
            masks[part.spec] = Masks(found, torch.zeros(len(found), dtype=torch.bool, device=found.device))
            cells[part.spec] = found
        else:
            masks[part.spec] = to_masks(found, size)
            cells[part.spec] = (
                masks[part.spec].masks if found.shape[-2:] == size else to_masks(found, (found.shape[1], found.shape[2])).masks
            )
    return Maps(
        {name: made.masks for name, made in masks.items()},
        raw,
        cells,
        {name: made.degenerate for name, made in masks.items()},
        traced.logits.detach(),
        traced.targets,
        rule,
        tuple(names),
        images,
        traced.seed,
        _ranked(traced),
    )


def _ranked(traced: Trace) -> Tensor | None:
    head, maps = traced.classifier.head, traced.attended.attention.get(traced.stage.name)
    if not isinstance(head, ClassifierHead) or maps is None:
        return None
    return head.ranked(traced.features, maps.detach().to(traced.features.dtype))


def resolve_targets(
    classifier: Classifier, target: Target, labels: Tensor | Sequence[int] | None, count: int
) -> tuple[Tensor | None, TargetRule]:
    """Class indices `(B,)` and the rule they follow; None where the classifier's own prediction is to be taken."""
    if isinstance(target, str) and target == "predicted":
        return None, "predicted"
    if isinstance(target, str) and target == "label":
        if labels is None:
            raise InputError("target 'label' needs labels: pass labels, or a source that has them.")
        return _indices(classifier, labels, count), "label"
    if isinstance(target, str) or (isinstance(target, SupportsIndex) and not isinstance(target, Tensor)):
        index = classifier.class_index(target if isinstance(target, str) else int(target))
        return torch.full((count,), index, device=classifier.device), "given"
    return _indices(classifier, target, count), "given"


def _indices(classifier: Classifier, values: Tensor | Sequence[int], count: int) -> Tensor:
    indices = [classifier.class_index(value) for value in (values.tolist() if isinstance(values, Tensor) else values)]
    if len(indices) != count:
        raise InputError(f"{count} images need {count} classes; {len(indices)} came.")
    return torch.tensor(indices, device=classifier.device)


def _images(classifier: Classifier, images: Images) -> tuple[list[str], Tensor, list[int] | None]:
    if isinstance(images, Tensor):
        if images.dim() != 4 or len(images) == 0:
            raise InputError(f"images must be (batch, 3, height, width) with at least one image; got {tuple(images.shape)}.")
        if images.is_floating_point() and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
            raise InputError(
                f"images are in pixel space, [0, 1]; these reach from {images.min():.3g} to {images.max():.3g}. "
                "Do not normalise them: the classifier does."
            )
        if tuple(images.shape[2:]) != classifier.input_size:
            raise InputError(
                f"{classifier.name} takes images of {classifier.input_size}; got {tuple(images.shape[2:])}. Resize them, or load the "
                "classifier with input_size."
            )
        return [str(number) for number in range(len(images))], images.to(classifier.device), None
    source = ImageSource(images)
    crops, found = [], []
    for image in source.images:
        try:
            decoded, crop = source.decode(image, classifier.preprocessing)
            crops.append(crop)
            found.append(decoded)
        except ImageError as error:
            raise ImageError(f"{image.path}: {error}. A study goes on without such an image; explain needs all of them.") from error
    labels = [classifier.class_index(image.label) for image in found if image.label is not None]
    return [image.name for image in source.images], pixels(torch.stack(crops), classifier.device), labels if source.labelled else None


def _joined(pieces: Sequence[Maps]) -> Maps:
    if len(pieces) == 1:
        return pieces[0]
    first = pieces[0]

    def together(field: str) -> dict[str, Tensor]:
        return {method: torch.cat([getattr(piece, field)[method] for piece in pieces]) for method in first.masks}

    return Maps(
        together("masks"),
        together("raw"),
        together("cells"),
        together("degenerate"),
        torch.cat([piece.logits for piece in pieces]),
        torch.cat([piece.targets for piece in pieces]),
        first.target_rule,
        tuple(name for piece in pieces for name in piece.names),
        torch.cat([piece.images for piece in pieces]),
        first.seed,
        None if first.ranked is None else torch.cat([piece.ranked for piece in pieces if piece.ranked is not None]),
    )
