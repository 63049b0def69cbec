"""Backends that compute the output of a chunk of images: torch, or another installed runtime. One file per backend."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from torch import Tensor

from xattn.inference.backends import openvino, pytorch, tensorrt
from xattn.inference.cloning import Runnable
from xattn.inference.settings import Backend, Tuning

__all__ = ["built", "others", "runs_modules", "streams"]

BUILT: dict[Backend, ModuleType] = {"torch": pytorch, "openvino": openvino, "tensorrt": tensorrt}


def built(classifier: Runnable, tuning: Tuning) -> Callable[[Tensor], Tensor]:
    """Returns the function that computes the output of one chunk.

    Args:
        classifier: the classifier to run; it is not changed.
        tuning: execution settings.

    Returns:
        Images in pixel space `(b, C, H, W)` on the classifier's device, at most `tuning.chunk` of them → the output, float32 or float64,
        without gradients. Several threads may call it.

    Raises:
        MissingPackageError: the backend is not installed.
        UnsupportedError: it does not support the classifier's device or its precision.
    """
    run: Callable[[Tensor], Tensor] = BUILT[tuning.backend].built(classifier, tuning)
    return run


def streams(tuning: Tuning) -> int:
    """Returns the number of parts of a chunk that the backend runs at the same time."""
    return openvino.streams(tuning.chunk) if tuning.backend == "openvino" else 1


def runs_modules(tuning: Tuning) -> bool:
    """Whether torch modules compute the output, which must be in eval mode while they run."""
    return tuning.backend != "openvino"


def others(classifier: Runnable) -> dict[Backend, str]:
    """Returns the installed backends other than torch that run on the classifier's device, with their versions."""
    found: dict[Backend, str | None] = {"openvino": openvino.version(classifier), "tensorrt": tensorrt.version(classifier)}
    return {backend: version for backend, version in found.items() if version is not None}
