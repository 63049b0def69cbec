"""Outlines and colours of everything that is drawn, as polygons."""

from __future__ import annotations

import math

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Shapes, in the bird's frame: x points forward, y down, the origin is the body's centre, the frame is about 1 long.


def _ellipse(x: float, y: float, across: float, down: float, turn: float = 0.0) -> list[Point]:
    return [
        (x + across * c * math.cos(turn) - down * s * math.sin(turn), y + across * c * math.sin(turn) + down * s * math.cos(turn))
        for c, s in _CIRCLE
    ]


def _arc(x: float, y: float, radius: float, start: float, end: float, width: float, tip: float = 0.0) -> list[Point]:
    """Returns a curved band between two angles; its width changes to `tip` at the end."""
    outer, inner = [], []
    for step in range(9):
        share = step / 8
        angle = start + (end - start) * share
        half = (width + (tip - width) * share) / 2
        outer.append((x + (radius + half) * math.cos(angle), y + (radius + half) * math.sin(angle)))
        inner.append((x + (radius - half) * math.cos(angle), y + (radius - half) * math.sin(angle)))
    return outer + inner[::-1]


_CIRCLE = [(math.cos(math.tau * step / 20), math.sin(math.tau * step / 20)) for step in range(20)]

# Each shape is a list of polygons with a factor on the colour, relative to the point where the part is attached.
_Shape = list[tuple[list[Point], float]]


def _bands(outline: list[Point], *bands: list[Point]) -> _Shape:
    return [(outline, 1.0), *((band, 0.62) for band in bands)]


SHAPES: dict[tuple[str, str], _Shape] = {
    ("crest", "spikes"): [
        ([(-0.13, 0.06), (-0.17, -0.12), (-0.06, -0.03), (-0.03, -0.19), (0.04, -0.04), (0.12, -0.15), (0.12, 0.06)], 1.0)
    ],
    ("crest", "plume"): _bands(_arc(-0.14, 0.03, 0.14, -0.25, -2.9, 0.10, 0.05), _ellipse(-0.27, 0.01, 0.05, 0.05)),
    ("crest", "ball"): [
        ([(-0.02, 0.06), (-0.015, -0.08), (0.015, -0.08), (0.02, 0.06)], 0.62),
        (_ellipse(0, -0.1, 0.085, 0.085), 1.0),
    ],
    ("crest", "fan"): _bands(
        [(-0.05, 0.06), *[(0.2 * math.cos(a), 0.2 * math.sin(a)) for a in (-2.9, -2.5, -2.1, -1.7, -1.3, -0.9, -0.5)], (0.08, 0.06)],
        [(-0.02, 0.05), (-0.1, -0.16), (-0.06, -0.17)],
        [(0.02, 0.05), (0.05, -0.17), (0.09, -0.15)],
    ),
    ("beak", "spear"): _bands([(-0.03, -0.05), (0.31, 0.01), (-0.03, 0.06)], [(-0.03, 0.005), (0.31, 0.005), (-0.03, 0.06)]),
    ("beak", "cone"): _bands([(-0.04, -0.1), (0.15, 0.0), (-0.04, 0.12)], [(-0.04, 0.02), (0.15, 0.0), (-0.04, 0.12)]),
    ("beak", "hook"): [(_arc(0.0, 0.13, 0.14, -1.75, 0.35, 0.14, 0.0), 1.0)],
    ("beak", "spoon"): _bands([(-0.03, -0.035), (0.12, -0.03), (0.12, 0.04), (-0.03, 0.05)], _ellipse(0.19, 0.02, 0.09, 0.065)),
    ("wing", "round"): _bands(_ellipse(-0.02, 0.0, 0.2, 0.115, 0.15), _arc(0.0, -0.12, 0.2, 0.5, 2.6, 0.025, 0.025)),
    ("wing", "pointed"): _bands(
        [(0.17, -0.05), (0.1, -0.1), (-0.05, -0.1), (-0.36, 0.07), (-0.1, 0.1), (0.1, 0.06)], [(0.1, 0.0), (-0.29, 0.05), (0.05, 0.03)]
    ),
    ("wing", "banded"): _bands(
        [
            (0.17, -0.09),
            (-0.16, -0.09),
            (-0.27, 0.0),
            (-0.18, 0.03),
            (-0.2, 0.12),
            (-0.08, 0.08),
            (-0.04, 0.16),
            (0.05, 0.08),
            (0.16, 0.06),
        ],
        [(0.07, -0.09), (0.12, -0.09), (0.09, 0.07), (0.04, 0.08)],
        [(-0.08, -0.09), (-0.03, -0.09), (-0.06, 0.1), (-0.1, 0.07)],
    ),
    ("wing", "raised"): _bands(
        [(0.13, 0.04), (0.06, -0.12), (-0.1, -0.42), (-0.24, -0.4), (-0.16, 0.0)], [(0.02, -0.1), (-0.16, -0.38), (-0.08, -0.08)]
    ),
    ("tail", "forked"): [([(0.05, -0.05), (-0.34, -0.16), (-0.16, 0.01), (-0.32, 0.15), (0.05, 0.07)], 1.0)],
    ("tail", "fan"): _bands(
        [(0.05, -0.03), *[(0.29 * math.cos(a), 0.29 * math.sin(a)) for a in (3.85, 3.6, 3.35, 3.1, 2.85, 2.6, 2.4)], (0.05, 0.06)],
        [(0.0, 0.0), (-0.27, -0.1), (-0.28, -0.05)],
        [(0.0, 0.01), (-0.28, 0.07), (-0.26, 0.11)],
    ),
    ("tail", "long"): _bands(
        [(0.05, -0.05), (-0.43, -0.035), (-0.46, 0.07), (0.05, 0.06)], [(-0.3, -0.04), (-0.43, -0.035), (-0.46, 0.07), (-0.31, 0.068)]
    ),
    ("tail", "curled"): [(_arc(-0.1, -0.15, 0.17, 1.2, 4.3, 0.12, 0.05), 1.0), (_ellipse(-0.16, -0.3, 0.05, 0.05), 0.62)],
    ("legs", "stilts"): [
        ([(x - 0.022, -0.05), (x + 0.022, -0.05), (x + 0.022, 0.26), (x + 0.1, 0.26), (x + 0.1, 0.3), (x - 0.022, 0.3)], 1.0)
        for x in (-0.09, 0.08)
    ],
    ("legs", "webbed"): [
        ([(x - 0.035, -0.05), (x + 0.035, -0.05), (x + 0.035, 0.07), (x + 0.14, 0.15), (x - 0.07, 0.15), (x - 0.035, 0.07)], 1.0)
        for x in (-0.11, 0.09)
    ],
    ("legs", "trousers"): [
        polygon
        for x in (-0.11, 0.1)
        for polygon in (
            ([(x - 0.09, -0.08), (x + 0.09, -0.08), (x + 0.045, 0.14), (x - 0.045, 0.14)], 1.0),
            ([(x - 0.03, 0.13), (x + 0.03, 0.13), (x + 0.08, 0.2), (x - 0.03, 0.2)], 0.62),
        )
    ],
}

FIXED: dict[str, Point] = {
    "crest": (0.25, -0.32),
    "beak": (0.385, -0.2),
    "wing": (-0.05, -0.02),
    "tail": (-0.27, 0.04),
    "legs": (0.0, 0.17),
}
HEAD = _ellipse(0.27, -0.22, 0.14, 0.135)
NECK = [(0.1, -0.14), (0.2, -0.3), (0.4, -0.16), (0.26, 0.06)]
BODY = _ellipse(0.0, 0.0, 0.31, 0.2, -0.22)
BELLY = _ellipse(0.06, 0.08, 0.2, 0.1, -0.35)
EYE = _ellipse(0.31, -0.24, 0.032, 0.032)
GLINT = _ellipse(0.318, -0.25, 0.012, 0.012)


_STEM: Colour = (96, 84, 58)
THINGS: dict[str, list[tuple[list[Point], float, Colour | None]]] = {
    "berries": [(_ellipse(x, y, 0.34, 0.34), factor, None) for x, y, factor in ((-0.3, 0.2, 0.9), (0.35, 0.25, 1.0), (0.0, -0.35, 1.0))],
    "leaf": [
        ([(-0.9, 0.0), (-0.3, -0.35), (0.35, -0.3), (0.9, 0.0), (0.35, 0.3), (-0.3, 0.35)], 1.0, None),
        ([(-0.9, -0.04), (0.9, 0.0), (-0.9, 0.04)], 0.6, None),
    ],
    "flower": [
        *((_ellipse(0.45 * math.cos(a), 0.45 * math.sin(a), 0.34, 0.24, a), 1.0, None) for a in (0.3, 1.56, 2.81, 4.07, 5.33)),
        (_ellipse(0, 0, 0.22, 0.22), 1.0, (70, 50, 30)),
    ],
    "twig": [
        ([(-1.0, -0.12), (1.0, -0.05), (1.0, 0.05), (-1.0, 0.12)], 1.0, None),
        ([(0.0, 0.0), (0.5, -0.6), (0.62, -0.52), (0.2, 0.05)], 0.8, None),
    ],
    "pebble": [([(-0.6, 0.1), (-0.35, -0.4), (0.3, -0.45), (0.65, 0.0), (0.4, 0.4), (-0.3, 0.42)], 0.85, None)],
    "mushroom": [
        ([(-0.16, 0.0), (0.16, 0.0), (0.2, 0.65), (-0.2, 0.65)], 1.0, (232, 224, 205)),
        (_arc(0, 0.1, 0.33, -3.14, 0.0, 0.66, 0.66), 1.0, None),
        (_ellipse(-0.2, -0.2, 0.09, 0.09), 1.0, (250, 250, 245)),
        (_ellipse(0.22, -0.1, 0.09, 0.09), 1.0, (250, 250, 245)),
    ],
    "kite": [
        ([(0.0, -0.75), (0.5, 0.0), (0.0, 0.75), (-0.5, 0.0)], 1.0, None),
        ([(0.0, -0.75), (0.5, 0.0), (0.0, 0.0)], 0.6, None),
        ([(0.0, 0.75), (-0.5, 0.0), (0.0, 0.0)], 0.6, None),
    ],
}

GROUNDS: dict[str, tuple[tuple[Colour, ...], tuple[Colour, ...]]] = {  # colours of the background, and of the ground
    "meadow": (((150, 186, 214), (172, 200, 196), (128, 168, 120)), ((104, 140, 66), (86, 122, 58), (128, 150, 84))),
    "forest": (((58, 80, 54), (84, 106, 70), (42, 62, 48)), ((92, 76, 52), (70, 66, 44), (84, 92, 52))),
    "shore": (((168, 196, 206), (142, 176, 190), (190, 206, 206)), ((206, 188, 150), (190, 172, 136), (178, 166, 140))),
    "snow": (((196, 206, 216), (178, 190, 204), (150, 164, 176)), ((232, 234, 238), (214, 220, 228), (222, 226, 230))),
    "dusk": (((148, 116, 128), (176, 132, 116), (104, 92, 118)), ((78, 70, 66), (66, 62, 70), (92, 80, 68))),
}
