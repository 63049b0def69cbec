"""Sources of networks: torchvision, timm, transformers, open_clip, code, the shipped classifiers. Each also returns the preprocessing."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from xattn import birds
from xattn.birds import pretrained
from xattn.data.preprocessing import Preprocessing, preprocessing_with
from xattn.errors import InputError, MissingPackageError, NameUnknownError, WeightsError
from xattn.models.building import Built, Request, fit_with_classes, with_local_weights, with_new_classifier
from xattn.models.checkpoints import read_header, split_weights
from xattn.models.few_shot_source import from_few_shot
from xattn.models.focus_source import from_focus
from xattn.models.input_size import own_size
from xattn.models.ocr_source import from_ocr
from xattn.models.open_clip_source import from_open_clip
from xattn.models.rga_source import from_rga
from xattn.models.state_dicts import fit_weights
from xattn.models.transformers_source import from_transformers

SEGMENTED = 520  # shorter side for torchvision's segmentation networks; here the centre is cropped
INCEPTIONS = ("googlenet", "inception_v3")
TIMM_PLACES = ("hf_hub:", "hf-hub:", "local-dir:")  # places from which timm itself reads a network's name and weights
BY_TEXT = ("hf", "open_clip")  # sources of networks whose classes may be texts


def build(request: Request) -> Built:
    """Builds the named network.

    Raises:
        NameUnknownError: there is no such network.
        WeightsError: the weights do not fit, cannot be read, or cannot be obtained.
        InputError: the name is not valid, its code cannot be imported, or classes by text are missing or do not apply.
        UntrustedCodeError: the network comes with code, which is not trusted.
        MissingPackageError: its library is not installed.
    """
    source = request.model.partition(":")[0]
    if request.prompts is not None and source not in BY_TEXT:
        raise InputError(
            f"model '{request.model}' has classes of its own; classes by text are for networks that compare images with texts "
            "(open_clip:NAME, and hf: with a CLIP or SigLIP). Its classes' names are labels (--labels)."
        )
    return _SOURCES.get(source, _from_code)(request)


def is_code(model: str) -> bool:
    """Whether building the named network imports and runs code that is neither xattn's nor a library's."""
    return model not in pretrained.NETWORKS.values() and model.partition(":")[0] not in _SOURCES


def is_new(model: str) -> bool:
    """Whether parts of the network have no weights before it is trained."""
    return model.partition(":")[0] in NEW


def absolute(model: str) -> str:
    """A model's name that is valid from any folder: code and folders by their absolute path."""
    source, _, folder = model.partition(":")
    if source == "hf" and os.path.isdir(folder):
        return f"hf:{os.path.abspath(folder)}"
    place, colon, attribute = model.rpartition(":")
    return f"{os.path.abspath(place)}{colon}{attribute}" if place.endswith(".py") else model


def _from_torchvision(request: Request) -> Built:
    from torchvision import models

    model, name, weights = request.model, request.name, request.weights
    segmenting = models.list_models(module=models.segmentation)
    known = models.list_models(module=models) + segmenting
    if name not in known:
        raise NameUnknownError("torchvision network", name, known)
    enum: Any = models.get_model_weights(name)
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    quiet: dict[str, Any] = {"init_weights": False} if "init_weights" in accepted or name in INCEPTIONS else {}
    if name in segmenting:
        quiet["weights_backbone"] = None  # else they are downloaded

    def create(**arguments: int) -> nn.Module:
        created: nn.Module = builder(weights=None, **quiet, **arguments)
        return created

    if weights is None or (not isinstance(weights, dict) and str(weights) in enum.__members__):
        chosen = enum.DEFAULT if weights is None else enum[str(weights)]
        try:
            network = builder(weights=chosen)
        except (urllib.error.URLError, OSError) as error:
            raise WeightsError(
                f"the weights of {model} are not at {_downloaded(chosen)} and could not be downloaded ({error}). "
                "Put the file there, set TORCH_HOME, or give a local file as weights."
            ) from error
        if name in INCEPTIONS:
            quiet |= {flag: getattr(network, flag) for flag in ("transform_input", "aux_logits")}
        preset = chosen.transforms()
        if "aux_loss" in accepted:
            quiet["aux_loss"] = getattr(network, "aux_classifier", None) is not None
        side = (preset.resize_size if name in segmenting else preset.crop_size)[0]
        preprocessing = Preprocessing(
            (side, side),
            preset.resize_size[0],
            tuple(preset.mean),
            tuple(preset.std),
            preset.interpolation.value,
        )
        return _for_classes(create, request, Built(network, preprocessing, chosen.meta["categories"]))
    state, categories = request.state or {}, enum.DEFAULT.meta["categories"]
    if name in INCEPTIONS:  # torchvision builds them like this for its own weights
        quiet["transform_input"] = True
        quiet["aux_logits"] = any({"aux1", "AuxLogits"} & set(key.split(".")) for key in state)
    if "aux_loss" in accepted:
        quiet["aux_loss"] = any(key.startswith("aux_classifier.") for key in state)
    preprocessing = Preprocessing((SEGMENTED, SEGMENTED), SEGMENTED) if name in segmenting else Preprocessing()
    return _for_classes(create, request, Built(with_local_weights(create, state, request.shown_weights), preprocessing, categories))


def _for_classes(create: Callable[..., nn.Module], request: Request, built: Built) -> Built:
    """The built network, with a new classifier if a number of classes is requested."""
    if request.classes is None:
        return built
    return built._replace(network=with_new_classifier(create, built.network, request.classes), labels=None, trained=False)


def _downloaded(weights: Any) -> Path:
    """The file in which torchvision stores downloaded weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name


def torchvision_names_on_disk() -> list[str]:
    """Names of torchvision's classification networks whose default weights have been downloaded."""
    from torchvision import models

    defaults = {name: models.get_model_weights(name).DEFAULT for name in models.list_models(module=models)}
    return [f"torchvision:{name}" for name, weights in defaults.items() if _downloaded(weights).is_file()]


def _from_timm(request: Request) -> Built:
    model, name = request.model, request.name
    if importlib.util.find_spec("timm") is None:
        raise MissingPackageError("timm", "timm", f"'{model}'")
    timm = importlib.import_module("timm")
    if not name.startswith(TIMM_PLACES) and not timm.is_model(name.partition(".")[0]):
        raise NameUnknownError("timm network", name, timm.list_models())

    def create(**arguments: Any) -> nn.Module:
        try:
            created: nn.Module = timm.create_model(name, **arguments)
        except Exception as error:  # the hub's errors have no common base class
            advice = "It must be in the hub's cache, or the hub within reach." if name.startswith(TIMM_PLACES) else "Give a local file."
            raise WeightsError(
                f"{model} is not in the cache and could not be downloaded ({type(error).__name__}: {_first_line(error)}). {advice}"
            ) from error
        return created

    if (state := request.state) is not None:
        network = with_local_weights(create, state, request.shown_weights, "in_chans")
        config: Any = network.pretrained_cfg
        fixed = tuple(config["input_size"][1:]) if config.get("fixed_input_size") else None  # a network that takes only one size
        preprocessing = Preprocessing() if fixed is None else Preprocessing(fixed, math.floor(min(fixed) / config["crop_pct"]))
    else:
        network = create(pretrained=True)
        config = timm.data.resolve_model_data_config(network)
        height, width = config["input_size"][1:]
        share = config["crop_pct"]
        sides = (math.floor(height / share), math.floor(width / share))
        resize = sides if config["crop_mode"] == "squash" else min(sides)
        preprocessing = Preprocessing((height, width), resize, tuple(config["mean"]), tuple(config["std"]), config["interpolation"])
    from torchvision import models

    own = network.pretrained_cfg if isinstance(network.pretrained_cfg, dict) else {}
    built = Built(network, preprocessing, own.get("label_names") or models.ResNet18_Weights.DEFAULT.meta["categories"])
    return _for_classes(lambda num_classes: create(num_classes=num_classes), request, built)


def _from_birds(request: Request) -> Built:
    file = pretrained.file_of(request.model)
    header = read_header(file)
    network = getattr(birds, pretrained.NETWORKS[request.model].partition(":")[2])()
    if request.weights is None:
        fit_weights(network, split_weights(file)[0], request.model)
    else:
        fit_with_classes(network, request)
    return Built(network, Preprocessing.from_json(header.preprocessing), header.labels)


def _from_focus(request: Request) -> Built:
    return from_focus(request, build, _with_random_weights)


def _from_rga(request: Request) -> Built:
    return from_rga(request, build, _with_random_weights)


def _from_ocr(request: Request) -> Built:
    return from_ocr(request, build, _with_random_weights)


def _with_random_weights(model: str) -> nn.Module:
    """A network of torchvision, timm or the shipped classifiers with random weights; its weights come from another file."""
    source, _, name = model.partition(":")
    if source == "birds":
        pretrained.file_of(model)
        network: nn.Module = getattr(birds, pretrained.NETWORKS[model].partition(":")[2])()
        return network
    if source == "timm":
        if importlib.util.find_spec("timm") is None:
            raise MissingPackageError("timm", "timm", f"'{model}'")
        created: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
        return created
    from torchvision import models

    if name not in models.list_models(module=models):
        raise NameUnknownError("torchvision network", name, models.list_models(module=models))
    built: nn.Module = models.get_model_builder(name)(weights=None)
    return built


def _from_code(request: Request) -> Built:
    model = request.model
    place, colon, attribute = model.rpartition(":")
    if not colon or not place or not attribute:
        raise InputError(
            f"model '{model}' has no known source: write birds:NAME, torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, "
            "open_clip:NAME, focus:BACKBONE, rga:BACKBONE, ocr:BACKBONE, few-shot:resnet12, package.module:factory, "
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
        raise InputError(f"model '{model}': calling the factory without arguments failed ({error}).") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"model '{model}' gave {type(network).__name__}; the factory must give a torch.nn.Module.")
    if request.weights is not None:
        fit_with_classes(network, request)
    return Built(network, preprocessing_with(Preprocessing(), input_size=own_size(network)), None)


def _module_of_file(model: str, place: str) -> ModuleType:
    path = Path(place).resolve() if "\0" not in place else Path()
    if not path.is_file():
        raise InputError(f"model '{model}': there is no file {place}.")
    name = f"xattn_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"model '{model}': {place} is not importable.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.parent))  # so that the file can import its neighbours, as when it is run
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise InputError(f"model '{model}': {place} could not be imported ({error}).") from error
    finally:
        sys.path.remove(str(path.parent))
    return module


def _installed_module(model: str, place: str) -> ModuleType:
    if not all(part.isidentifier() for part in place.split(".")):
        raise InputError(f"model '{model}': '{place}' is not the name of a module. Give package.module:factory, or path/file.py:factory.")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(f"model '{model}': no module '{error.name}'. Install it, or give path/file.py:factory.") from error
    except ImportError as error:
        raise InputError(f"model '{model}': {place} could not be imported ({error}).") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


NEW = ("focus", "rga", "ocr", "few-shot")  # sources of networks with parts that have no weights yet

_SOURCES: dict[str, Callable[[Request], Built]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "birds": _from_birds,
    "focus": _from_focus,
    "rga": _from_rga,
    "ocr": _from_ocr,
    "few-shot": from_few_shot,
    "hf": from_transformers,
    "open_clip": from_open_clip,
}
