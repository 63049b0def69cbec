"""`Maps`: the saliency maps of a batch by several methods, computed from one trace."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from xattn.catalogue import is_direct
from xattn.data.photographs import Photographs
from xattn.data.preprocessing import Region, as_picture
from xattn.explainers.base import MethodComponent, Need
from xattn.explainers.reasons import reasons_of
from xattn.explainers.trace import Trace
from xattn.heads.base import HeadMaps
from xattn.inference.predictor import Predictor
from xattn.metrics.masking import Masks, to_masks
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget
from xattn.models.classifier import Classifier
from xattn.models.layout import Stage
from xattn.models.target_rules import Given
from xattn.overlays import CMAP, SIGNED_CMAP, Interpolation, OverlayStyle, contact_sheet, is_signed, overlay, shown_values
from xattn.text import counted


@dataclass(frozen=True)
class Maps(Mapping[str, Tensor]):
    """Masks by method, with the raw maps that they were made from.

    `maps["grad-cam"]` is `(B, H, W)` in [0, 1].

    Attributes:
        masks: by method, `(B, H, W)`.
        raw: by method, `(B, h, w)` at the method's own resolution. The raw map of a signed method (`grad-cam:signed=true`) is negative
            where there is evidence against the target; its mask is made of the positive part.
        low_res_masks: by method, masks at the raw map's resolution.
        degenerate: by method, `(B,)` bool: the map shows nothing and its mask is all zeros.
        reasons: by method, why each degenerate map shows nothing; None for one that shows something.
        output: of the network for the unmasked images: logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`.
        target: what is explained for each image.
        names: of the images.
        images: `(B, 3, H, W)` in pixel space.
        stage: where features were taken; None for a network without a default stage.
        seed: of the run.
        head_maps: for a head with several maps, these maps in their order; else None.
        photographs: the pictures that were explained, if they came from files or a data set; None for tensors.
        of_patches: by method, at a stage of patches, `(B, n, h, w)`: the map of each patch, before the patches are joined.
        boxes: of a two-stream network, `(B, n, 4)`, the positions of the patches as x1, y1, x2, y2 in pixels of the image; else None.
        alpha: of a two-stream network, `(B, n, T)`: the weight of each step that looks at a patch; else None.
        errors: by method, for methods that run only a share of their passes (`score-cam:budget=0.1`): the predicted standard error of each
            cell of the raw map.
    """

    masks: dict[str, Tensor]
    raw: dict[str, Tensor]
    low_res_masks: dict[str, Tensor]
    degenerate: dict[str, Tensor]
    reasons: dict[str, tuple[str | None, ...]]
    output: Tensor
    target: Target
    names: tuple[str, ...]
    images: Tensor
    stage: Stage | None
    seed: int = 0
    head_maps: HeadMaps | None = None
    photographs: Photographs | None = None
    of_patches: dict[str, Tensor] = field(default_factory=dict)
    boxes: Tensor | None = None
    alpha: Tensor | None = None
    errors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def logits(self) -> Tensor:
        """The network's output for the unmasked images."""
        return self.output

    @property
    def targets(self) -> Tensor | Target:
        """Targets for the functions of `xattn.metrics`: class indices `(B,)`, or the target if it is not a class."""
        target = self.target  # class indices mean the softmax probability of that class
        return target.classes if isinstance(target, ClassTarget) and not target.multi_label else target

    @property
    def target_rule(self) -> str:
        """How the targets were chosen: "predicted", "label", "given", …"""
        return self.target.rule

    @property
    def ranked(self) -> Tensor | None:
        """For a head with several maps, these times the min-maxed norm of the features, `(B, N, h, w)`; else None."""
        return None if self.head_maps is None else self.head_maps.shown

    def __getitem__(self, method: str) -> Tensor:
        if method not in self.masks:
            raise KeyError(f"there are no maps of '{method}', only of {', '.join(self.masks)}")
        return self.masks[method]

    def __repr__(self) -> str:
        return f"Maps of {counted(len(self.names), 'image')} by {', '.join(self.masks)}, target {self.target_rule}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.masks)

    def __len__(self) -> int:
        return len(self.masks)

    def overlay(
        self,
        method: str,
        *,
        cmap: str | None = None,
        alpha: float = 0.5,
        interpolation: Interpolation = "bilinear",
        contour: float | Sequence[float] = (),
    ) -> list[Image.Image]:
        """Overlays the maps of a method, in colour, on the photographs, each at its own size.

        The resize and crop of the preprocessing are undone: a cell of the map lies where the network saw it, and pixels that the network
        did not see are not coloured. Images given as a tensor are shown unchanged.

        Args:
            method: one of the methods of these maps.
            cmap: name of one of matplotlib's colour maps; None: inferno, and RdBu_r around zero for a signed method.
            alpha: opacity of the colours, from 0 to 1.
            interpolation: "bilinear", or "nearest", which shows the map's cells.
            contour: a level in (0, 1), or several, at which the mask is outlined.

        Raises:
            InputError: an opacity or level is out of range.
            NameUnknownError: there is no such colour map or interpolation.
            ImageError: a file can no longer be read.

        >>> import torch, xattn
        >>> maps = xattn.explain(xattn.load("birds:gap", device="cpu"), torch.rand(1, 3, 64, 64))
        >>> maps.overlay("grad-cam", alpha=0.4, contour=0.5)[0].size
        (64, 64)
        """
        levels = tuple(contour) if isinstance(contour, Sequence) and not isinstance(contour, str) else (contour,)
        style = OverlayStyle(cmap, alpha, interpolation, levels)
        self[method]  # refused if it is not there
        signed, direct = is_signed(method), is_direct(method)
        maps = zip(self.raw[method].detach().float().cpu().numpy(), self._pictures(), strict=True)
        return [
            overlay(picture, shown_values(raw, direct=direct, signed=signed), region, style, SIGNED_CMAP if signed else CMAP)
            for raw, (picture, region) in maps
        ]

    def show(self, methods: Sequence[str] | None = None, *, count: int = 6, side: int = 160) -> Image.Image:
        """A contact sheet with one row per image: the photograph and each method's overlay. Notebooks display it automatically.

        Args:
            methods: the columns; None: all methods.
            count: number of images, starting with the first.
            side: size of each picture, in pixels.

        Raises:
            KeyError: there is no such method.
        """
        first = self.part(0, count)
        chosen = list(self) if methods is None else list(methods)
        columns = [[picture for picture, _ in first._pictures()], *(first.overlay(method) for method in chosen)]
        return contact_sheet(list(zip(*columns, strict=True)), ["", *chosen], side)

    def _repr_png_(self) -> bytes:
        """The contact sheet as PNG, for notebooks."""
        file = io.BytesIO()
        self.show().save(file, "PNG")
        return file.getvalue()

    def _pictures(self) -> Iterator[tuple[Image.Image, Region]]:
        if self.photographs is not None:
            yield from self.photographs.of(self.names)
            return
        for image in self.images:
            picture = as_picture((image.detach() * 255).round().clamp(0, 255).to(torch.uint8))
            yield picture, Region(0, 0, *picture.size)

    def part(self, start: int, stop: int, images: Tensor | None = None) -> Maps:
        """The maps of some of the images."""
        part = self if images is None else replace(self, images=images)
        return Maps(**{f.name: _cut(getattr(part, f.name), slice(start, stop)) for f in fields(self)})


def _cut(value: Any, part: slice) -> Any:
    if isinstance(value, dict):
        return {method: found[part] for method, found in value.items()}
    if isinstance(value, HeadMaps):
        return HeadMaps(value.weighted[part], value.shown[part])
    return value if value is None or isinstance(value, (int, Stage, Photographs)) else value[part]


def joined(pieces: Sequence[Maps]) -> Maps:
    """Joins the maps of several batches."""
    if len(pieces) == 1:
        return pieces[0]
    return Maps(**{f.name: _joined([getattr(piece, f.name) for piece in pieces]) for f in fields(Maps)})


def _joined(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return {method: _joined([value[method] for value in values]) for method in first}
    if isinstance(first, HeadMaps):
        return HeadMaps(*(torch.cat(column) for column in zip(*values, strict=True)))
    if isinstance(first, Target):
        return first.joined(values)
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    return first if first is None or isinstance(first, (int, Stage, Photographs)) else tuple(name for value in values for name in value)


def needs_of(components: Sequence[MethodComponent]) -> frozenset[Need]:
    """What some methods need from a trace."""
    return frozenset().union(*(component.metadata.needs for component in components))


def maps_of_trace(trace: Trace, components: Sequence[MethodComponent], names: Sequence[str], images: Tensor) -> Maps:
    """The maps of all methods from one trace.

    Args:
        trace: of the images.
        components: the methods.
        names: of the images.
        images: as given by the caller.
    """
    raw: dict[str, Tensor] = {}
    masks: dict[str, Masks] = {}
    low_res: dict[str, Tensor] = {}
    of_patches: dict[str, Tensor] = {}
    for component in components:
        made = _maps_of(trace, component)
        raw[component.spec], masks[component.spec], low_res[component.spec] = made.raw, made.masks, made.low_res
        if made.of_patches is not None:
            of_patches[component.spec] = made.of_patches
    looks = trace.looks
    return Maps(
        {name: found.masks for name, found in masks.items()},
        raw,
        low_res,
        {name: found.degenerate for name, found in masks.items()},
        {c.spec: reasons_of(trace, c, raw[c.spec], masks[c.spec].degenerate) for c in components},
        trace.output.detach(),
        trace.target,
        tuple(names),
        images,
        trace.given_stage,
        trace.seed,
        _head_maps(trace),
        of_patches=of_patches,
        boxes=None if looks is None else looks.boxes,
        alpha=None if looks is None else looks.alpha.detach(),
        errors={c.spec: trace.errors[repr(c.instance)] for c in components if repr(c.instance) in trace.errors},
    )


class _Made(NamedTuple):
    """Raw maps of a batch by one method, their masks at both resolutions, and the maps of patches at a stage of patches."""

    raw: Tensor
    masks: Masks
    low_res: Tensor
    of_patches: Tensor | None = None


def _maps_of(trace: Trace, component: MethodComponent) -> _Made:
    """The maps of one method."""
    size = (trace.images.shape[2], trace.images.shape[3])
    with torch.inference_mode(False):
        raw = component.instance(trace).detach()
    raw = raw if raw.dtype == torch.float64 else raw.float()
    if component.metadata.direct:
        return _Made(raw, Masks(raw, torch.zeros(len(raw), dtype=torch.bool, device=raw.device)), raw)
    of_patches = None
    if trace.patches is not None and Need.FEATURES in component.metadata.needs and raw.shape[1:] == trace.features.shape[2:]:
        of_patches = raw.unflatten(1, (trace.patches.boxes.shape[1], -1))
        raw = trace.on_image(raw)
    shown = raw.relu() if is_signed(component.spec) else raw
    found = to_masks(shown, size)
    low_res = found.masks if raw.shape[-2:] == size else to_masks(shown, (raw.shape[1], raw.shape[2])).masks
    return _Made(raw, found, low_res, of_patches)


def explainer_of(classifier: Classifier, maps: Maps, component: MethodComponent, predictor: Predictor) -> Callable[[Tensor], Tensor]:
    """A function that explains other images like `maps`, by one method for the same targets: `(B, 3, H, W)` → masks `(B, H, W)`.

    Only what the method needs is computed; a control needs no forward.
    """

    def explain(images: Tensor) -> Tensor:
        rule = Given(maps.target_rule, maps.target)
        needs = component.metadata.needs
        trace = Trace(classifier, images, rule, stage=maps.stage, needs=needs, predictor=predictor, seed=maps.seed)
        return _maps_of(trace, component).masks.masks

    return explain


def _head_maps(trace: Trace) -> HeadMaps | None:
    stage = trace.given_stage
    maps = None if stage is None else trace.attended.attention.get(stage.name)
    if maps is None:
        return None
    return trace.classifier.head.head_maps(trace.features, maps.detach().to(trace.features.dtype))
