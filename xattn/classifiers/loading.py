"""Where classifiers come from: torchvision, timm, one's own code, a module in hand, a saved file."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
import sys
import urllib.error
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xattn import birds
from xattn.birds import box
from xattn.classifiers.checkpoints import (
    FLAGS,
    Source,
    classes_in,
    digest_of,
    fit_weights,
    is_saved,
    mismatch,
    read_header,
    read_weights,
    split_weights,
)
from xattn.classifiers.classifier import Classifier
from xattn.classifiers.preprocessing import Preprocessing, preprocessing_with
from xattn.classifiers.resolution import high_resolution
from xattn.errors import InputError, MissingPackageError, NameUnknownError, UntrustedCodeError, WeightsError

Size = int | Sequence[int]
INCEPTIONS = ("googlenet", "inception_v3")


def load(
    model: str,
    *,
    head: str | None = None,
    classes: int | None = None,
    high_res: Sequence[str] = (),
    dilate: bool = False,
    weights: str | Path | None = None,
    labels: str | Path | Sequence[str] | None = None,
    input_size: Size | None = None,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    multi_label: bool = False,
    device: str | torch.device | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Loads a pretrained classifier by name.

    Args:
        model: `birds:NAME` of the shipped classifiers, `torchvision:NAME`, `timm:NAME`, `package.module:factory`,
            `path/file.py:factory` (a callable without arguments that gives the network), or a `.safetensors` that `Classifier.save` or
            `xattn train` wrote, which knows its own head.
        head: which head gives the logits, `name[:key=value,…]`; None: a saved file's own, else gap.
        classes: outputs of a head with a linear layer of its own (br-npa, b-cnn); None: the network's number.
        high_res: stages whose stride is taken out, as ["layer3", "layer4"]: `xattn.classifiers.high_resolution`.
        dilate: widen the kernels behind them instead.
        weights: a local `.pth` or `.safetensors`, read without executing anything in it, or the name of one of torchvision's
            weights. None: the library's default, downloaded if it is not in the cache; for a factory, what it gives. A local file of
            a GoogLeNet or an Inception is taken as torchvision's own are, with transform_input. For a file that holds a head alone:
            where the network's weights lie now. A `.safetensors` that `Classifier.save` or `xattn train` wrote brings its head,
            preprocessing and labels with it.
        labels: a text file with a class name a line, or the names.
        input_size: side of the crop, or height and width.
        resize: shorter side before the crop, or height and width.
        mean: of the normalisation, in [0, 1]; with local weights ImageNet's unless given.
        std: likewise.
        multi_label: probabilities are sigmoids of each logit.
        device: where to put it; None: a GPU where there is one, else the CPU.
        trust_code: import and run the code that a `.safetensors` names as the source of its network. Without it a file builds only what
            xattn itself knows by name (birds:, torchvision:, timm:).

    Raises:
        NameUnknownError: no such network.
        UntrustedCodeError: the file names code, and it was not said that it is to be trusted.
        WeightsError: the weights do not fit, cannot be read, or cannot be had.
        MissingPackageError: timm is asked for and not installed.
    """
    file = own_file(model)
    named = None  # the network of a file of ours, where the user names it
    if file is None and weights is not None and is_saved(weights):
        file, named, weights = str(weights), _absolute(model), None
    if file is not None:
        header = read_header(file)
        came = {"head": head, "high_res": tuple(high_res), "dilate": dilate, "classes": classes}
        if given := [name for name, left_out in _BESIDE.items() if came[name] not in (left_out, header.get(name))]:
            raise InputError(f"'{file}' knows its own {', '.join(given)}: leave that out, or give the network's weights alone.")
        if named is None and not trust_code:
            _refuse_code(file, header["source"]["model"])
        source, network = _saved(file, header, weights, named)
        base, names = Preprocessing.from_json(header["preprocessing"]), header["labels"]
        head, multi_label, classes = header["head"], header["multi_label"], header["classes"]
        name = header["name"] if header["head_alone"] else Path(file).stem
        name = model if model.startswith(box.PREFIX) or named is not None else name
    else:
        header = None
        network, base, names = _source(model)(model, weights, None)
        source = Source(_absolute(model), _kept(weights), digest_of(network.state_dict()), tuple(high_res), dilate)
        name = model
    preprocessing = preprocessing_with(base, input_size=input_size, resize=resize, mean=mean, std=std)
    network.eval()
    if source.high_res:
        high_resolution(network, source.high_res, dilate=source.dilate, input_size=preprocessing.input_size)
    classifier = Classifier(
        network.to(memory_format=torch.channels_last),
        name=name,
        preprocessing=preprocessing,
        labels=None if labels is None else read_labels(labels),
        head=head or "gap",
        classes=classes,
        fresh=header is None,
        source=source,
        multi_label=multi_label,
    )
    if file is not None and header is not None:
        fit_weights(classifier.head, split_weights(file)[1], model)
        classifier.trained = header["trained"]
    if labels is None and names is not None and len(names) == classifier.class_count:
        classifier.labels = tuple(names)  # ImageNet's, which a network with another number of classes does not have
    classifier.eval()
    try:
        return classifier.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{device}' cannot be used here ({reason}). Give cpu, or a GPU that torch sees.") from error


def own_file(model: str) -> str | None:
    """The file of ours that a name means, head and all; None where it means a network."""
    if model.startswith(box.PREFIX) and model != box.NETWORK:
        return str(box.file_of(model))
    return model if model.endswith(".safetensors") else None


def names_code_of(file: str | Path, model: str) -> bool:
    """Whether a file of ours has its network from the code that a user names as the model anyway."""
    return bool(read_header(file)["source"]["model"] == _absolute(model))


def _refuse_code(path: str, model: str) -> None:
    """Raises where building a file's network would import and run code that is not xattn's to know."""
    if model.partition(":")[0] in _SOURCES:
        return
    raise UntrustedCodeError(
        f"'{path}' names '{model}' as the source of its network: loading it would import that code and run it. If you trust the file and "
        f"the code, say so: --trust-code, in Python trust_code=True. Or name the network yourself, --model {model} --weights {path}."
    )


def _saved(path: str, header: dict[str, Any], weights: str | Path | None, named: str | None) -> tuple[Source, nn.Module]:
    """The network of a file of ours: its own weights, or those that its head was trained on.

    Args:
        path: the file.
        header: what it says.
        weights: where the weights of its network lie now.
        named: the network, where the user names it; None: what the file says.
    """
    stored = Source(**{**header["source"], "high_res": tuple(header["source"]["high_res"])})
    stored = stored if named is None else replace(stored, model=named)
    build = _source(stored.model)
    if not header["head_alone"]:
        if weights is not None:
            raise InputError(f"'{path}' holds its own weights; weights='{weights}' came beside it. Give one of the two.")
        network, _, _ = build(stored.model, split_weights(path)[0], None)
        _set_flags(network, header["build"], path)
        return replace(stored, digest=""), network
    chosen = stored.weights if weights is None else str(weights)
    needs = f"'{path}' holds a head for {stored.model} with the weights {stored.weights or 'that its library gives'}"
    try:
        network, _, _ = build(stored.model, chosen, None)
    except (WeightsError, InputError) as error:
        raise WeightsError(f"{needs}, and they could not be had: {error} Say where they lie now by weights (--weights).") from error
    _set_flags(network, header["build"], path)
    if (digest := digest_of(network.state_dict())) != stored.digest:
        raise WeightsError(
            f"{needs} (digest {stored.digest}); those of {chosen or stored.model} have {digest}: the head was trained on others."
        )
    return replace(stored, weights=chosen), network


def _set_flags(network: nn.Module, flags: dict[str, Any], path: str) -> None:
    """Sets what `save_classifier` keeps of a network beside its weights, and nothing else that a file may say."""
    for name, value in flags.items():
        if name not in FLAGS or not isinstance(value, bool) or not hasattr(network, name):
            raise WeightsError(
                f"'{path}' would set '{name}' of its network to {value!r}, which xattn never wrote: the file is not to be trusted."
            )
        setattr(network, name, value)


def attach(
    module: nn.Module,
    *,
    head: str = "gap",
    classes: int | None = None,
    input_size: Size = 224,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    name: str | None = None,
    multi_label: bool = False,
) -> Classifier:
    """Wraps a network in hand; it stays where it is and as it is.

    Args:
        module: normalised images `(B, 3, H, W)` → logits `(B, K)`.
        head: which head gives the logits, `name[:key=value,…]`.
        classes: outputs of a head with a linear layer of its own (br-npa, b-cnn); None: the network's number.
        input_size: side of the crop, or height and width.
        resize: shorter side before the crop; input size × 256/224 if None.
        mean: of the normalisation that the network was trained with, in [0, 1]; ImageNet's if None.
        std: likewise.
        labels: a text file with a class name a line, or the names.
        name: how rows call it; the class name if None.
        multi_label: probabilities are sigmoids of each logit.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"attach wraps a torch.nn.Module; got {type(module).__name__}. xattn.load takes a network's name.")
    return Classifier(
        module,
        name=name or type(module).__name__,
        preprocessing=preprocessing_with(Preprocessing(), input_size=input_size, resize=resize, mean=mean, std=std),
        labels=None if labels is None else read_labels(labels),
        head=head,
        classes=classes,
        multi_label=multi_label,
    )


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Class names, from a text file with one a line or as given."""
    if not isinstance(labels, (str, Path)):
        return list(labels)
    try:
        return Path(labels).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels '{labels}' could not be read ({error}): give a text file with a class name a line.") from error


def model_names() -> list[str]:
    """What `load` knows by name: the shipped classifiers, torchvision's classification networks, and timm's where it is installed."""
    from torchvision import models

    names = birds.shipped()
    names += [f"torchvision:{name}" for name in models.list_models(module=models)]
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        names += [f"timm:{name}" for name in timm.list_models()]
    return names


Weights = str | Path | dict[str, Tensor] | None  # a file or a name, or what a file of ours held
_BESIDE = {"head": None, "high_res": (), "dilate": False, "classes": None}  # what a file of ours knows, and how it is left out
_Found = tuple[nn.Module, Preprocessing, Sequence[str] | None]


def _from_torchvision(model: str, weights: Weights, classes: int | None) -> _Found:
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
        return network, preprocessing, chosen.meta["categories"]
    state = _state(weights)
    if name in INCEPTIONS:  # as torchvision builds them for its own weights
        quiet["transform_input"] = True
        quiet["aux_logits"] = any(key.rpartition("module.")[2].startswith(("aux1", "AuxLogits")) for key in state)

    def build(**arguments: int) -> nn.Module:
        made: nn.Module = builder(weights=None, **quiet, **arguments)
        return made

    network = _with_local_weights(build, state, weights, classes)
    return network, Preprocessing(), enum.DEFAULT.meta["categories"]


def _from_timm(model: str, weights: Weights, classes: int | None) -> _Found:
    if importlib.util.find_spec("timm") is None:
        raise MissingPackageError("timm", "timm", f"'{model}'")
    timm = importlib.import_module("timm")
    name = model.partition(":")[2]
    if not timm.is_model(name.partition(".")[0]):
        raise NameUnknownError("timm network", name, timm.list_models())
    if weights is not None:
        network = _with_local_weights(lambda **arguments: timm.create_model(name, **arguments), _state(weights), weights, classes)
        preprocessing = Preprocessing()
    else:
        try:
            network = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub's errors share no root
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

    return network, preprocessing, models.ResNet18_Weights.DEFAULT.meta["categories"]


def _from_code(model: str, weights: Weights, classes: int | None) -> _Found:
    place, colon, attribute = model.rpartition(":")
    if not colon or not place or not attribute:
        raise InputError(
            f"model '{model}' names no source: write birds:NAME, torchvision:NAME, timm:NAME, package.module:factory, "
            "path/file.py:factory (the function in it that gives the network), or a .safetensors that xattn saved."
        )
    if place.endswith(".py"):
        path = Path(place).resolve()
        if not path.is_file():
            raise InputError(f"model '{model}': there is no file {place}.")
        name = f"xattn_model_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise InputError(f"model '{model}': {place} is not importable.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        sys.path.insert(0, str(path.parent))  # where the file finds its neighbours, as when it is run
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            raise InputError(f"model '{model}': {place} could not be imported ({error}).") from error
        finally:
            sys.path.remove(str(path.parent))
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise InputError(f"model '{model}': no module '{error.name}'. Install it, or give path/file.py:factory.") from error
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
        fit_weights(network, _state(weights), _called(weights))
    return network, Preprocessing(), None


def _from_birds(model: str, weights: Weights, classes: int | None) -> _Found:
    file = box.file_of(model)
    header = read_header(file)
    network = birds.small_resnet()
    fit_weights(network, split_weights(file)[0] if weights is None else _state(weights), model if weights is None else _called(weights))
    return network, Preprocessing.from_json(header["preprocessing"]), header["labels"]


_SOURCES: dict[str, Callable[[str, Weights, int | None], _Found]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "birds": _from_birds,
}


def _with_local_weights(build: Callable[..., nn.Module], state: dict[str, Tensor], weights: Weights, classes: int | None) -> nn.Module:
    """The network with a local file's weights, its last layer as wide as the file's."""
    network = build() if classes is None else build(num_classes=classes)
    if mismatch(network, state) and (count := classes_in(network, state)) is not None:
        network = build(num_classes=count)
    fit_weights(network, state, _called(weights))
    return network


def _source(model: str) -> Callable[[str, Weights, int | None], _Found]:
    return _SOURCES.get(model.partition(":")[0], _from_code)


def _state(weights: str | Path | dict[str, Tensor]) -> dict[str, Tensor]:
    return weights if isinstance(weights, dict) else read_weights(weights)


def _called(weights: Weights) -> str:
    return "of the file" if isinstance(weights, dict) else str(weights)


def _kept(weights: str | Path | None) -> str | None:
    """How a file of ours names weights: a local file by its whole path."""
    return None if weights is None else os.path.abspath(weights) if Path(weights).is_file() else str(weights)


def _absolute(model: str) -> str:
    """How a file of ours names its network: one's own code by the whole path of its file."""
    place, colon, attribute = model.rpartition(":")
    return f"{os.path.abspath(place)}{colon}{attribute}" if place.endswith(".py") else model
