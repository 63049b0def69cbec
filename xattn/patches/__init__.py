"""Patches: boxes of a picture that may hold its telling parts, found without labels of parts. A figure draws them, a network reads them."""

from xattn.boxes import crop, lay_back
from xattn.patches.base import Finder, FinderMetadata, find, finders
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = ["Finder", "FinderMetadata", "crop", "find", "finders", "lay_back"]
