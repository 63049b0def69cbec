"""Figure kind: queries next to their nearest pictures in a gallery, with maps of their similarity."""

from __future__ import annotations

from matplotlib.figure import Figure

from xattn.catalogue import is_control
from xattn.errors import InputError
from xattn.figures.base import register
from xattn.figures.canvas import called, common_limits, note_below, shown_crop, shown_map, shown_title
from xattn.figures.columns import colour_bars
from xattn.figures.matrix import Item, Lane, Legend, Panel, matrix
from xattn.figures.ranked import RANKED, ranked_legend, ranked_panel
from xattn.figures.run_data import Column, RunData
from xattn.figures.style import FigureStyle

SIDES = ("query", "nearest in the gallery")


@register("pairs", source="Gomez et al. 2021, Fig. 14")
def pairs(shown: RunData, style: FigureStyle) -> list[Figure]:
    """Each query next to its nearest picture in the gallery, for runs with `--gallery`: maps of their cosine in both pictures.

    The maps of br-npa and b-cnn are also shown in red, green and blue. Controls are left out.

    Raises:
        InputError: none of the runs has a gallery, or none of the images is a query.
    """
    if not shown.nearest:
        raise InputError(
            "none of these images is a query with a nearest picture: give a run of explain --gallery, and --image of its queries."
        )
    classifiers = list(dict.fromkeys(key[1:] for key in shown.nearest))
    methods = list(dict.fromkeys(key[4] for key in shown.pair_maps if not is_control(key[4])))
    columns: list[Column] = []
    for model, head in classifiers:
        has_several = any(key[1:] == (model, head) for key in shown.ranked)
        own = [method for method in methods if any(key[2:] == (model, head, method) for key in shown.pair_maps)]
        columns += [(model, head, method) for method in [RANKED] * has_several + own]
    limits = {}
    for column in columns:
        several = [found for key, found in shown.pair_maps.items() if key[2:] == column]
        if style.scale != "each" and several:
            limits[column] = common_limits(several)
    lanes: list[Lane] = []
    headings: dict[str, str] = {}
    for classifier in classifiers:
        crop = next(crop for key, crop in shown.crops.items() if key[1:] == classifier)
        for side in SIDES:
            group = _group(classifier, side)
            headings[group] = ": ".join(filter(None, [called(*classifier, classifiers), side]))
            lanes += [Lane(group, shown_title(crop)), *(Lane(group, column[2]) for column in columns if column[:2] == classifier)]
    items = [_item(shown, name, classifiers, columns, limits, style) for name in dict.fromkeys(key[0] for key in shown.nearest)]
    others = [column for column in columns if column[2] != RANKED]
    legends: list[Legend] = [ranked_legend()] * (len(others) < len(columns))
    return matrix(lanes, items, headings, [*legends, *(colour_bars(others, style) if others else [])], style)


def _group(classifier: tuple[str, str], side: str) -> str:
    return "\n".join([*classifier, side])


def _item(
    shown: RunData,
    query: str,
    classifiers: list[tuple[str, str]],
    columns: list[Column],
    limits: dict[Column, tuple[float, float]],
    style: FigureStyle,
) -> Item:
    """Returns a query and its nearest picture by each classifier."""
    panels: list[Panel] = []
    captions: dict[str, str] = {}
    for classifier in classifiers:
        own = [column for column in columns if column[:2] == classifier]
        if (query, *classifier) not in shown.nearest:
            panels += [Panel(None)] * (2 * len(own) + 2)
            continue
        nearest, cosine = shown.nearest[(query, *classifier)]
        for side, image, other in zip(SIDES, (query, nearest), (nearest, query), strict=True):
            panels.append(Panel(shown_crop(shown.crops[image, classifier[0], classifier[1]])))
            panels += [_panel(shown, image, other, column, limits.get(column), style) for column in own]
            said = "" if image == query else f", cosine\u00a0{cosine:.2f}"
            captions[_group(classifier, side)] = f"{image}{said}"
    return Item(panels, captions)


def _panel(shown: RunData, image: str, other: str, column: Column, limits: tuple[float, float] | None, style: FigureStyle) -> Panel:
    if column[2] == RANKED:
        return ranked_panel(shown, image, column)
    found = shown.pair_maps.get((image, other, *column))
    if found is None:
        return Panel(None)
    picture = shown_map(shown.crops[image, column[0], column[1]], found, column[2], limits=limits, colours=style.cmap)
    return Panel(picture, note_below(found, column[2]))
