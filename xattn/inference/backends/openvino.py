"""OpenVINO backend, for CPUs."""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.metadata
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

    The network is exported by `torch.export`, which refuses networks whose control flow depends on the images' values. A chunk is divided
    among streams, which run at the same time: threads that share a forward would wait for each other after every layer. The network is
    exported for one stream's part of a chunk; smaller parts are padded.

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
    count = streams(tuning.chunk)
    part = -(-tuning.chunk // count)
    with quiet():
        ready = compiled(converted(clone, probe.repeat(part, 1, 1, 1)), tuning.precision, count)
    idle: list[Any] = []  # requests, each with the memory of one forward

    def request() -> Any:
        try:
            return idle.pop()
        except IndexError:
            return ready.create_infer_request()

    def logits(images: Tensor) -> Tensor:
        parts = list(images.detach().to(torch.float32).contiguous().split(part))
        missing = part - len(parts[-1])
        parts[-1] = torch.cat([parts[-1], parts[-1][-1:].expand(missing, -1, -1, -1)]) if missing else parts[-1]
        running = [request() for _ in parts]
        for each, some in zip(running, parts, strict=True):
            each.start_async([some.numpy()], share_inputs=True)
        for each in running:
            each.wait()
        found = torch.cat([torch.from_numpy(each.get_output_tensor(0).data) for each in running])  # a copy
        idle.extend(running)
        return found[: len(images)]

    return logits


def streams(chunk: int) -> int:
    """Returns the number of parts of a chunk that run at the same time: one for each of torch's threads."""
    return min(torch.get_num_threads(), chunk)


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


def compiled(model: Any, precision: str, count: int = 1) -> Any:
    """Compiles the model for this CPU, with torch's number of threads.

    Args:
        model: a converted network.
        precision: a tuning's precision.
        count: streams, each with its share of the threads.

    Raises:
        UnsupportedError: the CPU does not support that precision.
    """
    wanted = PRECISIONS[precision]
    settings = {
        "INFERENCE_PRECISION_HINT": wanted,  # by default it uses bfloat16 where the CPU supports it
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": count,
        "ENABLE_CPU_PINNING": False,  # two processes would share the first cores
    }
    ready = importlib.import_module("openvino").Core().compile_model(model, "CPU", settings)
    if (taken := ready.get_property("INFERENCE_PRECISION_HINT").to_string()) != wanted:
        raise UnsupportedError(f"with backend=openvino, this CPU computes precision={precision} in {taken}.")
    return ready
