"""Adapters that run methods of other libraries: `captum:NAME`, `grad-cam:NAME` and `lxt:NAME`; one file per library."""

from xattn.registry import import_modules

import_modules(__name__, __path__)
