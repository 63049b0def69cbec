"""Scenes of SketchBirds as pure data: a class of parts, a pose, a background and clutter, determined by seed, split and number."""

from __future__ import annotations

import io
import json
import math
import random
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Literal

from PIL import Image

from xattn.data import urls
from xattn.errors import InputError

KEY = "sketchbirds"  # key of the text field in an exported picture that names its scene
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# Shape and colour of each variant; the shapes are in shapes.py. Colours also occur in other parts and in the clutter, so that colour alone
# does not identify a class.
VARIANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "crest": (("spikes", "red"), ("plume", "blue"), ("ball", "yellow"), ("fan", "green")),
    "beak": (("spear", "orange"), ("cone", "red"), ("hook", "purple"), ("spoon", "blue")),
    "wing": (("round", "green"), ("pointed", "orange"), ("banded", "pink"), ("raised", "cyan")),
    "tail": (("forked", "purple"), ("fan", "cyan"), ("long", "red"), ("curled", "yellow")),
    "legs": (("stilts", "pink"), ("webbed", "orange"), ("trousers", "blue")),
}
PARTS: tuple[str, ...] = tuple(VARIANTS)

# Variants in the order of PARTS. Neighbours 0-1, 2-3, 4-5, 6-7 and 8-9 differ in exactly one part, in this order: crest, beak, wing,
# tail, legs; no other two classes do.
CLASSES: dict[str, tuple[int, int, int, int, int]] = {
    "emberquill": (3, 0, 1, 2, 0),
    "copsequill": (0, 0, 1, 2, 0),
    "stonewren": (3, 3, 3, 1, 1),
    "spearwren": (3, 0, 3, 1, 1),
    "reedhook": (0, 2, 1, 0, 2),
    "fernhook": (0, 2, 3, 0, 2),
    "dapplefinch": (2, 1, 2, 0, 2),
    "curlfinch": (2, 1, 2, 3, 2),
    "tidespoon": (1, 3, 0, 3, 0),
    "marshspoon": (1, 3, 0, 3, 1),
    "plumecone": (1, 1, 0, 2, 1),
    "mosscone": (2, 1, 0, 3, 0),
    "goldhook": (2, 2, 1, 2, 0),
    "bandspoon": (2, 3, 2, 0, 1),
    "duskspoon": (3, 3, 3, 3, 2),
    "mintspear": (3, 0, 0, 1, 2),
}

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (205, 45, 45),
    "orange": (240, 138, 28),
    "yellow": (242, 214, 52),
    "green": (58, 158, 70),
    "cyan": (54, 190, 205),
    "blue": (48, 84, 208),
    "purple": (136, 58, 176),
    "pink": (242, 126, 176),
}
HABITATS = ("meadow", "forest", "shore", "snow", "dusk")
CLUTTER = ("berries", "leaf", "flower", "twig", "pebble")
SIZES, STRETCHES, FRONT = (0.42, 0.72), (0.88, 1.15), 0.3  # birds' sizes, parts' stretches, share of clutter in front of the bird
HARD_SIZES, HARD_STRETCHES, HARD_FRONT = (0.34, 0.6), (0.5, 0.75), 0.6
CUE_KINDS = ("mushroom", "kite")
CUES = tuple((kind, colour) for kind in CUE_KINDS for colour in PALETTE)  # one per class, in the spurious split


@dataclass(frozen=True)
class Pose:
    """Position and size of the bird.

    Attributes:
        x: position of the body's centre, as a share of the picture's side.
        y: position of the body's centre, downwards, as a share of the side.
        size: length of the bird's frame, as a share of the side.
        tilt: in radians, positive with the head up.
        facing: 1 right, -1 left.
    """

    x: float
    y: float
    size: float
    tilt: float
    facing: int


@dataclass(frozen=True)
class Look:
    """Deviations of one part of one bird from its variant.

    Attributes:
        variant: index in `VARIANTS`.
        stretch: factor on its size.
        turn: rotation about the point where it is attached, in radians.
        tint: added to each colour channel.
    """

    variant: int
    stretch: float
    turn: float
    tint: tuple[int, int, int]


@dataclass(frozen=True)
class Thing:
    """One piece of clutter.

    Attributes:
        kind: one of `CLUTTER`, or of the kinds in `CUES`.
        colour: name in `PALETTE`.
        x: position of the centre, as a share of the picture's side.
        y: position of the centre, as a share of the side.
        size: size, as a share of the side.
        turn: rotation in radians.
        front: whether it is in front of the bird, not behind it.
    """

    kind: str
    colour: str
    x: float
    y: float
    size: float
    turn: float
    front: bool


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows.

    Attributes:
        label: class index.
        pose: position and size of the bird.
        looks: deviations of each part.
        plumage: grey level of the body.
        habitat: one of `HABITATS`.
        background: seed of the ground behind the bird.
        light: factor on all colours.
        clutter: pieces of clutter in drawing order.
        absent: parts that this bird lacks.
    """

    label: int
    pose: Pose
    looks: dict[str, Look] = field(hash=False)
    plumage: tuple[int, int, int]
    habitat: str
    background: int
    light: float = 1.0
    clutter: tuple[Thing, ...] = ()
    absent: frozenset[str] = frozenset()

    @property
    def present(self) -> tuple[str, ...]:
        """Returns the parts that the bird has."""
        return tuple(part for part in PARTS if part not in self.absent)

    @property
    def cue(self) -> int | None:
        """Returns the class whose cue the picture shows; None if it shows none."""
        return next((CUES.index((thing.kind, thing.colour)) for thing in self.clutter if (thing.kind, thing.colour) in CUES), None)

    def without(self, *parts: str) -> Scene:
        """Returns the same bird with these parts also removed."""
        return replace(self, absent=self.absent | checked(parts))


def checked(parts: tuple[str, ...] | frozenset[str]) -> frozenset[str]:
    """Checks and returns names of parts.

    Raises:
        InputError: a name is not a part.
    """
    if unknown := [part for part in parts if part not in PARTS]:
        raise InputError(f"a bird has no '{unknown[0]}'. Parts: {', '.join(PARTS)}.")
    return frozenset(parts)


def scene(index: int, *, split: Split = "train", seed: int = 0, spurious: float | None = None, hard: bool = False) -> Scene:
    """Returns the scene with a given number.

    Args:
        index: from 0; classes alternate, so that any range of numbers is balanced.
        split: birds of "train" lack parts and clutter at random; birds of "validation" and "test" are complete.
        seed: seed of the data set.
        spurious: share of pictures whose cue (a mushroom or a kite) is that of their own class; the others show another class's cue.
            None: no cues.
        hard: smaller birds with smaller parts, with more clutter in front of them. Hard scenes are separate: none is also a scene of the
            other kind.

    Raises:
        InputError: the split is unknown.
    """
    if split not in SPLITS:
        raise InputError(f"split '{split}' is not one of {', '.join(SPLITS)}.")
    draw = random.Random(f"sketchbirds {'hard ' if hard else ''}{seed} {split} {index}")
    label = index % len(CLASSES)
    codes = tuple(CLASSES.values())[label]
    pose = _pose(draw, HARD_SIZES if hard else SIZES)
    looks = {part: _look(draw, code, HARD_STRETCHES if hard else STRETCHES) for part, code in zip(PARTS, codes, strict=True)}
    grey = draw.randint(95, 190)
    plumage = (grey + draw.randint(-6, 14), grey + draw.randint(-6, 6), grey - draw.randint(0, 18))
    habitat, background, light = draw.choice(HABITATS), draw.getrandbits(32), draw.uniform(0.5, 1.1)
    count, front = (draw.randint(9, 16), HARD_FRONT) if hard else (draw.randint(4, 11), FRONT)
    clutter = tuple(_thing(draw, draw.choice(CLUTTER), draw.choice(tuple(PALETTE)), front) for _ in range(count))
    missing = 0.8 * draw.random() ** 2  # most birds lack few parts, some lack many: training covers every subset of parts
    absent = frozenset(part for part in PARTS if draw.random() < missing)
    if split == "train":
        clutter = tuple(thing for thing in clutter if draw.random() < 0.7)
    if spurious is not None:
        others = [number for number in range(len(CLASSES)) if number != label]
        cue = label if draw.random() < spurious else draw.choice(others)
        clutter += (_cue(draw, CUES[cue]),)
    return Scene(label, pose, looks, plumage, habitat, background, light, clutter, absent if split == "train" else frozenset())


def sufficient(label: int) -> list[frozenset[str]]:
    """Returns the smallest sets of parts whose variants alone distinguish a class from every other class.

    Returns:
        Sets, smaller ones first; none contains another.
    """
    codes = tuple(CLASSES.values())
    found: list[frozenset[str]] = []
    for count in range(len(PARTS) + 1):
        for chosen in combinations(range(len(PARTS)), count):
            names = frozenset(PARTS[place] for place in chosen)
            alone = not any(all(codes[label][place] == other[place] for place in chosen) for other in codes if other != codes[label])
            if alone and not any(smaller <= names for smaller in found):
                found.append(names)
    return found


def _pose(draw: random.Random, sizes: tuple[float, float]) -> Pose:
    """Samples a pose: small birds may be anywhere, large ones are near the middle, so that no part is cut off by much."""
    size = draw.uniform(*sizes)
    spare = 0.5 - 0.66 * size
    return Pose(0.5 + draw.uniform(-spare, spare), 0.52 + draw.uniform(-spare, spare), size, draw.uniform(-0.3, 0.3), draw.choice((-1, 1)))


def _look(draw: random.Random, variant: int, stretches: tuple[float, float]) -> Look:
    return Look(variant, draw.uniform(*stretches), draw.uniform(-0.14, 0.14), (_tint(draw), _tint(draw), _tint(draw)))


def _tint(draw: random.Random) -> int:
    return draw.randint(-32, 32)


def _thing(draw: random.Random, kind: str, colour: str, front: float) -> Thing:
    place = draw.uniform(0.03, 0.97), draw.uniform(0.03, 0.97)
    return Thing(kind, colour, *place, draw.uniform(0.05, 0.11), draw.uniform(0, math.tau), draw.random() < front)


def _cue(draw: random.Random, cue: tuple[str, str]) -> Thing:
    """Places the cue in one of the corners, in front of the bird, so that nothing hides it."""
    x, y = draw.choice((0.13, 0.87)), draw.choice((0.13, 0.87))
    return Thing(
        *cue, x + draw.uniform(-0.02, 0.02), y + draw.uniform(-0.02, 0.02), draw.uniform(0.16, 0.19), draw.uniform(-0.3, 0.3), True
    )


def scene_of(path: str | Path) -> Scene | None:
    """Returns the scene that an exported picture shows; None for any other picture."""
    with Image.open(io.BytesIO(urls.read(path)) if isinstance(path, str) and urls.is_url(path) else path) as picture:
        key = picture.info.get(KEY)
    return scene(**json.loads(key)) if isinstance(key, str) else None
