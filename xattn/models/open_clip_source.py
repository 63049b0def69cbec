"""Networks of open_clip, with classes given by text."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, MissingPackageError, NameUnknownError, UnsupportedError, WeightsError
from xattn.models.building import Built, Request
from xattn.models.state_dicts import fit_weights
from xattn.models.zero_shot import ZeroShot, prompts_of, report_classes, text_embeddings


def from_open_clip(request: Request) -> Built:
    """The network of `open_clip:NAME`, one of open_clip's architectures; its weights are a tag of open_clip's or a local file.

    Raises:
        NameUnknownError: open_clip has no such architecture.
        InputError: there are no classes, or texts are too long.
        WeightsError: no weights are named, or they cannot be obtained or do not fit.
        UnsupportedError: the architecture has no two encoders side by side.
        MissingPackageError: open_clip is not installed.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise MissingPackageError("open_clip_torch", "clip", f"'{request.model}'")
    open_clip = importlib.import_module("open_clip")
    if request.name not in open_clip.list_models():
        hint = "The weights of a model on the hub are given by their tag or file, as weights." if ":" in request.name else ""
        raise NameUnknownError("open_clip network", request.name, open_clip.list_models(), hint)
    prompts = prompts_of(request)
    model = _model(open_clip, request)
    if not isinstance(model, (open_clip.CLIP, open_clip.CustomTextCLIP)):
        raise UnsupportedError(f"{request.model} is a {type(model).__name__}; it needs an image encoder and a text encoder, as in CLIP.")
    bias = torch.zeros(()) if model.logit_bias is None else model.logit_bias
    saved = request.weights if isinstance(request.weights, dict) else None
    texts = text_embeddings(prompts, _encoder(open_clip, request.name, model)) if saved is None else saved["texts"]
    network = ZeroShot(model.visual, texts, model.logit_scale.exp(), bias)
    if saved is not None:
        fit_weights(network, saved, request.shown_weights)
    sigmoid = model.logit_bias is not None
    report_classes(request.model, prompts, sigmoid)
    return Built(network, preprocessing_of(model.visual.preprocess_cfg, request.model), prompts.classes, sigmoid)


def preprocessing_of(config: Mapping[str, Any], model: str) -> Preprocessing:
    """The preprocessing that open_clip states for a model.

    Raises:
        UnsupportedError: the preprocessing pads images, which a crop cannot do.
    """
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if config["resize_mode"] not in ("shortest", "squash"):
        raise UnsupportedError(f"{model} resizes images by '{config['resize_mode']}', which pads them; 'shortest' or 'squash' is needed.")
    resize = (height, width) if config["resize_mode"] == "squash" else min(height, width)
    interpolation = "bilinear" if config["interpolation"] == "bilinear" else "bicubic"  # "random" is for training
    return Preprocessing((height, width), resize, tuple(config["mean"]), tuple(config["std"]), interpolation)


def _model(open_clip: Any, request: Request) -> Any:
    """The whole model, with its weights unless they come from an xattn file."""
    tags = open_clip.list_pretrained_tags_by_model(request.name)
    if isinstance(request.weights, dict) or (request.weights is not None and str(request.weights) not in tags):
        try:
            state = request.state or {}
        except InputError as error:
            raise InputError(f"{error} Names of weights that open_clip has for it: {', '.join(tags) or 'none'}.") from error
        with _without_random_weights_warning():
            model = open_clip.create_model(request.name, load_weights=False, pretrained_image=False, pretrained_text=False)
        if not isinstance(request.weights, dict):
            fit_weights(model, state, request.shown_weights)
        return model.eval()
    if request.weights is None:
        raise WeightsError(
            f"{request.model} has no default weights: give a local file as weights (--weights), or the name of weights that "
            f"open_clip has for it: {', '.join(tags) or 'none'}."
        )
    try:
        return open_clip.create_model(request.name, pretrained=str(request.weights)).eval()
    except Exception as error:  # the hub's errors have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"the weights '{request.weights}' of {request.model} are not in the cache and could not be downloaded "
            f"({type(error).__name__}: {reason}). Give a local file as weights."
        ) from error


def _encoder(open_clip: Any, name: str, model: Any) -> Any:
    """Texts → embeddings `(N, D)`."""
    try:
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # the hub's errors have no common base class
        reason = str(error).strip().partition("\n")[0]
        raise WeightsError(
            f"the tokenizer of open_clip:{name} is not in the cache and could not be downloaded ({type(error).__name__}: {reason})."
        ) from error
    length = tokenizer.context_length

    def encode(texts: list[str]) -> Tensor:
        longer = tokenizer([*texts, ""], context_length=length + 1)
        if cut := [text for text, row in zip(texts, longer, strict=False) if row[-1] != longer[-1, -1]]:
            raise InputError(f"the text '{cut[0]}' is longer than the {length} tokens that open_clip:{name} reads: shorten it.")
        embedded: Tensor = model.encode_text(tokenizer(texts))
        return embedded

    return encode


@contextmanager
def _without_random_weights_warning() -> Iterator[None]:
    """Silences open_clip's warning, on the root logger, that a model has random weights, which a file's weights replace."""

    def other(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(other)
    try:
        yield
    finally:
        root.removeFilter(other)
