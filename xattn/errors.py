"""Every error that xattn raises on purpose.

    XattnError                     root; `exit_code` is the exit status of the command line
    ├── NameUnknownError           a component, class or column of that name does not exist (ValueError, exit 2)
    ├── SettingError               a component exists, but not with that setting            (ValueError, exit 2)
    ├── InputError                 tensors, labels or arguments that cannot be used         (ValueError, exit 2)
    ├── UnsupportedError           the network does not support the request                 (ValueError)
    ├── WeightsError               a weights file that does not fit or cannot be read       (ValueError)
    ├── UntrustedCodeError         a file that names code which loading it would run        (PermissionError, exit 2)
    ├── ImageError                 one image that cannot be read or scored                  (ValueError)
    ├── RunError                   a run folder that cannot be used or written              (OSError)
    ├── DivergedError              a training whose loss is no longer a number              (ArithmeticError)
    └── MissingPackageError        an optional package that is not installed                (ImportError)

A message says what was requested, what it needs, what was given and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = [
    "DivergedError",
    "ImageError",
    "InputError",
    "MissingPackageError",
    "NameUnknownError",
    "RunError",
    "SettingError",
    "UnsupportedError",
    "UntrustedCodeError",
    "WeightsError",
    "XattnError",
]


class XattnError(Exception):
    """Root of all errors raised on purpose."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes, only the class and message of an error are kept; the arguments of some (a name, the known names) are not.
        return _again, (type(self), str(self)), self.__dict__ or None


def _again(kind: type[XattnError], message: str) -> XattnError:
    error = kind.__new__(kind, message)
    error.args = (message,)
    return error


class NameUnknownError(XattnError, ValueError):
    """A name does not exist; the message suggests the nearest one."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        folded = {n.lower().replace("-", "").replace("_", ""): n for n in names}
        near = difflib.get_close_matches(name[:200].lower().replace("-", "").replace("_", ""), folded, n=1)
        meant = f" Did you mean '{folded[near[0]]}'?" if near else ""
        shown = ", ".join(names[:30]) if len(names) <= 30 else f"{len(names)} names, among them {', '.join(names[:3])}"
        name = (name if len(name) <= 200 else f"{name[:200]}…").replace("\n", "\\n")
        super().__init__(f"Unknown {kind} '{name}'.{meant} Known: {shown or 'none'}.{' ' + hint if hint else ''}")


class SettingError(XattnError, ValueError):
    """The component does not have a setting, or the setting does not accept a value."""

    exit_code = 2


class InputError(XattnError, ValueError):
    """Arguments that cannot be used as given."""

    exit_code = 2


class UnsupportedError(XattnError, ValueError):
    """The network does not support the request."""


class WeightsError(XattnError, ValueError):
    """A weights file cannot be read or does not fit the network."""


class UntrustedCodeError(XattnError, PermissionError):
    """Loading a file would import and run code that it names, and the user did not allow this."""

    exit_code = 2


class ImageError(XattnError, ValueError):
    """One image cannot be read or scored; a study records it and continues."""


class RunError(XattnError, OSError):
    """A run folder cannot be read, continued or written."""


class DivergedError(XattnError, ArithmeticError):
    """The loss of a training is no longer a number."""


class MissingPackageError(XattnError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, asked: str) -> None:
        super().__init__(f"{asked} needs the package '{package}', which is not installed: pip install 'xattn[{extra}]'")
