"""Renders scenes with Pillow at several times the size and reduces them; also renders masks of what was drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from xattn.birds.scene import CUE_KINDS, PALETTE, PARTS, VARIANTS, Scene, Thing
from xattn.birds.shapes import BELLY, BODY, EYE, FIXED, GLINT, GROUNDS, HEAD, NECK, SHAPES, THINGS, Colour, Point
from xattn.data.preprocessing import channels_first
from xattn.deferred import torch

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 64
OVERSAMPLING = 4


@dataclass(frozen=True)
class Masks:
    """Masks of a scene's parts.

    Attributes:
        visible: `(5, H, W)` bool in the order of `PARTS`: pixels that the part colours, fully or at an edge.
        full: the same, including what is hidden behind other things.
        bird: `(H, W)` bool, the visible bird.
        clutter: `(H, W)` bool, the visible clutter, without the cue.
        cue: `(H, W)` bool, the visible cue, which depends on the class in the spurious split.
    """

    visible: Tensor
    full: Tensor
    bird: Tensor
    clutter: Tensor
    cue: Tensor


def render(scene: Scene, remove: Iterable[str] = (), background: Colour | None = None) -> Image.Image:
    """Renders a scene; the pixels are the same on every machine and in every call.

    Args:
        scene: what to draw.
        remove: parts to leave out; everything else is unchanged.
        background: one colour instead of habitat and clutter.

    Returns:
        RGB picture, 64 × 64.

    Raises:
        InputError: a name is not a part.
    """
    bare = scene.without(*remove)
    canvas = _canvas(scene, background)
    _paint(canvas, _strokes(bare, clutter=background is None))
    return _reduced(canvas, scene.light)


def pixels(scene: Scene, remove: Iterable[str] = (), background: Colour | None = None) -> Tensor:
    """Returns the output of `render` as a uint8 tensor `(3, 64, 64)`."""
    return channels_first(render(scene, remove, background))


def subsets(scene: Scene) -> Tensor:
    """Renders every subset of a scene's parts: uint8 `(32, 3, 64, 64)`; picture `s` shows part `i` of `PARTS` if bit `i` of `s` is set."""
    canvas = _canvas(scene, None)
    made = []
    for number in range(2 ** len(PARTS)):
        picture = canvas.copy()
        _paint(picture, _strokes(scene.without(*(part for place, part in enumerate(PARTS) if not number >> place & 1))))
        made.append(channels_first(_reduced(picture, scene.light)))
    return torch.stack(made)


def masks(scene: Scene) -> Masks:
    """Returns where the parts of a scene are visible, and where they would be visible if nothing hid them."""
    return _masks_of(_strokes(scene))


def _masks_of(strokes: list[_Stroke]) -> Masks:
    seen = _owners(strokes)
    full = [_owners([stroke for stroke in strokes if stroke.owner == part]) for part in PARTS]
    at = {owner: _mask(_cells(seen, owner)) for owner in _OWNERS}
    visible = torch.stack([at[part] for part in PARTS])
    every = torch.stack([_mask(_cells(one, part)) for part, one in zip(PARTS, full, strict=True)])
    return Masks(visible, every, visible.any(0) | at["body"], at["clutter"], at["cue"])


def thing_masks(scene: Scene) -> Tensor:
    """Returns where each clutter piece of a scene is visible, `(T, 64, 64)` bool in the order of `scene.clutter`, including the cue."""
    groups = {front: [(n, _thing(thing)) for n, thing in enumerate(scene.clutter) if thing.front is front] for front in (False, True)}
    canvas = Image.new("L", _BIG, 255)
    pen = ImageDraw.Draw(canvas)
    for number, strokes in [*groups[False], (254, _bird(scene)), *groups[True]]:
        for stroke in strokes:
            pen.polygon(stroke.points, fill=number)
    found = [_mask(_cells_of(canvas, number)) for number in range(len(scene.clutter))]
    return torch.stack(found) if found else torch.zeros((0, SIDE, SIDE), dtype=torch.bool)


def visible_parts(scene: Scene) -> list[Image.Image]:
    """Returns `masks(scene).visible` as grey pictures, 255 where a part is visible and 0 elsewhere."""
    seen = _owners(_strokes(scene))
    return [_cells(seen, part) for part in PARTS]


def render_together(birds: Sequence[Scene]) -> Image.Image:
    """Renders several birds, from back to front, in the surroundings of the first.

    Returns:
        RGB picture, 64 × 64.
    """
    canvas = _canvas(birds[0], None)
    _paint(canvas, [stroke for strokes in _strokes_together(birds) for stroke in strokes])
    return _reduced(canvas, birds[0].light)


def masks_among(birds: Sequence[Scene], number: int, *, clutter: bool = True) -> Masks:
    """Returns the part masks of one of several birds, visible and complete; the other birds count as clutter.

    Args:
        birds: scenes from back to front.
        number: index of the bird.
        clutter: whether there is clutter in addition to the birds.
    """
    groups = _strokes_together(birds, clutter=clutter)
    own = number + 1
    below, above = ([stroke for strokes in some for stroke in strokes] for some in (groups[:own], groups[own + 1 :]))
    hiding = [replace(stroke, owner="clutter") for stroke in above]
    return _masks_of([*(replace(stroke, owner="clutter") for stroke in below), *groups[own], *hiding])


_BIG = (SIDE * OVERSAMPLING, SIDE * OVERSAMPLING)
_OWNERS = (*PARTS, "body", "clutter", "cue")


@dataclass(frozen=True)
class _Stroke:
    """A filled polygon in pixels of the large picture, and its owner."""

    owner: str
    points: list[Point]
    colour: Colour


def _canvas(scene: Scene, background: Colour | None) -> Image.Image:
    return _habitat(scene) if background is None else Image.new("RGB", _BIG, background)


def _paint(canvas: Image.Image, strokes: list[_Stroke]) -> None:
    pen = ImageDraw.Draw(canvas)
    for stroke in strokes:
        pen.polygon(stroke.points, fill=stroke.colour)


def _reduced(canvas: Image.Image, light: float) -> Image.Image:
    return canvas.reduce(OVERSAMPLING).point([min(255, round(level * light)) for level in range(256)] * 3)


def _owners(strokes: list[_Stroke]) -> Image.Image:
    """Returns the owner of the topmost stroke at each pixel of the large picture: indices into `_OWNERS`, 255 for none."""
    canvas = Image.new("L", _BIG, 255)
    pen = ImageDraw.Draw(canvas)
    for stroke in strokes:
        pen.polygon(stroke.points, fill=_OWNERS.index(stroke.owner))
    return canvas


def _cells(owners: Image.Image, owner: str) -> Image.Image:
    """Returns 255 in each cell that contains a pixel of the owner, 0 elsewhere."""
    return _cells_of(owners, _OWNERS.index(owner))


def _cells_of(owners: Image.Image, number: int) -> Image.Image:
    its = owners.point([255 * (level == number) for level in range(256)])
    return its.reduce(OVERSAMPLING).point([255 * (level > 0) for level in range(256)])


def _mask(cells: Image.Image) -> Tensor:
    return channels_first(cells)[0] > 0


def _strokes(scene: Scene, *, clutter: bool = True) -> list[_Stroke]:
    """Returns all polygons of clutter and bird, from bottom to top."""
    return [stroke for strokes in _strokes_together([scene], clutter=clutter) for stroke in strokes]


def _strokes_together(birds: Sequence[Scene], *, clutter: bool = True) -> list[list[_Stroke]]:
    """Returns the polygons of the clutter behind, of each bird, and of the clutter in front, bottom to top; clutter is the first bird's."""
    things = birds[0].clutter if clutter else ()
    behind, before = ([stroke for thing in things if thing.front is front for stroke in _thing(thing)] for front in (False, True))
    return [behind, *(_bird(bird) for bird in birds), before]


def _bird(scene: Scene) -> list[_Stroke]:
    parts = {part: _part(scene, part) for part in scene.present}
    body = [(BODY, 1.0), (NECK, 1.0), (HEAD, 1.0), (BELLY, 1.17)]
    torso = [_Stroke("body", _placed(scene, points), _shaded(scene.plumage, factor)) for points, factor in body]
    eye = [_Stroke("body", _placed(scene, points), colour) for points, colour in ((EYE, (18, 16, 20)), (GLINT, (240, 240, 240)))]
    lower, upper = ("legs", "tail", "crest"), ("beak", "wing")
    below = [stroke for part in lower for stroke in parts.get(part, [])]
    above = [stroke for part in upper for stroke in parts.get(part, [])]
    return below + torso + above + eye


def _part(scene: Scene, part: str) -> list[_Stroke]:
    look = scene.looks[part]
    name, colour = VARIANTS[part][look.variant]
    tinted = (PALETTE[colour][0] + look.tint[0], PALETTE[colour][1] + look.tint[1], PALETTE[colour][2] + look.tint[2])
    (x, y), cosine, sine = FIXED[part], look.stretch * math.cos(look.turn), look.stretch * math.sin(look.turn)
    return [
        _Stroke(part, _placed(scene, [(x + cosine * u - sine * v, y + sine * u + cosine * v) for u, v in points]), _shaded(tinted, factor))
        for points, factor in SHAPES[part, name]
    ]


def _placed(scene: Scene, points: list[Point]) -> list[Point]:
    """Converts points from the bird's frame to pixels of the large picture."""
    pose, side = scene.pose, _BIG[0]
    cosine, sine = pose.size * math.cos(pose.tilt) * side, -pose.size * math.sin(pose.tilt) * side
    x, y = pose.x * side, pose.y * side
    return [(x + pose.facing * (cosine * u - sine * v), y + sine * u + cosine * v) for u, v in points]


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (max(0, min(255, round(channel * factor))) for channel in colour)
    return red, green, blue


# Surroundings


def _thing(thing: Thing) -> list[_Stroke]:
    side, colour = _BIG[0], PALETTE[thing.colour]
    size, cosine, sine = thing.size * side, math.cos(thing.turn), math.sin(thing.turn)
    owner = "cue" if thing.kind in CUE_KINDS else "clutter"
    return [
        _Stroke(
            owner,
            [(thing.x * side + size * (cosine * u - sine * v), thing.y * side + size * (sine * u + cosine * v)) for u, v in points],
            tint or _shaded(colour, factor),
        )
        for points, factor, tint in THINGS[thing.kind]
    ]


def _habitat(scene: Scene) -> Image.Image:
    """Draws a blurred background, and ground with blades and grains below it."""
    draw = random.Random(scene.background)
    far, near = GROUNDS[scene.habitat]
    horizon = draw.uniform(0.52, 0.78)
    coarse, fine = (_patches(draw, count, horizon, far, near) for count in (8, 32))
    picture = Image.blend(coarse.resize(fine.size, Image.Resampling.BICUBIC), fine, 0.28).resize(_BIG, Image.Resampling.BICUBIC)
    pen, side = ImageDraw.Draw(picture), _BIG[0]
    for _ in range(26):
        x, y, length = draw.uniform(0, side), draw.uniform(horizon, 1.05) * side, draw.uniform(0.04, 0.12) * side
        lean, tone = draw.uniform(-0.5, 0.5) * length, draw.uniform(0.7, 1.2)
        pen.polygon([(x - 3, y), (x + 3, y), (x + lean, y - length)], fill=_shaded(draw.choice(near), tone))
    return picture


def _patches(draw: random.Random, count: int, horizon: float, far: tuple[Colour, ...], near: tuple[Colour, ...]) -> Image.Image:
    colours = (draw.choice(far if row < count * horizon else near) for row in range(count) for _ in range(count))
    return Image.frombytes(
        "RGB",
        (count, count),
        bytes(_byte(channel * tone) for colour in colours for tone in (0.86 + 0.28 * draw.random(),) for channel in colour),
    )


def _byte(value: float) -> int:
    return 255 if value > 255 else int(value)
