"""Every image attribution of captum, as `captum:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import MissingPackageError, NameUnknownError, SettingError, UnsupportedError
from xattn.explainers.adapters.base import AdaptedMethod, arguments_of, layer_of, required_of, spec_of, value_of
from xattn.explainers.base import Method, MethodMetadata, methods
from xattn.explainers.trace import Trace
from xattn.registry import Adapter, Component

CELLS = 7
EXHAUSTIVE_CELLS = 2  # all orders of n cells take n! passes
CHANNELS = ("abs-max", "sum")
OURS = ("cells", "channels")  # settings of the adapter: cells per side of windows and feature masks; how channels are reduced to one
GUIDED = ("GuidedBackprop", "Deconvolution", "GuidedGradCam")
MODEL_ARGUMENTS = ("forward_func", "model", "attribution_method")
GIVEN = (*MODEL_ARGUMENTS, "layer", "inputs", "target", "additional_forward_args")


def _captum(asked: str) -> ModuleType:
    if importlib.util.find_spec("captum") is None:
        raise MissingPackageError("captum", "captum", f"'{asked}'")
    return importlib.import_module("captum.attr")


def _is_a(cls: Any, parent: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, parent)


def _classes() -> dict[str, Any]:
    """Every attribution that is built from a network and a layer, and needs only an image, a target and baselines."""
    captum = _captum("captum")
    found: dict[str, Any] = {}
    for name in captum.__all__:
        cls: Any = getattr(captum, name)
        if not _is_a(cls, captum.Attribution) or "attribute" not in dir(cls):
            continue
        built = required_of(cls.__init__)
        given = required_of(cls.attribute)
        if (
            built & set(MODEL_ARGUMENTS)
            and built <= {*MODEL_ARGUMENTS, "layer"}
            and given <= {"inputs", "baselines", "sliding_window_shapes"}
        ):
            found[name] = cls
    return found


def _create(name: str, settings: Mapping[str, str]) -> Component[MethodMetadata, Method]:
    captum = _captum(f"captum:{name}")
    classes = _classes()
    if name not in classes:
        raise NameUnknownError("captum method", name, classes)
    cls, spec = classes[name], spec_of("captum", name, settings)
    build, attribute = arguments_of(cls.__init__), arguments_of(cls.attribute)
    if name.endswith("FeaturePermutation"):
        raise UnsupportedError(
            f"{spec} exchanges pixels between the images of a batch, so an image's map would depend on the others. "
            f"captum:FeatureAblation uses each image on its own."
        )
    values = {key: value_of(text) for key, text in settings.items()}
    if unknown := [key for key in values if key not in {**build, **attribute} and key not in OURS]:
        known = [key for key in (*OURS, *build, *attribute) if key not in GIVEN]
        raise SettingError(f"captum:{name} has no setting '{unknown[0]}'. It has: {', '.join(known)}.")
    channels = values.pop("channels", "sum" if issubclass(cls, captum.PerturbationAttribution) else "abs-max")
    if channels not in CHANNELS:
        raise SettingError(f"captum:{name} takes channels={'|'.join(CHANNELS)}; got '{channels}'.")
    cells = values.pop("cells", EXHAUSTIVE_CELLS if name == "ShapleyValues" else CELLS)

    def run(model: nn.Module, image: Tensor, target: int, trace: Trace) -> Tensor:
        _refuse_without_rectifiers(name, spec, model, trace)
        arguments: dict[str, Any] = {next(a for a in MODEL_ARGUMENTS if a in build): _model(captum, build, model)}
        if "layer" in build:
            arguments["layer"] = layer_of(trace, spec, channels_first=True)
        method = cls(**arguments, **{key: value for key, value in values.items() if key in build})
        offered = _offered(image, target, trace, cells)
        inner = arguments_of(captum.Saliency.attribute) if "attribution_method" in build else {}
        given = {key: value for key, value in offered.items() if key in attribute or key in inner}
        if "layer_mask" in attribute:
            height, width = trace.stage.size
            given["layer_mask"] = torch.arange(height * width, device=image.device).view(1, 1, height, width)
        if "baselines" in required_of(cls.attribute):  # a distribution, of at least two
            given["baselines"] = torch.cat([torch.zeros_like(image), trace.classifier.normalise(torch.zeros_like(image))])
        found = method.attribute(image, **{**given, **{key: value for key, value in values.items() if key in attribute}})
        maps: Tensor = found[0] if isinstance(found, tuple) else found
        if maps.dim() != 4:
            raise UnsupportedError(f"{spec} gives {tuple(maps.shape)}, which is not a map.")
        of_features = "layer" in build and maps.shape[-2:] != image.shape[-2:]
        return maps[0].sum(dim=0) if of_features or channels == "sum" else maps[0].abs().amax(dim=0)

    version = importlib.import_module("captum").__version__
    return Component(spec, AdaptedMethod(spec, run), MethodMetadata(frozenset(), f"captum {version}"))


def _refuse_without_rectifiers(name: str, spec: str, model: nn.Module, trace: Trace) -> None:
    if name in GUIDED and not any(isinstance(module, nn.ReLU) for module in model.modules()):
        raise UnsupportedError(
            f"{spec} guides only nn.ReLU modules, and {trace.classifier.name} has none: it would give the plain gradient."
        )
    if "DeepLift" in name and not any(type(module).__module__ == nn.ReLU.__module__ for module in model.modules()):
        raise UnsupportedError(f"{spec} sees only activations that are modules, and {trace.classifier.name} has none.")


def _model(captum: ModuleType, build: Mapping[str, Any], model: nn.Module) -> Any:
    return captum.Saliency(model) if "attribution_method" in build else model


def _offered(image: Tensor, target: int, trace: Trace, cells: int) -> dict[str, Any]:
    """Arguments that attributions may ask for by name, besides the image."""
    height, width = image.shape[-2:]
    window = (image.shape[1], max(1, height // cells), max(1, width // cells))
    row, column = torch.arange(height) * cells // height, torch.arange(width) * cells // width
    return {
        "target": target,
        "baselines": torch.zeros_like(image),
        "feature_mask": (row[:, None] * cells + column).to(image.device)[None, None],
        "sliding_window_shapes": window,
        "strides": (window[0], max(1, window[1] // 2), max(1, window[2] // 2)),
        "internal_batch_size": trace.predictor.chunk,
    }


methods.register_adapter("captum", Adapter(_classes, _create, "captum"))
