"""Pictures for papers, drawn from run folders."""

from xattn.figures.grid import grid

__all__ = ["grid"]
