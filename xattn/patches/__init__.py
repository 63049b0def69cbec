"""Patches: boxes of a picture that may hold its discriminative parts, found without part labels, for figures and networks."""

from xattn.boxes import crop, lay_back
from xattn.patches.base import Finder, FinderMetadata, find, finders
from xattn.patches.file import read_patches, write_patches
from xattn.patches.pictures import PictureBoxes, boxes_file, boxes_of
from xattn.registry import import_modules

import_modules(__name__, __path__)  # modules of this folder register themselves and need not be listed here

__all__ = [
    "Finder",
    "FinderMetadata",
    "PictureBoxes",
    "boxes_file",
    "boxes_of",
    "crop",
    "find",
    "finders",
    "lay_back",
    "read_patches",
    "write_patches",
]
