"""Reads the state dict in a weights file of another tool, without executing anything in the file."""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xattn.errors import InputError, WeightsError
from xattn.models.state_dicts import AVERAGED

logger = logging.getLogger("xattn")

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")  # entries of a checkpoint that hold a state dict


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth`, `.pt`, `.th`, `.ckpt` or `.safetensors` file; nothing in the file is executed.

    An `argparse.Namespace` and NumPy scalars are skipped.

    Raises:
        InputError: the file does not exist.
        WeightsError: the file is not a weights file, or holds objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weights file '{path}'. Give a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with _harmless():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors on other kinds of file have no common base class
        raise WeightsError(_why_unread(path, error)) from error
    state = _state_in(loaded, path) if isinstance(loaded, Mapping) else None
    if state is None:
        raise WeightsError(f"weights '{path}' hold {type(loaded).__name__} without tensors; a state dict is needed.")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


class _Skipped:
    """A placeholder for a harmless object that is not a tensor: it accepts any argument and any state, and stores none."""

    def __new__(cls, *_: object) -> _Skipped:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


# NumPy's own functions are not called, since a malicious dtype makes them read foreign memory.
_HARMLESS = [
    type(name, (_Skipped,), {"__module__": module})
    for module, name in (
        ("argparse", "Namespace"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    )
]


def _harmless() -> AbstractContextManager[Any]:
    """Lets torch read placeholders for harmless objects in the block; torch before 2.5 cannot, and rejects these by name."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allowed is None else allowed(_HARMLESS)


def _why_unread(path: Path, error: Exception) -> str:
    """The reason why a weights file could not be read, with the lines that convert it if it holds objects."""
    if isinstance(error, SafetensorError):
        return f"weights '{path}' could not be read ({error})."
    said, converted = str(error), repr(str(path.with_suffix(".weights.pth")))
    if "TorchScript" in said:
        return (
            f"weights '{path}' are a TorchScript archive, which holds code. If you trust it, convert it:\n"
            f"    found = torch.jit.load({str(path)!r}, map_location='cpu')\n"
            f"    torch.save(found.state_dict(), {converted})"
        )
    if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported (global|class|operand)|GLOBAL", said):
        named = re.search(r"GLOBAL ([\w.<>]+)", said)
        name = "" if named is None else named[1] if "." in named[1] else f"builtins.{named[1]}"
        way = f"hold more than tensors: {name} is in the way, and reading it" if name else "are not pickled as by torch.save: reading them"
        return (
            f"weights '{path}' {way} would run code. If you trust the file, convert it where its code is installed:\n"
            f"    found = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
            f"    torch.save(found.state_dict() if hasattr(found, 'state_dict') else found.get('state_dict', found), {converted})\n"
            "with its own key of a state dict in the place of 'state_dict', if it has another."
        )
    reason = (said.strip() or type(error).__name__).partition("\n")[0][:200].removesuffix(".")
    return f"weights '{path}' could not be read: it is no PyTorch file, or a damaged one ({reason}). Give a .pth or .safetensors file."


def _state_in(loaded: Mapping[Any, Any], path: Path) -> Mapping[Any, Any] | None:
    """The state dict in a file's content, at most two entries deep; None if there is none.

    If there are entries of a moving average and of the plain weights, the plain one is used, and this is logged.
    """
    found = {str(key): value for key, value in loaded.items() if isinstance(value, Mapping)}
    held = {key: state for key, value in found.items() if (state := _tensors_in(value)) is not None}
    chosen = next((key for key in (*WRAPPERS, *AVERAGED) if key in held), None)
    if chosen is None:
        if _has_tensors(loaded):
            return loaded
        if len(held) > 1:
            raise WeightsError(
                f"weights '{path}' hold several state dicts: {', '.join(held)}. Keep one: "
                f"torch.save(torch.load('{path}', weights_only=True)['{next(iter(held))}'], 'one.pth')."
            )
        chosen = next(iter(held), None)
    if chosen is None:
        return None
    if others := [key for key in held if key != chosen and key in (*WRAPPERS, *AVERAGED)]:
        logger.warning(
            "of %s, '%s' is loaded; it also holds %s. For another: torch.save(torch.load('%s', weights_only=True)['%s'], 'other.pth')",
            path,
            chosen,
            ", ".join(f"'{key}'" for key in others),
            path,
            others[0],
        )
    return held[chosen]


def _tensors_in(entry: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The entry itself, or a state dict wrapped in it; None if it has no tensors."""
    if _has_tensors(entry):
        return entry
    return next((entry[key] for key in WRAPPERS if isinstance(entry.get(key), Mapping) and _has_tensors(entry[key])), None)


def _has_tensors(entry: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in entry.values())
