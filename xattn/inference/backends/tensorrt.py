"""Torch-TensorRT backend, for NVIDIA GPUs."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import io
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import MissingPackageError, UnsupportedError
from xattn.inference.backends.pytorch import DTYPES
from xattn.inference.backends.quiet import quiet
from xattn.inference.cloning import Runnable, clone_of
from xattn.inference.settings import Tuning

DEVICE = "cuda"


def version(classifier: Runnable) -> str | None:
    """Returns the installed version; None if it is not installed or the classifier is not on an NVIDIA GPU."""
    return _version() if classifier.device.type == DEVICE else None


def _version() -> str | None:
    try:
        return importlib.metadata.version("torch-tensorrt")
    except importlib.metadata.PackageNotFoundError:
        return None


class _FromNormalised(nn.Module):
    """A classifier as a module from normalised images to its output, in the form that `torch.export` needs."""

    def __init__(self, classifier: Runnable) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, normalised: Tensor) -> Tensor:
        return self.classifier.logits(normalised)


def built(classifier: Runnable, tuning: Tuning) -> Callable[[Tensor], Tensor]:
    """Returns the function that computes the output of one chunk, see `xattn.inference.backends.built`.

    The network is exported by `torch.export`, which refuses networks whose control flow depends on the images' values. It is exported for
    one chunk size; smaller chunks are padded. Operations that TensorRT lacks are run by torch. float32 is computed without TF32, also at
    level fast. Written for torch-tensorrt 2.14 and tested with a stand-in that accepts the arguments of its `dynamo.compile`; **not run on
    a GPU yet**.

    Raises:
        MissingPackageError: torch-tensorrt is not installed.
        UnsupportedError: the classifier is not on an NVIDIA GPU or not in float32, or torch-tensorrt cannot be imported.
    """
    if _version() is None:
        raise MissingPackageError("torch-tensorrt", "tensorrt", "backend=tensorrt")
    probe = classifier.probe()
    if classifier.device.type != DEVICE or probe.dtype != torch.float32:
        kind = str(probe.dtype).removeprefix("torch.")
        raise UnsupportedError(
            f"backend=tensorrt runs float32 networks on a GPU (cuda); {classifier.name} is {kind} on {classifier.device.type}."
        )
    dtype = DTYPES.get(tuning.precision, torch.float32)
    # The operations that torch runs refer to the weights. They get copies, so that all weights are those at this moment.
    clone = copy.deepcopy(clone_of(classifier, torch.contiguous_format, DTYPES.get(tuning.precision), folded=tuning.folded))
    with quiet(), torch.no_grad():
        example = _ready(classifier, probe.repeat(tuning.chunk, 1, 1, 1), dtype)
        exported = torch.export.export(_FromNormalised(clone), (example,), strict=False)
        engine = _compiler().compile(exported, inputs=[example], device=classifier.device, disable_tf32=True)
    one_at_a_time = threading.Lock()  # an engine has memory for one forward

    def logits(images: Tensor) -> Tensor:
        missing = tuning.chunk - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        with torch.no_grad(), one_at_a_time:
            found: Tensor = engine(_ready(classifier, filled, dtype))
        return found[: len(images)].float()

    return logits


def _ready(classifier: Runnable, images: Tensor, dtype: torch.dtype) -> Tensor:
    """Prepares images for an engine: normalised, in its precision and layout."""
    return classifier.normalise(images).to(dtype).contiguous()


def _compiler() -> Any:
    """Imports `torch_tensorrt.dynamo`.

    Raises:
        UnsupportedError: it cannot be imported, for example because TensorRT's libraries are missing or torch is of another release.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the reason of a failure
            return importlib.import_module("torch_tensorrt.dynamo")
    except Exception as error:  # its errors have no class of their own
        raise UnsupportedError(f"torch_tensorrt cannot be imported: {' '.join(str(error).split())[:300]}") from error
