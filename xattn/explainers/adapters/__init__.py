"""Methods of other libraries, discovered in the libraries themselves: `captum:NAME` and `grad-cam:NAME`; one file per library."""

from xattn.registry import import_modules

import_modules(__name__, __path__)
