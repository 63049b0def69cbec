"""Figures for papers, of one or several runs: a kind per file, in one registry."""

from xattn.figures.base import figure, kinds, register
from xattn.registry import import_modules

import_modules(__name__, __path__)  # what a module of this folder registers is known without being named here

__all__ = ["figure", "kinds", "register"]
