"""Methods of other libraries, found in the libraries themselves: `captum:NAME` and `grad-cam:NAME`; a file per library."""

from xattn.registry import import_modules

import_modules(__name__, __path__)
