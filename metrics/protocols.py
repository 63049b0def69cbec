"""Named protocols of insertion and deletion, and the settings that override them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from xattn.metrics.fills import Baseline

ProtocolName = Literal["ca-stream", "rise", "gomez", "br-npa"]


@dataclass(frozen=True)
class Protocol:
    """How pixels are changed. Definitions, Metrics, second table.

    Attributes:
        deletion: what a deleted pixel shows.
        insertion: the image before pixels are inserted.
        low_res: the steps are cells of the map at its own resolution, not pixels of the mask.
        summary: in words.
        as_bytes: cells are ranked by the map in whole 255ths.
        from_first_step: the area begins after the first step, with the remaining shares rescaled to [0, 1].
    """

    deletion: Baseline
    insertion: Baseline
    low_res: bool
    summary: str
    as_bytes: bool = False
    from_first_step: bool = False


PROTOCOLS: dict[str, Protocol] = {
    "ca-stream": Protocol(
        Baseline("colour"), Baseline("gaussian", side=5), False, "8·W pixels per step; deletes to the mean colour; inserts from blur 5"
    ),
    "rise": Protocol(
        Baseline("colour"), Baseline("gaussian", side=11), False, "8·W pixels per step; deletes to the mean colour; inserts from blur 11"
    ),
    "gomez": Protocol(
        Baseline("colour", "black"),
        Baseline("box", "black"),
        True,
        "map cells, ceil(n/196) per step; deletes to black (fill=mean: to the mean colour, as the authors' demo does); inserts from a box "
        "blur of side max(H // 5, 9)",
    ),
    "br-npa": Protocol(
        Baseline("colour"),
        Baseline("box", side=121),
        True,
        "map cells, ranked by the map in bytes, ceil(n/196) per step (step=1 as released); deletes to the mean colour; inserts from a box "
        "blur of side 121; the area begins after the first step",
        as_bytes=True,
        from_first_step=True,
    ),
}


DeletionFill = Literal["mean", "black", "blur", "noise", "noisy-linear"]
InsertionFill = Literal["mean", "black", "noise", "noisy-linear"]


def filled(fill: DeletionFill) -> Baseline:
    """The baseline for the name of a fill; "blur" is a box blur of side max(H // 5, 9), with the mean colour outside."""
    if fill == "blur":
        return Baseline("box")
    return Baseline("colour", fill) if fill == "mean" or fill == "black" else Baseline(fill)


def chosen(base: Baseline, fill: DeletionFill | None, blur: int | None = None) -> Baseline:
    """A protocol's baseline with a user's settings applied.

    Args:
        base: of the protocol.
        fill: replaces its colour, or the whole baseline if the fill is not a colour; None: the protocol's.
        blur: side of the blur's kernel, 0 for none; None: the protocol's.
    """
    if fill == "mean" or fill == "black":
        base = replace(base, colour=fill)
    elif fill is not None:
        return filled(fill)
    if blur is None:
        return base
    return replace(base, side=blur) if blur else Baseline("colour", base.colour)
