"""Every CAM of pytorch-grad-cam, as `grad-cam:NAME`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import MissingPackageError, NameUnknownError, SettingError
from xattn.explainers.adapters.base import AdaptedMethod, arguments_of, layer_of, required_of, spec_of, value_of
from xattn.explainers.base import Method, MethodMetadata, methods
from xattn.explainers.trace import Trace
from xattn.models.layout import to_nchw
from xattn.registry import Adapter, Component


def _library(asked: str) -> ModuleType:
    if importlib.util.find_spec("pytorch_grad_cam") is None:
        raise MissingPackageError("grad-cam", "grad-cam", f"'{asked}'")
    return importlib.import_module("pytorch_grad_cam")


def _classes() -> dict[str, Any]:
    """Every class that is built from a network and target layers."""
    classes: dict[str, Any] = {name: cls for name, cls in vars(_library("grad-cam")).items() if inspect.isclass(cls)}
    return {name: cls for name, cls in classes.items() if required_of(cls.__init__) == {"model", "target_layers"}}


def _create(name: str, settings: Mapping[str, str]) -> Component[MethodMetadata, Method]:
    _library(f"grad-cam:{name}")
    classes = _classes()
    if name not in classes:
        raise NameUnknownError("pytorch-grad-cam method", name, classes)
    cls, spec = classes[name], spec_of("grad-cam", name, settings)
    build, call = arguments_of(cls.__init__), arguments_of(cls.__call__)
    values = {key: value_of(text) for key, text in settings.items()}
    if unknown := [key for key in values if key not in {**build, **call}]:
        raise SettingError(f"grad-cam:{name} has no setting '{unknown[0]}'. It has: {', '.join([*build, *call])}.")
    targets = importlib.import_module("pytorch_grad_cam.utils.model_targets")

    def run(network: nn.Module, image: Tensor, target: int, trace: Trace) -> Tensor:
        layer = layer_of(trace, spec, channels_first=False)
        layout = trace.stage.layout
        turn = None if layout.axes == "NCHW" else lambda features: to_nchw(features, layout)
        built = {key: value for key, value in values.items() if key in build}
        called = {key: value for key, value in values.items() if key in call}
        method = cls(model=network, target_layers=[layer], reshape_transform=turn, **built)
        found = method(input_tensor=image.requires_grad_(), targets=[targets.ClassifierOutputTarget(target)], **called)
        return torch.as_tensor(found)[0]

    return Component(spec, AdaptedMethod(spec, run), MethodMetadata(frozenset(), "pytorch-grad-cam"))


methods.register_adapter("grad-cam", Adapter(_classes, _create, "pytorch_grad_cam"))
