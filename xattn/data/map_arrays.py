"""Reads arrays of maps from files of other tools: NumPy's, safetensors, torch's and grey PNG. Nothing in a file is executed."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from safetensors import SafetensorError, safe_open

from xattn.data.npy import npy_values
from xattn.deferred import torch
from xattn.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

CONTAINERS = (".npz", ".safetensors", ".pt", ".pth")
"""Extensions of files that hold arrays by name."""
SUFFIXES = (".npy", ".png", *CONTAINERS)
TAKEN = "NumPy's .npy and .npz, .safetensors, torch's .pt and .pth, and grey .png"


def arrays_in(path: Path) -> dict[str, Tensor]:
    """Reads the arrays in a file, by name; `""` is the name of an array in a file that holds only one.

    Args:
        path: a file with one of `SUFFIXES`.

    Raises:
        InputError: the file cannot be read, or is not in one of these formats.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        content = path.read_bytes()
        if path.suffix == ".npy":
            return {"": npy_values(content, path)}
        if path.suffix == ".png":
            return {"": _grey(path, content)}
        if path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                names = [name for name in archive.namelist() if name.endswith(".npy")]
                return {name.removesuffix(".npy"): npy_values(archive.read(name), f"{path}, {name}") for name in names}
        return _torch(path, content)
    except OSError as error:
        raise InputError(f"'{path}' could not be read ({error.strerror or error}).") from error
    except (zipfile.BadZipFile, SafetensorError, NotImplementedError, RuntimeError, ValueError, SyntaxError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"'{path}' is not a file of maps, or is damaged: {TAKEN} are read.") from error


def _torch(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors have no common base class
        raise InputError(f"'{path}' contains objects other than tensors, or is damaged: save one tensor, or tensors by name.") from error
    found = {"": loaded} if torch.is_tensor(loaded) else loaded
    if not isinstance(found, Mapping) or not all(isinstance(name, str) and torch.is_tensor(value) for name, value in found.items()):
        raise InputError(f"'{path}' contains {type(loaded).__name__}: one tensor, or tensors by name, is needed.")
    return dict(found)


def _grey(path: Path, content: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            picture = Image.open(io.BytesIO(content))
            picture.load()
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise InputError(f"'{path}' has more pixels than a map.") from error
    if picture.mode.startswith(("I", "F")):
        return torch.frombuffer(bytearray(picture.convert("F").tobytes()), dtype=torch.float32).view(picture.height, picture.width)
    channels = picture.convert("RGB").split()
    if any(channel.tobytes() != channels[0].tobytes() for channel in channels):
        raise InputError(f"'{path}' is a colour picture: a map needs grey values. Save the map itself, not its overlay.")
    if picture.mode in ("RGBA", "LA", "PA") and picture.getchannel("A").getextrema() != (255, 255):
        raise InputError(f"'{path}' is partly transparent: a map needs grey values without transparency.")
    return torch.frombuffer(bytearray(channels[0].tobytes()), dtype=torch.uint8).view(picture.height, picture.width)


def as_map(values: Tensor, said: str) -> Tensor:
    """Returns an array as a map `(h, w)`, float32; leading axes of length 1 are dropped.

    Args:
        values: an array of any shape.
        said: its name in messages.

    Raises:
        InputError: it is not a map.
    """
    shape = tuple(values.shape)
    while values.dim() > 2 and values.shape[0] == 1:
        values = values[0]
    if values.dim() != 2 or values.numel() == 0 or values.is_complex():
        several = " Sum or average its channels first." if values.dim() == 3 else ""
        raise InputError(f"{said} has the shape {shape}: a map is (height, width), of real numbers.{several}")
    found = values.float()
    if bool((torch.isinf(found) & torch.isfinite(values)).any()):
        largest = float(values[torch.isfinite(values)].abs().max())
        raise InputError(f"{said} reaches {largest:.1e}, more than float32 can hold (3.4e+38): divide the map by its largest magnitude.")
    return found
