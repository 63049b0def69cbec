"""Ground truth of a network on SketchBirds: the effect of each part on the target's logit, and its agreement with a map."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from xattn.birds.drawing import SIDE, masks, pixels, subsets, thing_masks
from xattn.birds.scene import CLASSES, PARTS, Scene
from xattn.data.annotations import sampled
from xattn.data.preprocessing import Preprocessing, as_picture
from xattn.errors import InputError
from xattn.metrics.known_parts import UNKNOWN, Effects, KnownParts, effects_of

MOST_KEPT = 64 * 2**20  # bytes of renders that are kept for the next network that uses the same batch
SHARED = (2, 1)  # number of parts that each of two rivals shares with a bird: two, or one if no two classes share two


def effects(predict: Callable[[Tensor], Tensor], scenes: Sequence[Scene], targets: Sequence[int] | Tensor | None = None) -> Effects:
    """Computes the true effect of each part on the target's logit, from renders of all 2⁵ subsets of the parts.

    Args:
        predict: images `(B, 3, 64, 64)` in pixel space, float in [0, 1] → logits `(B, K)`; for example `classifier.predict`.
        scenes: a list of scenes, as from `SketchBirds.scene`: complete birds, or birds that lack parts; a missing part has effect 0.
        targets: one class index per scene; None: each bird's own class.

    Returns:
        Float64, on the CPU, in units of the logit; parts are in the order of `PARTS`.

    Raises:
        InputError: the numbers of targets and scenes differ, or are zero.
    """
    if isinstance(scenes, Scene):
        raise InputError("effects takes a list of scenes: write [scene].")
    wanted = [scene.label for scene in scenes] if targets is None else [int(target) for target in targets]
    if not scenes or len(wanted) != len(scenes):
        raise InputError(f"effects needs at least one scene and one target per scene; got {len(scenes)} scenes and {len(wanted)} targets.")
    values = torch.stack(
        [predict(subsets(scene).float() / 255)[:, target].double().cpu() for scene, target in zip(scenes, wanted, strict=True)]
    )
    return effects_of(values)


@dataclass(frozen=True)
class Drawn:
    """Renders and masks of a scene, after the network's preprocessing.

    Attributes:
        subsets: uint8 `(32, C, H, W)`, the scene with each subset of its parts.
        bare: uint8 `(T, C, H, W)`, the whole scene without one piece of its clutter.
        visible: `(5, H, W)` bool, the parts.
        things: `(T, H, W)` bool, the pieces of clutter.
    """

    subsets: Tensor
    bare: Tensor
    visible: Tensor
    things: Tensor

    @property
    def size(self) -> int:
        """Returns the size in bytes."""
        return sum(each.nbytes for each in (self.subsets, self.bare, self.visible, self.things))


_kept: dict[tuple[Scene, Preprocessing | None], Drawn] = {}
_keeping = threading.Lock()


def known_parts(
    predict: Callable[[Tensor], Tensor],
    scenes: Sequence[Scene | None],
    targets: Sequence[int] | Tensor,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[int] | None = tuple(range(len(CLASSES))),
) -> KnownParts:
    """Computes the part effects of some birds that metrics of parts need, from renders of 32 subsets of parts and without each clutter
    piece.

    Args:
        predict: images `(B, 3, H, W)` in pixel space, float in [0, 1] → logits `(B, K)`; for example `classifier.predict`.
        scenes: as from `SketchBirds.scene`; None for a picture whose parts are not known.
        targets: one class index for each scene.
        preprocessing: the network's preprocessing; None: whole pictures at 64 × 64.
        classes: the network's index of each class of SketchBirds; None: the network has other classes, and there are no rivals.

    Returns:
        The known parts, on the CPU; clutter pieces are the background's objects.

    Raises:
        InputError: the numbers of targets and scenes differ, or are zero.

    >>> import xattn
    >>> from xattn.birds import scene
    >>> known_parts(xattn.load("birds:gap", device="cpu").predict, [scene(0, split="test")], [0]).logits.shape
    torch.Size([1, 32, 16])
    """
    wanted = [int(target) for target in targets]
    if not scenes or len(wanted) != len(scenes):
        raise InputError(f"known_parts needs at least one scene and one target per scene; got {len(scenes)} scenes, {len(wanted)} targets.")
    drawn = [None if each is None else seen_by(each, preprocessing) for each in scenes]
    outputs = [None if each is None else predict(torch.cat([each.subsets, each.bare]).float() / 255).double().cpu() for each in drawn]
    count, subset_count = len(scenes), 2 ** len(PARTS)
    size = (SIDE, SIDE) if preprocessing is None else preprocessing.input_size
    most = max([1, *(len(each.bare) for each in drawn if each is not None)])
    class_count = next((found.shape[1] for found in outputs if found is not None), 1)
    visible = torch.zeros(count, len(PARTS), *size, dtype=torch.bool)
    objects = torch.zeros(count, most, *size, dtype=torch.bool)
    logits = torch.full((count, subset_count, class_count), torch.nan, dtype=torch.float64)
    without = torch.full((count, most), torch.nan, dtype=torch.float64)
    cue, rivals = torch.full((count,), UNKNOWN), torch.full((count, 2), UNKNOWN)
    shared = torch.zeros(count, 2, len(PARTS), dtype=torch.bool)
    classes = None if classes is None or max(classes) >= class_count else classes
    for number, (scene, each, found) in enumerate(zip(scenes, drawn, outputs, strict=True)):
        if scene is None or each is None or found is None:
            continue
        visible[number], logits[number] = each.visible, found[:subset_count]
        objects[number, : len(each.bare)] = each.things
        without[number, : len(each.bare)] = found[subset_count:, wanted[number]]
        if scene.cue is not None and bool(each.things[-1].any()):  # the cue is the last piece of clutter
            cue[number] = len(each.bare) - 1
        if classes is not None and (pair := _rivals(scene, found[:subset_count], classes)) is not None:
            rivals[number] = torch.tensor([classes[label] for label in pair])
            shared[number] = torch.stack([_same(scene.label, label) for label in pair])
    return KnownParts(visible, logits, torch.tensor(wanted), objects, without, cue, rivals, shared)


def seen_by(scene: Scene, preprocessing: Preprocessing | None) -> Drawn:
    """Returns the renders and masks of a scene after preprocessing; the most recent ones are cached, up to 64 MiB in total."""
    key = scene, preprocessing
    with _keeping:
        found = _kept.pop(key, None)
    found = found or _seen_by(scene, preprocessing)
    with _keeping:
        _kept[key] = found
        while len(_kept) > 1 and sum(each.size for each in _kept.values()) > MOST_KEPT:
            _kept.pop(next(iter(_kept)))
    return found


def _seen_by(scene: Scene, preprocessing: Preprocessing | None) -> Drawn:
    bare = [pixels(replace(scene, clutter=scene.clutter[:n] + scene.clutter[n + 1 :])) for n in range(len(scene.clutter))]
    every, found = subsets(scene), masks(scene).visible
    pictures = torch.stack([*every, *bare])
    every_mask = torch.cat([found, thing_masks(scene)])
    if preprocessing is not None:
        frame = preprocessing.frame(as_picture(every[-1]))
        pictures = torch.stack([preprocessing.crop(as_picture(picture)) for picture in pictures])
        size = (pictures.shape[2], pictures.shape[3])
        every_mask = torch.stack([sampled(mask, frame, size) for mask in every_mask])
    return Drawn(pictures[: len(every)], pictures[len(every) :], every_mask[: len(PARTS)], every_mask[len(PARTS) :])


def _same(label: int, other: int) -> Tensor:
    """Returns which parts two classes share, `(5,)` bool."""
    codes = tuple(CLASSES.values())
    return torch.tensor([a == b for a, b in zip(codes[label], codes[other], strict=True)])


def _rivals(scene: Scene, logits: Tensor, classes: Sequence[int]) -> tuple[int, int] | None:
    """Finds the first two classes that share disjoint sets of parts with a bird, and that a network tells apart by these parts.

    Each class's logit falls further without the parts that it shares than without those of the other class. **Differs** from Hesse et al.
    2023: they take the first two classes that share two parts each, and leave the picture out if the network does not tell these apart.

    Args:
        scene: scene of the bird.
        logits: logits with each subset of the parts, `(32, K)`.
        classes: the network's index of each class.
    """
    whole = len(logits) - 1
    bits = 2 ** torch.arange(len(PARTS))
    shares = {other: _same(scene.label, other) for other in range(len(CLASSES)) if other != scene.label}
    for count in SHARED:
        some = [other for other, parts in shares.items() if int(parts.sum()) == count]
        for one, other in combinations(some, 2):
            if bool((shares[one] & shares[other]).any()):
                continue
            less = logits[[whole - int((bits * shares[label]).sum()) for label in (one, other)]][:, [classes[one], classes[other]]]
            if less[0, 0] < less[1, 0] and less[1, 1] < less[0, 1]:
                return one, other
    return None


def share_inside(saliency: Tensor, inside: Tensor) -> Tensor:
    """Returns the share of a map's energy inside a mask.

    Args:
        saliency: `(B, H, W)`, ≥ 0.
        inside: `(B, H, W)` bool.

    Returns:
        `(B,)` float64 in [0, 1]; NaN for a map of zeros.
    """
    energy = saliency.double().clamp(min=0)
    share: Tensor = (energy * inside.to(energy.device)).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))
    return share
