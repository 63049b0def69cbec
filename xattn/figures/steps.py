"""Figure kind: patches of a two-stream network, and the map of each step with the step's weight."""

from __future__ import annotations

from matplotlib.figure import Figure

from xattn.catalogue import declaration
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.canvas import Bytes, shown_crop
from xattn.figures.columns import INPUT, captions_of, colour_bars, limits_of, map_panel
from xattn.figures.matrix import Item, Lane, Panel, matrix
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle
from xattn.overlays import Floats
from xattn.registry import split_spec

STRONGEST, OTHERS = (230, 60, 30), (250, 220, 60)  # colours of the first box that the network finds, and of the others
DRAWN = 320  # pixels: minimum height of a picture on which boxes are drawn


def step_of(method: str) -> int | None:
    """Returns the step that a method, as named in the rows, shows; None if it shows no step."""
    declared = declaration("methods", method.partition(":")[0])
    if declared is None or "step" not in declared["settings"]:
        return None  # also a method of another library, whose settings have another form
    step = split_spec(method)[1].get("step", declared["settings"]["step"])
    return None if step in (None, "none") else int(step)


def with_boxes(crop: Bytes, boxes: Floats) -> Bytes:
    """Draws outlines of boxes on a picture, the first in red and above the others.

    Args:
        crop: uint8 `(C, H, W)`.
        boxes: `(n, 4)`, x1, y1, x2, y2 in pixels of the crop.

    Returns:
        uint8 `(h, w, 3)`, enlarged by a whole number so that the outlines are thin.
    """
    by = max(1, -(-DRAWN // crop.shape[1]))
    picture = shown_crop(crop).repeat(by, axis=0).repeat(by, axis=1)
    line = max(2, picture.shape[0] // 100)
    for number in reversed(range(len(boxes))):
        x1, y1, x2, y2 = (round(float(edge) * by) for edge in boxes[number])
        colour = OTHERS if number else STRONGEST
        for rows, columns in (
            (slice(y1, y1 + line), slice(x1, x2)),
            (slice(y2 - line, y2), slice(x1, x2)),
            (slice(y1, y2), slice(x1, x1 + line)),
            (slice(y1, y2), slice(x2 - line, x2)),
        ):
            picture[rows, columns] = colour
    return picture


@register("steps", source="Shroff 2020, Figs. 5.1 to 7.3")
def steps(shown: RunData, style: FigureStyle) -> list[Figure]:
    """Patches of each picture, the strongest in red, then the maps of the steps, with α (mean over the patches) below each.

    Raises:
        InputError: none of the runs has maps of the steps of a two-stream network.
    """
    columns: list[Column] = sorted(
        (column for column in shown.columns if step_of(column[2]) is not None),
        key=lambda column: (shown.columns.index(_family(column, shown.columns)), step_of(column[2]) or 0),
    )
    if not columns or not shown.looks:
        raise InputError(
            "none of these runs has maps of the steps of a two-stream network: run --method step-cam:step=1 --method step-cam:step=2 … "
            "with focus:BACKBONE, or draw --kind grid."
        )
    first = columns[0]
    if len({column[:2] for column in columns}) > 1:
        raise InputError("a figure of steps shows the patches of one network, but these runs have several: draw one run at a time.")
    limits = limits_of(shown, columns, style)
    lanes = [Lane(INPUT, "patches"), *(Lane("\n".join(column), f"step {step_of(column[2])}") for column in columns)]
    items = []
    for name in shown.names:
        looks, crop = shown.looks.get((name, *first[:2])), shown.crops[name, first[0], first[1]]
        answer = captions_of(shown, name, columns, alone=True).get("\n".join(first[:2]), "")
        captions = {INPUT: answer}
        for column in columns:
            found, step = shown.looks.get((name, *column[:2])), step_of(column[2]) or 1
            captions["\n".join(column)] = "" if found is None else f"α\u00a0=\u00a0{found.alpha[step - 1]:.2f}"
        panels = [Panel(None if looks is None else with_boxes(crop, looks.boxes))]
        panels += [map_panel(shown, name, column, limits.get(column), style) for column in columns]
        items.append(Item(panels, captions))
    families = {"\n".join(column): _family_name(column) for column in columns}
    several = len(set(families.values())) > 1
    return matrix(lanes, items, families if several else {}, colour_bars(columns, style), style)


def _family(column: Column, columns: list[Column]) -> Column:
    """Returns the first column that shows a step by the same method of the same classifier."""
    return next(other for other in columns if _unstepped(other) == _unstepped(column))


def _family_name(column: Column) -> str:
    """Returns the method of a column with its settings, except for the step."""
    _, _, name, *settings = _unstepped(column)
    return f"{name}:{','.join(settings)}" if settings else name


def _unstepped(column: Column) -> tuple[str, ...]:
    name, _, settings = column[2].partition(":")
    return (*column[:2], name, *(part for part in settings.split(",") if part and not part.startswith("step=")))
