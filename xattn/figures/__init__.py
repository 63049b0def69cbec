"""Figures for papers, from one or several runs: one figure kind per file, in one registry."""

from xattn.figures.base import figure, kinds, pages, register
from xattn.figures.canvas import save
from xattn.figures.photographs import overlay_runs
from xattn.figures.style import FigureStyle
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = ["FigureStyle", "figure", "kinds", "overlay_runs", "pages", "register", "save"]
