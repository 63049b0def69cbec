"""Finds the tokens of a network that are cells of a map, by changing patches of an image and finding the tokens that respond."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from xattn.models.layout import Axes, Layout

Capture = Callable[[Tensor], Mapping[str, Tensor]]
"""Images `(B, 3, H, W)` → tensors by the name of their place in the network."""

PATCHES = ((0.16, 0.22), (0.22, 0.78), (0.5, 0.42), (0.78, 0.3), (0.84, 0.84))  # centres, as shares of height and width
SIDE = 1 / 6
HITS = 4  # number of the five patches to which a token at the same position must respond
CLEAR = 1.5  # factor of its mean by which a token changes for the patch at its position, if positions are separate
PREFIXES = range(9)
ROUNDING = 0.3  # log of 4/3: 7 × 10 cells become 4 × 5
EQUALS = 0.05
FEW = 9  # with so few cells, responses could be chance
FEWEST = 4  # least cells of a map that is known from an earlier one, or from tokens that do not depend on the image
ORDERED = 100  # most cells to find one by one


def token_layouts(
    capture: Capture, image: Tensor, shapes: Mapping[str, tuple[int, ...]], farthest: float, known: Layout | None = None
) -> dict[str, Layout]:
    """Layouts of the tensors that are maps of tokens; other tensors are left out.

    Five patches of the image are made white, one after the other. The tokens of a map respond at the position of the patch; a class token
    and registers respond to all patches equally, or to none if they have just been added.

    Args:
        capture: returns the tensors of all places for a batch of images.
        image: `(1, 3, H, W)`, of noise.
        shapes: of the tensor of each place for one image, in the order of the forward.
        farthest: largest difference between the logarithms of a map's and the image's height over width.
        known: layout of an earlier map as tokens; None: there is none.
    """
    height, width = image.shape[-2:]
    changed = [_patched(image, row, column, SIDE, SIDE) for row, column in PATCHES]
    captured = capture(torch.cat([image, *changed, 1 - image]))
    aspect = math.log(height / width)
    found: dict[str, Layout] = {}
    for name, shape in shapes.items():
        if name not in captured:
            continue
        tensor, expected = captured[name], _expected(aspect, farthest, known)
        layout = None
        if known is not None:
            layout = _read(tensor, shape, *expected, known) or _smaller(tensor, shape, known)
        layout = layout or _read(tensor, shape, *expected, None)
        if layout is None and (guess := _few(shape, aspect, farthest, known)) is not None:
            layout = _ordered(capture, image, name, guess)
        if layout is not None:
            found[name] = layout
            known = layout if layout.axes != "NCL" else known
    return found


def _expected(aspect: float, farthest: float, known: Layout | None) -> tuple[float, float]:
    """The expected logarithm of a map's height over width, and its tolerance: after an earlier map its own value, up to rounding."""
    return (aspect, farthest) if known is None else (math.log(known.grid[0] / known.grid[1]), ROUNDING)


def _patched(image: Tensor, row: float, column: float, high: float, wide: float) -> Tensor:
    """The image with one patch white, given by its centre and sides, as shares of the image's."""
    height, width = image.shape[-2:]
    top, bottom = round((row - high / 2) * height), round((row + high / 2) * height)
    left, right = round((column - wide / 2) * width), round((column + wide / 2) * width)
    changed = image.clone()
    changed[:, :, max(0, top) : max(top + 1, bottom), max(0, left) : max(left + 1, right)] = 1
    return changed


def _axes(shape: tuple[int, ...]) -> Iterator[tuple[Axes, int]]:
    """The readings of a shape of three axes, for one image, as tokens, each with the number of tokens."""
    if shape[0] == 1 and min(shape[1:]) > 1:  # a pooled vector has an axis of length 1
        yield "NLC", shape[1]
        yield "NCL", shape[2]
    elif shape[1] == 1 < min(shape[0], shape[2]):
        yield "LNC", shape[0]


def _grids(count: int, aspect: float, farthest: float) -> list[tuple[int, int]]:
    """Heights and widths of a map of some tokens, those nearest to the image's aspect first."""
    pairs = [(high, count // high) for high in range(1, count + 1) if count % high == 0]
    off = {pair: abs(math.log(pair[0] / pair[1]) - aspect) for pair in pairs}
    return sorted((pair for pair in pairs if off[pair] <= farthest), key=lambda pair: off[pair])


def _read(tensor: Tensor, shape: tuple[int, ...], aspect: float, farthest: float, known: Layout | None) -> Layout | None:
    """The reading of a tensor whose tokens respond at the positions of the patches.

    Args:
        tensor: for the image, the image with each patch, and another image.
        shape: of the tensor for one image.
        aspect: logarithm of the image's height over width.
        farthest: as for `token_layouts`.
        known: the layout of an earlier place, with the same tokens before and after the map; None: any.
    """
    best: tuple[tuple[float, ...], Layout] | None = None
    usual = known.prefix if known else 0
    for axes, count in _axes(shape):
        tokens = Layout(axes).tokens(tensor)
        if len(tokens) != len(PATCHES) + 2:
            continue  # its first axis is not the images
        moves = _moves(tokens)
        answers, fixed = _answers(moves[:-1]), bool((moves[-1] == 0).any())
        for prefix, suffix in _ends(moves[-1] == 0, known) if axes != "NCL" else [(0, 0)]:
            cells = answers[:, prefix : count - suffix]
            if cells.shape[1] < (FEWEST if fixed or known else FEW):
                continue
            for place, grid in enumerate(_grids(cells.shape[1], aspect, farthest)):
                hits = _hits(cells, grid)
                rank = (hits, axes != "NCL", -prefix, -place)
                if hits >= (HITS if fixed or prefix == usual else len(PATCHES)) and (best is None or rank > best[0]):
                    best = rank, Layout(axes, prefix, suffix, grid)
    return None if best is None else best[1]


def _moves(tokens: Tensor) -> Tensor:
    """Distance of each token `(L,)`, for the images after the first, from that of the first image."""
    values = tokens.double()
    moves: Tensor = torch.linalg.vector_norm(values[1:] - values[:1], dim=2)
    return moves


def _answers(moves: Tensor) -> Tensor:
    """Change of each token for each patch, divided by its mean over all patches; among equal ones, the largest change comes first."""
    tiny = torch.finfo(torch.double).tiny
    return moves / moves.mean(dim=0).clamp(min=tiny) * (1 + EQUALS * moves / moves.amax(dim=1, keepdim=True).clamp(min=tiny))


def _smaller(tensor: Tensor, shape: tuple[int, ...], known: Layout) -> Layout | None:
    """A map with the aspect and the ends of an earlier one, and not larger, if no token responds to a patch more than the others.

    This occurs if each token is computed from all positions, by untrained attention.
    """
    ends = known.prefix + known.suffix
    for axes, count in _axes(shape):
        height = round(math.sqrt((count - ends) * known.grid[0] / known.grid[1])) if count > ends else 0
        if axes != known.axes or known.order or not 1 < height <= known.grid[0] or (count - ends) % height:
            continue
        moves = _moves(Layout(axes).tokens(tensor))
        if len(moves) == len(PATCHES) + 1 and _answers(moves[:-1]).amax() < CLEAR and moves[-1].all():
            return Layout(axes, known.prefix, known.suffix, (height, (count - ends) // height))
    return None


def _ends(fixed: Tensor, known: Layout | None) -> list[tuple[int, int]]:
    """Possible numbers of tokens before and after a map that are not its cells.

    Args:
        fixed: `(L,)` bool, the tokens that do not depend on the image.
        known: the layout of an earlier place, which has the same; None: any.
    """
    if fixed.any():
        cells = (~fixed).nonzero()[:, 0]
        if not len(cells) or len(cells) != int(cells[-1] - cells[0]) + 1:
            return []
        return [(int(cells[0]), len(fixed) - 1 - int(cells[-1]))]
    if known is not None:
        return [(known.prefix, known.suffix)] if known.prefix + known.suffix < len(fixed) - 1 else []
    return [(prefix, 0) for prefix in PREFIXES if prefix < len(fixed) - 1]


def _hits(answers: Tensor, grid: tuple[int, int]) -> int:
    """Number of patches to which a cell that they touch, or nearly touch, responds most.

    Args:
        answers: `(5, h·w)`.
        grid: h and w.
    """
    found = 0
    for (row, column), cell in zip(PATCHES, answers.argmax(dim=1).tolist(), strict=True):
        high, wide = divmod(cell, grid[1])
        near = [_near(high, grid[0], row), _near(wide, grid[1], column)]
        found += all(near)
    return found


def _near(cell: int, cells: int, centre: float) -> bool:
    """Whether a cell touches a patch along one side, or is less than half a cell from it."""
    return abs((cell + 0.5) / cells - centre) < SIDE / 2 + 1 / cells


def _few(shape: tuple[int, ...], aspect: float, farthest: float, known: Layout | None) -> Layout | None:
    """The reading of a small number of tokens, for which each cell can be found."""
    prefix, suffix = (known.prefix, known.suffix) if known else (0, 0)
    for axes, count in _axes(shape):
        grids = _grids(count - prefix - suffix, aspect, farthest) if 3 < count - prefix - suffix <= ORDERED else []
        if grids and axes != "NCL":
            return Layout(axes, prefix, suffix, grids[0])
    return None


def _ordered(capture: Capture, image: Tensor, name: str, guess: Layout) -> Layout | None:
    """The layout with the order of its tokens, each found by the patch to which it responds; None if two respond to the same patch."""
    height, width = guess.grid
    cells = [((row + 0.5) / height, (column + 0.5) / width) for row in range(height) for column in range(width)]
    moves: list[Tensor] = []
    for start in range(0, len(cells), 7):
        changed = [_patched(image, row, column, 1 / height, 1 / width) for row, column in cells[start : start + 7]]
        tokens = guess.tokens(capture(torch.cat([image, *changed]))[name])
        if len(tokens) != 1 + len(changed):
            return None  # its first axis is not the images
        moves.append(_moves(tokens)[:, guess.prefix : tokens.shape[1] - guess.suffix])
    order: list[int] = _answers(torch.cat(moves)).argmax(dim=1).tolist()
    return replace(guess, order=tuple(order)) if sorted(order) == list(range(len(order))) else None
