"""OpenVINO backend, for CPUs."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xattn.errors import MissingPackageError, UnsupportedError
from xattn.inference.backends.quiet import quiet
from xattn.inference.cloning import Runnable, clone_of
from xattn.inference.settings import Tuning

TOLD = 300  # characters of OpenVINO's message that are shown
PRECISIONS = {"own": "f32", "bfloat16": "bf16", "float16": "f16"}


def version(classifier: Runnable) -> str | None:
    """Returns the installed version; None if OpenVINO is not installed or the classifier is not on a CPU."""
    return _version() if classifier.device.type == "cpu" else None


def _version() -> str | None:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:  # a folder of this name can also be imported
        return None


def built(classifier: Runnable, tuning: Tuning) -> Callable[[Tensor], Tensor]:
    """Returns the function that computes the output of one chunk, see `xattn.inference.backends.built`.

    The network is exported by `torch.export`, which refuses networks whose control flow depends on the images' values. It is exported for
    one chunk size; smaller chunks are padded.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        UnsupportedError: the classifier is not on a CPU or not in float32, or the CPU lacks the tuning's precision.
    """
    if _version() is None:
        raise MissingPackageError("openvino", "openvino", "backend=openvino")
    probe = classifier.probe()
    if probe.device.type != "cpu" or probe.dtype != torch.float32:
        kind = str(probe.dtype).removeprefix("torch.")
        raise UnsupportedError(f"backend=openvino runs float32 networks on a CPU; {classifier.name} is {kind} on {probe.device.type}.")
    # OpenVINO refers to some of the weights and repacks the others. It gets copies, so that all weights are those at this moment.
    clone = copy.deepcopy(clone_of(classifier, torch.contiguous_format, folded=tuning.folded))
    with quiet():
        ready = compiled(converted(clone, probe.repeat(tuning.chunk, 1, 1, 1)), tuning.precision)
    requests = threading.local()  # a request holds the memory of one forward

    def logits(images: Tensor) -> Tensor:
        missing = tuning.chunk - len(images)
        filled = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)]) if missing else images
        if not hasattr(requests, "own"):
            requests.own = ready.create_infer_request()
        given = filled.detach().to(torch.float32).contiguous().numpy()
        found = requests.own.infer([given], share_inputs=True)[0]
        return torch.from_numpy(found)[: len(images)]

    return logits


def converted(network: torch.nn.Module, images: Tensor) -> Any:
    """Converts the network to an OpenVINO model for a given number of images.

    Does the steps of `openvino.convert_model` by hand, because that function sends usage reports unless the user has opted out.
    """
    frontend = importlib.import_module("openvino.frontend")
    decoder = importlib.import_module("openvino.frontend.pytorch.fx_decoder").TorchFXPythonDecoder
    kept = importlib.import_module("openvino.frontend.pytorch.torchdynamo.export_decompositions").ops_to_not_decompose()
    with torch.no_grad():
        exported = torch.export.export(network, (images,), strict=False)
        decompositions = torch.export.default_decompositions()
        for operation in kept:
            with contextlib.suppress(KeyError):  # torch itself keeps it
                decompositions.pop(operation)
        graph = exported.run_decompositions(decompositions).module()
    pytorch = frontend.FrontEndManager().load_by_framework("pytorch")
    decoded = decoder(graph, dynamic_shapes=False)  # kept alive to the end: the frontend only refers to it
    try:
        return pytorch.convert(pytorch.load(decoded))
    except Exception as error:  # its errors have no common base class
        raise UnsupportedError(f"OpenVINO cannot convert it: {' '.join(str(error).split())[:TOLD]}") from error


def compiled(model: Any, precision: str) -> Any:
    """Compiles the model for this CPU, with torch's number of threads.

    Raises:
        UnsupportedError: the CPU does not support that precision.
    """
    wanted = PRECISIONS[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,  # by default it uses bfloat16 where the CPU supports it
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # two processes would share the first cores
    }
    ready = importlib.import_module("openvino").Core().compile_model(model, "CPU", settings)
    if (taken := ready.get_property("INFERENCE_PRECISION_HINT").to_string()) != wanted:
        raise UnsupportedError(f"with backend=openvino, this CPU computes precision={precision} in {taken}.")
    return ready
