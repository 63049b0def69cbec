"""Sources of networks: torchvision, timm, code, the shipped classifiers. Each builds a network and gives its preprocessing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
import urllib.error
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from xattn import birds
from xattn.birds import pretrained
from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, MissingPackageError, NameUnknownError, WeightsError
from xattn.models.checkpoints import channels_in, classes_in, fit_weights, mismatch, read_header, read_weights, split_weights

INCEPTIONS = ("googlenet", "inception_v3")

Weights = str | Path | dict[str, Tensor] | None
"""A weights file, the name of some weights, or the content of an xattn file; None: the source's own weights."""


class Built(NamedTuple):
    """A network as its source builds it."""

    network: nn.Module
    preprocessing: Preprocessing
    labels: Sequence[str] | None


def build(model: str, weights: Weights) -> Built:
    """The network that a name means.

    Args:
        model: `birds:NAME`, `torchvision:NAME`, `timm:NAME`, `package.module:factory` or `path/file.py:factory`.
        weights: the weights to load.

    Raises:
        NameUnknownError: there is no such network.
        WeightsError: the weights do not fit, cannot be read, or cannot be obtained.
        InputError: the name is not valid, or its code cannot be imported.
        MissingPackageError: its library is not installed.
    """
    return _SOURCES.get(model.partition(":")[0], _from_code)(model, weights)


def is_code(model: str) -> bool:
    """Whether building the named network imports and runs code that is neither xattn's nor a library's."""
    return model != pretrained.FRESH and model.partition(":")[0] not in _SOURCES


def absolute(model: str) -> str:
    """A model's name that is valid from any folder: code by the absolute path of its file."""
    place, colon, attribute = model.rpartition(":")
    return f"{os.path.abspath(place)}{colon}{attribute}" if place.endswith(".py") else model


def model_names() -> list[str]:
    """Names that `xattn.load` knows: the shipped classifiers, torchvision's classification networks, and timm's if it is installed."""
    from torchvision import models

    names = pretrained.pretrained_names()
    names += [f"torchvision:{name}" for name in models.list_models(module=models)]
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        names += [f"timm:{name}" for name in timm.list_models()]
    return names


def _from_torchvision(model: str, weights: Weights) -> Built:
    from torchvision import models

    name = model.partition(":")[2]
    known = models.list_models(module=models)
    if name not in known:
        raise NameUnknownError("torchvision network", name, known)
    enum: Any = models.get_model_weights(name)
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    quiet = {"init_weights": False} if "init_weights" in accepted or name in INCEPTIONS else {}
    if weights is None or (not isinstance(weights, dict) and str(weights) in enum.__members__):
        chosen = enum.DEFAULT if weights is None else enum[str(weights)]
        try:
            network = builder(weights=chosen)
        except (urllib.error.URLError, OSError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
            raise WeightsError(
                f"the weights of {model} are not at {cache} and could not be downloaded ({error}). "
                "Put the file there, set TORCH_HOME, or give a local file as weights."
            ) from error
        preset = chosen.transforms()
        preprocessing = Preprocessing(
            (preset.crop_size[0], preset.crop_size[0]),
            preset.resize_size[0],
            tuple(preset.mean),
            tuple(preset.std),
            preset.interpolation.value,
        )
        return Built(network, preprocessing, chosen.meta["categories"])
    state = _state(weights)
    if name in INCEPTIONS:  # as torchvision builds them for its own weights
        quiet["transform_input"] = True
        quiet["aux_logits"] = any(key.rpartition("module.")[2].startswith(("aux1", "AuxLogits")) for key in state)

    def create(**arguments: int) -> nn.Module:
        created: nn.Module = builder(weights=None, **quiet, **arguments)
        return created

    return Built(_with_local_weights(create, state, weights), Preprocessing(), enum.DEFAULT.meta["categories"])


def _from_timm(model: str, weights: Weights) -> Built:
    if importlib.util.find_spec("timm") is None:
        raise MissingPackageError("timm", "timm", f"'{model}'")
    timm = importlib.import_module("timm")
    name = model.partition(":")[2]
    if not timm.is_model(name.partition(".")[0]):
        raise NameUnknownError("timm network", name, timm.list_models())
    if weights is not None:
        network = _with_local_weights(lambda **arguments: timm.create_model(name, **arguments), _state(weights), weights, "in_chans")
        config: Any = network.pretrained_cfg
        fixed = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None  # a network that takes one size alone
        preprocessing = Preprocessing() if fixed is None else Preprocessing(fixed, math.floor(min(fixed) / config["crop_pct"]))
    else:
        try:
            network = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's errors have no common base class
            raise WeightsError(
                f"the weights of {model} are not in the cache and could not be downloaded ({type(error).__name__}: {error}). "
                "Give a local file as weights."
            ) from error
        config = timm.data.resolve_model_data_config(network)
        height, width = config["input_size"][1:]
        share = config["crop_pct"]
        sides = (math.floor(height / share), math.floor(width / share))
        resize = sides if config["crop_mode"] == "squash" else min(sides)
        preprocessing = Preprocessing((height, width), resize, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    from torchvision import models

    return Built(network, preprocessing, models.ResNet18_Weights.DEFAULT.meta["categories"])


def _from_birds(model: str, weights: Weights) -> Built:
    file = pretrained.file_of(model)
    header = read_header(file)
    network = birds.small_resnet()
    fit_weights(network, split_weights(file)[0] if weights is None else _state(weights), model if weights is None else _shown(weights))
    return Built(network, Preprocessing.from_json(header.preprocessing), header.labels)


def _from_code(model: str, weights: Weights) -> Built:
    place, colon, attribute = model.rpartition(":")
    if not colon or not place or not attribute:
        raise InputError(
            f"model '{model}' names no source: write birds:NAME, torchvision:NAME, timm:NAME, package.module:factory, "
            "path/file.py:factory (the function in it that gives the network), or a .safetensors that xattn saved."
        )
    module = _module_of_file(model, place) if place.endswith(".py") else _installed_module(model, place)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise NameUnknownError(f"factory in {place}", attribute, known)
    try:
        network = factory()
    except TypeError as error:
        raise InputError(f"model '{model}': the factory is called without arguments, and that failed ({error}).") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"model '{model}' gave {type(network).__name__}; the factory must give a torch.nn.Module.")
    if weights is not None:
        fit_weights(network, _state(weights), _shown(weights))
    return Built(network, Preprocessing(), None)


def _module_of_file(model: str, place: str) -> ModuleType:
    path = Path(place).resolve()
    if not path.is_file():
        raise InputError(f"model '{model}': there is no file {place}.")
    name = f"xattn_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model '{model}': {place} is not importable.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # so that the file finds its neighbours, as when it is run
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise InputError(f"model '{model}': {place} could not be imported ({error}).") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _installed_module(model: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(f"model '{model}': no module '{error.name}'. Install it, or give path/file.py:factory.") from error


_SOURCES: dict[str, Callable[[str, Weights], Built]] = {"torchvision": _from_torchvision, "timm": _from_timm, "birds": _from_birds}


def _with_local_weights(
    create: Callable[..., nn.Module], state: dict[str, Tensor], weights: Weights, channels: str | None = None
) -> nn.Module:
    """The network with a local file's weights; its last layer is as wide as the file's.

    Args:
        create: of the network.
        state: its weights.
        weights: as the user gave them.
        channels: the argument of `create` for the images' channels, which are then the file's too; None: it has none.
    """
    network, given = create(), {}
    if channels is not None and (taken := channels_in(network, state)) is not None:
        given = {channels: taken}
        network = create(**given)
    if mismatch(network, state) and (count := classes_in(network, state)) is not None:
        network = create(num_classes=count, **given)
    fit_weights(network, state, _shown(weights))
    return network


def _state(weights: str | Path | dict[str, Tensor]) -> dict[str, Tensor]:
    return weights if isinstance(weights, dict) else read_weights(weights)


def _shown(weights: Weights) -> str:
    return "of the file" if isinstance(weights, dict) else str(weights)
