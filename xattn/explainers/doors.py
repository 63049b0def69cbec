"""One door for other libraries: `captum:NAME` and `grad-cam:NAME`, found in the libraries themselves, in the same tables.

Foreign methods run on the network and the normalised image, as their users run them, so that 0 is the mean colour. They run an image at
a time, seeded by its content, so that what is random in them does not depend on the batch; and the network is put back as it was: hooks,
training flags and parameters' gradients.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from xattn.classifiers.classifier import Classifier
from xattn.classifiers.concurrency import evaluating, exclusive
from xattn.errors import MissingPackageError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers.facts import MethodFacts, methods
from xattn.explainers.trace import Trace
from xattn.heads import CAStreamHead
from xattn.registry import Door, Part

_one_at_a_time = threading.RLock()  # the libraries print and draw random numbers, which are the process's own

CELLS = 7
EXHAUSTIVE_CELLS = 2  # all orders of n cells are n! passes
CHANNELS = ("abs-max", "sum")
GUIDED = ("GuidedBackprop", "Deconvolution", "GuidedGradCam")
MODEL_ARGUMENTS = ("forward_func", "model", "attribution_method")
GIVEN = (*MODEL_ARGUMENTS, "layer", "inputs", "target", "additional_forward_args")


@dataclass(frozen=True)
class Foreign:
    """A method of another library.

    Attributes:
        spec: how rows call it.
        attribute: network, normalised image `(1, 3, H, W)`, target and trace → raw map `(h, w)`.
    """

    spec: str
    attribute: Callable[[nn.Module, Tensor, int, Trace], Tensor]

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, at the library's resolution.

        Raises:
            UnsupportedError: the library's own reason why it cannot run on this network.
        """
        maps = []
        classifier = trace.classifier
        network = _Network(classifier)
        normalised = classifier.normalise(trace.images.detach())
        with _one_at_a_time, exclusive(classifier.network), evaluating(classifier), restored(classifier), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries announce the hooks they set
            for image, target, seed in zip(normalised, trace.targets.tolist(), trace.seeds, strict=True):
                with seeded(seed), torch.enable_grad(), silent():
                    try:
                        found = self.attribute(network, image[None].contiguous(), target, trace)
                    except Exception as error:  # whatever the library raises is its reason
                        if isinstance(error, UnsupportedError):
                            raise
                        reason = str(error).strip().split("\n")[0] or type(error).__name__
                        raise UnsupportedError(f"{self.spec} cannot run on {trace.classifier.name}: {reason}") from error
                maps.append(found.detach().to(trace.images))
        return torch.stack(maps)


class _Network(nn.Module):
    """Normalised images → logits, with the network and its head as children, as libraries that walk over modules expect."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self.head = classifier.head
        self.forward = classifier.logits


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Puts hooks, gradients and their flags back as they were, whatever ran inside."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")
    hooks = [(getattr(m, table), dict(getattr(m, table))) for m in module.modules() for table in tables if hasattr(m, table)]
    children = [(m, dict(m._modules)) for m in module.modules()]  # AblationCAM exchanges a module, and leaves it if it fails
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    for parameter, _, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parent, before in children:
            parent._modules.clear()
            parent._modules.update(before)
        for table, before_hooks in hooks:
            table.clear()
            table.update(before_hooks)
        for parameter, gradient, required in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(required)


@contextmanager
def silent() -> Iterator[None]:
    """The libraries print and draw progress bars: stdout is for data. What other threads print passes."""
    with contextlib.redirect_stdout(_Muted(sys.stdout)), contextlib.redirect_stderr(_Muted(sys.stderr)):
        yield


class _Muted(io.TextIOBase):
    """A stream that drops what the thread writes that made it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.owner = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.owner else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All random generators seeded inside, and as they were after."""
    numpy = importlib.import_module("numpy")  # pytorch-grad-cam draws from it
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def _value(text: str) -> Any:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _spec(door: str, name: str, settings: Mapping[str, str]) -> str:
    written = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{door}:{name}:{written}" if written else f"{door}:{name}"


def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {n: p for n, p in inspect.signature(function).parameters.items() if n != "self" and p.kind not in skipped}


def _required(function: Callable[..., Any]) -> set[str]:
    return {name for name, p in _arguments(function).items() if p.default is inspect.Parameter.empty}


def _layer(trace: Trace, spec: str, *, channels_first: bool) -> nn.Module:
    stage = trace.stage
    if stage.offset is not None:
        raise UnsupportedError(f"{spec} hooks a module; stage '{stage.name}' is a function's output. Choose a stage that is a module.")
    if stage.calls > 1:
        raise UnsupportedError(f"{spec} hooks a module, and '{stage.module}' runs {stage.calls} times in a forward. Choose another stage.")
    head = trace.classifier.head
    if isinstance(head, CAStreamHead) and head.settings.per_class:
        raise UnsupportedError(
            f"{spec} hooks a module, and a head with a query for each class runs the network twice. Use xattn's own CAMs."
        )
    if channels_first and stage.layout != "NCHW":
        raise UnsupportedError(
            f"{spec} takes axis 1 for the channels; stage '{stage.name}' has them last, and the map would be wrong without an error."
        )
    return trace.classifier.network.get_submodule(stage.module)


# ---- captum -----------------------------------------------------------------------------------------------------------------------

OURS = ("cells", "channels")  # settings of the door: cells a side of windows and feature masks; how channels become one


def _captum(asked: str) -> ModuleType:
    if importlib.util.find_spec("captum") is None:
        raise MissingPackageError("captum", "captum", f"'{asked}'")
    return importlib.import_module("captum.attr")


def _is_a(cls: Any, parent: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, parent)


def _captum_classes() -> dict[str, Any]:
    """Every attribution that can be built from a network and a layer, and needs nothing but an image, a target and baselines."""
    captum = _captum("captum")
    found: dict[str, Any] = {}
    for name in captum.__all__:
        cls: Any = getattr(captum, name)
        if not _is_a(cls, captum.Attribution) or "attribute" not in dir(cls):
            continue
        built = _required(cls.__init__)
        given = _required(cls.attribute)
        if (
            built & set(MODEL_ARGUMENTS)
            and built <= {*MODEL_ARGUMENTS, "layer"}
            and given <= {"inputs", "baselines", "sliding_window_shapes"}
        ):
            found[name] = cls
    return found


def _open_captum(name: str, settings: Mapping[str, str]) -> Part[MethodFacts]:
    captum = _captum(f"captum:{name}")
    classes = _captum_classes()
    if name not in classes:
        raise NameUnknownError("captum method", name, classes)
    cls, spec = classes[name], _spec("captum", name, settings)
    build, attribute = _arguments(cls.__init__), _arguments(cls.attribute)
    if name.endswith("FeaturePermutation"):
        raise UnsupportedError(
            f"{spec} exchanges pixels between the images of a batch: an image's map would depend on its neighbours. "
            "captum:FeatureAblation answers for an image alone."
        )
    values = {key: _value(text) for key, text in settings.items()}
    if unknown := [key for key in values if key not in {**build, **attribute} and key not in OURS]:
        known = [key for key in (*OURS, *build, *attribute) if key not in GIVEN]
        raise SettingError(f"captum:{name} has no setting '{unknown[0]}'. It has: {', '.join(known)}.")
    channels = values.pop("channels", "sum" if issubclass(cls, captum.PerturbationAttribution) else "abs-max")
    if channels not in CHANNELS:
        raise SettingError(f"captum:{name} takes channels={'|'.join(CHANNELS)}; got '{channels}'.")
    cells = values.pop("cells", EXHAUSTIVE_CELLS if name == "ShapleyValues" else CELLS)
    guided = name in GUIDED

    def run(model: nn.Module, image: Tensor, target: int, trace: Trace) -> Tensor:
        arguments: dict[str, Any] = {next(a for a in MODEL_ARGUMENTS if a in build): _captum_model(captum, build, model)}
        if guided and not any(isinstance(module, nn.ReLU) for module in model.modules()):
            raise UnsupportedError(
                f"{spec} guides nn.ReLU modules alone, and {trace.classifier.name} has none: it would give the plain gradient."
            )
        if "DeepLift" in name and not any(type(module).__module__ == nn.ReLU.__module__ for module in model.modules()):
            raise UnsupportedError(f"{spec} sees activations that are modules alone, and {trace.classifier.name} has none.")
        if "layer" in build:
            arguments["layer"] = _layer(trace, spec, channels_first=True)
        method = cls(**arguments, **{key: value for key, value in values.items() if key in build})
        offered = _offered(image, target, trace, cells)
        inner = _arguments(captum.Saliency.attribute) if "attribution_method" in build else {}
        given = {key: value for key, value in offered.items() if key in attribute or key in inner}
        if "baselines" in _required(cls.attribute):  # a distribution, of two at the least
            given["baselines"] = torch.cat([torch.zeros_like(image), _black(trace, image)])
        found = method.attribute(image, **{**given, **{key: value for key, value in values.items() if key in attribute}})
        maps: Tensor = found[0] if isinstance(found, tuple) else found
        if maps.dim() != 4:
            raise UnsupportedError(f"{spec} gives {tuple(maps.shape)}, no map.")
        of_features = "layer" in build and maps.shape[-2:] != image.shape[-2:]
        return maps[0].sum(dim=0) if of_features or channels == "sum" else maps[0].abs().amax(dim=0)

    return Part(spec, Foreign(spec, run), MethodFacts(frozenset(), f"captum {importlib.import_module('captum').__version__}"))


def _captum_model(captum: ModuleType, build: Mapping[str, Any], model: nn.Module) -> Any:
    return captum.Saliency(model) if "attribution_method" in build else model


def _black(trace: Trace, image: Tensor) -> Tensor:
    return trace.classifier.normalise(torch.zeros_like(image))


def _offered(image: Tensor, target: int, trace: Trace, cells: int) -> dict[str, Any]:
    """What attributions may ask for by name, beside the image."""
    height, width = image.shape[-2:]
    window = (3, max(1, height // cells), max(1, width // cells))
    row, column = torch.arange(height) * cells // height, torch.arange(width) * cells // width
    return {
        "target": target,
        "baselines": torch.zeros_like(image),
        "feature_mask": (row[:, None] * cells + column).to(image.device)[None, None],
        "sliding_window_shapes": window,
        "strides": (3, max(1, window[1] // 2), max(1, window[2] // 2)),
        "layer_mask": torch.arange(trace.stage.size[0] * trace.stage.size[1], device=image.device).view(1, 1, *trace.stage.size),
        "internal_batch_size": trace.predictor.chunk,
    }


# ---- pytorch-grad-cam -------------------------------------------------------------------------------------------------------------


def _grad_cam(asked: str) -> ModuleType:
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise MissingPackageError("grad-cam", "grad-cam", f"'{asked}'")
    return importlib.import_module("pytorch_grad_cam")


def _grad_cam_classes() -> dict[str, Any]:
    """Every class that is built from a network and target layers."""
    library = _grad_cam("grad-cam")
    classes: dict[str, Any] = {name: cls for name, cls in vars(library).items() if inspect.isclass(cls)}
    return {name: cls for name, cls in classes.items() if _required(cls.__init__) == {"model", "target_layers"}}


def _open_grad_cam(name: str, settings: Mapping[str, str]) -> Part[MethodFacts]:
    _grad_cam(f"grad-cam:{name}")
    classes = _grad_cam_classes()
    if name not in classes:
        raise NameUnknownError("pytorch-grad-cam method", name, classes)
    cls, spec = classes[name], _spec("grad-cam", name, settings)
    build, call = _arguments(cls.__init__), _arguments(cls.__call__)
    values = {key: _value(text) for key, text in settings.items()}
    if unknown := [key for key in values if key not in {**build, **call}]:
        raise SettingError(f"grad-cam:{name} has no setting '{unknown[0]}'. It has: {', '.join([*build, *call])}.")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

    def run(network: nn.Module, image: Tensor, target: int, trace: Trace) -> Tensor:
        layer = _layer(trace, spec, channels_first=False)
        turn = None if trace.stage.layout == "NCHW" else lambda features: features.permute(0, 3, 1, 2)
        made = {key: value for key, value in values.items() if key in build}
        called = {key: value for key, value in values.items() if key in call}
        method = cls(model=network, target_layers=[layer], reshape_transform=turn, **made)
        found = method(input_tensor=image, targets=[targets.ClassifierOutputTarget(target)], **called)
        return torch.as_tensor(found)[0]

    return Part(spec, Foreign(spec, run), MethodFacts(frozenset(), "pytorch-grad-cam"))


def _installed(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is not None


methods.register_door("captum", Door(_captum_classes, _open_captum, _installed("captum")))
methods.register_door("grad-cam", Door(_grad_cam_classes, _open_grad_cam, _installed("pytorch_grad_cam")))
