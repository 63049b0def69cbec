"""Pictures for papers."""

from xattn.figures.grid import grid
from xattn.figures.parts import parts

KINDS = {"grid": grid, "parts": parts}

__all__ = ["KINDS", "grid", "parts"]
