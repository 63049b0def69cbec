"""Networks of transformers: image classifiers, and CLIP and SigLIP with classes given by text; from a local folder or by name."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from xattn.data.preprocessing import Preprocessing, preprocessing_with
from xattn.errors import InputError, MissingPackageError, UnsupportedError, UntrustedCodeError, WeightsError
from xattn.models.building import Built, Request, with_local_weights
from xattn.models.input_size import stated_size
from xattn.models.state_dicts import fit_weights
from xattn.models.zero_shot import ZeroShot, prompts_of, report_classes, text_embeddings

logger = logging.getLogger("xattn")

BY_TEXT = ("clip", "siglip")  # types of model that compare images with texts
WARPED_FROM = 384  # from this side on, ConvNeXt's images are warped, not cropped
EAGER = {"attn_implementation": "eager"}  # a configuration could otherwise name code on the hub
LEVELS = 4  # levels of 255 by which a decoded and resized picture may differ between libraries


def from_transformers(request: Request) -> Built:
    """The network of `hf:NAME_OR_FOLDER`: an image classifier with its image processor and labels, or a CLIP or SigLIP.

    Raises:
        InputError: classes by text are needed but missing, or given although the model has its own classes.
        WeightsError: the model is neither in the folder nor in the cache and could not be downloaded, or its weights do not fit.
        UnsupportedError: it is not an image classifier, or its preprocessing is more than a crop and a normalisation.
        UntrustedCodeError: the model comes with code, which is not trusted.
        MissingPackageError: transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise MissingPackageError("transformers", "hf", f"'{request.model}'")
    transformers = importlib.import_module("transformers")
    config = _loaded(request, transformers.AutoConfig)
    if config.model_type in BY_TEXT:
        return _by_text(transformers, config, request)
    if config.model_type == "timm_wrapper":
        raise UnsupportedError(f"{request.model} is a network of timm: load it as timm:hf_hub:NAME, a folder as timm:local-dir:FOLDER.")
    if request.prompts is not None:
        raise InputError(
            f"{request.model} has classes of its own; classes by text are for CLIP and SigLIP, and this is a {config.model_type}."
        )
    kind = transformers.AutoModelForImageClassification

    def create(num_classes: int | None = None) -> nn.Module:
        if num_classes is not None:
            config.num_labels = num_classes
        created: nn.Module = _from_config(request, kind, config)
        return created

    state = request.state
    new: list[str] = []
    if state is None:
        network, info = _loaded(request, kind, output_loading_info=True, **EAGER)
        new = sorted(info["missing_keys"])
    else:
        network = with_local_weights(create, state, request.shown_weights)
    if new:
        logger.warning("%s has no weights for %s: they are new and must be trained.", request.model, ", ".join(new))
    stated = config.id2label or {}
    labels = [stated[index] for index in range(len(stated))] if set(stated) == set(range(len(stated))) else None
    if labels == [f"LABEL_{index}" for index in range(len(stated))]:
        labels = None
    return Built(
        network,
        _preprocessing(transformers, request, network, getattr(config, "num_channels", 3)),
        labels,
        multi_label=config.problem_type == "multi_label_classification",
        trained=not new,
        regression=config.problem_type == "regression",
    )


class ImageTower(nn.Module):
    """The image encoder of a CLIP or SigLIP of transformers: normalised images `(B, 3, H, W)` → embeddings `(B, D)`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model
        self.visual_projection = getattr(model, "visual_projection", nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.visual_projection(self.vision_model(pixel_values=images).pooler_output)
        return embeddings


def _by_text(transformers: Any, config: Any, request: Request) -> Built:
    prompts = prompts_of(request)
    sigmoid = config.model_type == "siglip"
    state = request.state
    model = _loaded(request, transformers.AutoModel, **EAGER) if state is None else _from_config(request, transformers.AutoModel, config)
    saved = state if isinstance(request.weights, dict) else None
    if saved is None and state is not None:
        fit_weights(model, state, request.shown_weights)
    texts = text_embeddings(prompts, _text_encoder(transformers, request, model.eval(), sigmoid)) if saved is None else saved["texts"]
    network = ZeroShot(ImageTower(model), texts, model.logit_scale.exp(), model.logit_bias if sigmoid else torch.zeros(()))
    if saved is not None:
        fit_weights(network, saved, request.shown_weights)
    report_classes(request.model, prompts, sigmoid)
    return Built(network, _preprocessing(transformers, request, network), prompts.classes, sigmoid)


def _text_encoder(transformers: Any, request: Request, model: Any, siglip: bool) -> Callable[[list[str]], Tensor]:
    """Texts → embeddings `(N, D)`, padded as the model was trained."""
    tokenizer = _loaded(request, transformers.AutoTokenizer)
    length = model.config.text_config.max_position_embeddings
    padding: dict[str, Any] = {"padding": "max_length", "max_length": length} if siglip else {"padding": True}

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, return_tensors="pt", **padding)
        if tokens["input_ids"].shape[1] > length:
            longest = max(texts, key=lambda text: len(tokenizer(text)["input_ids"]))
            raise InputError(f"the text '{longest}' is longer than the {length} tokens that {request.model} reads: shorten it.")
        pooled: Tensor = model.text_model(**tokens).pooler_output
        projected: Tensor = getattr(model, "text_projection", nn.Identity())(pooled)
        return projected

    return encode


def _preprocessing(transformers: Any, request: Request, network: nn.Module, channels: int = 3) -> Preprocessing:
    """The crop and normalisation of the model's image processor, with one mean for all channels if the model takes only one.

    **Differs**: pictures are resized by Pillow, while the processor may resize tensors, which differs by one or two levels of 255; a crop
    with an odd margin may be shifted by one pixel.

    Raises:
        UnsupportedError: the processor changes its images in another way.
    """
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(request.name, trust_remote_code=request.trust_code)
    except (OSError, ValueError) as error:
        size = stated_size(network)
        preprocessing = preprocessing_with(Preprocessing(), input_size=size)
        reason = str(error).strip().partition("\n")[0]
        logger.warning(
            "%s has no image processor that can be read (%s): its images are prepared by %s", request.model, reason, preprocessing
        )
        return preprocessing
    black, white = (_processed(processor, Image.new("RGB", (320, 320), (level,) * 3), request)[:, 0, 0] for level in (0, 255))
    std = 1 / (white - black)
    mean = -black * std
    crop, resize = _sizes(processor, _processed(processor, _ramp(400, 300), request).shape[1:])
    centre, spread = ((round(float(red), 7), round(float(green), 7), round(float(blue), 7)) for red, green, blue in (mean, std))
    chosen = getattr(processor, "resample", None)
    interpolation = "bilinear" if chosen is None else Image.Resampling(int(chosen)).name.lower()
    try:
        found = Preprocessing(crop, resize, centre, spread, interpolation)
    except InputError as error:
        raise UnsupportedError(f"the image processor of {request.model} cannot be followed by a resize and a crop: {error}") from error
    for picture in (_ramp(400, 300), _ramp(300, 400)):
        theirs = _processed(processor, picture, request)
        ours = found.crop(picture) / 255
        back = theirs * std[:, None, None] + mean[:, None, None]
        if back.shape != ours.shape or (deviation := float((back - ours).abs().max()) * 255) > LEVELS:
            how = f"gives {tuple(back.shape)}" if back.shape != ours.shape else f"differs by up to {deviation:.0f} levels of 255"
            raise UnsupportedError(
                f"the image processor of {request.model}, {type(processor).__name__}, does more than resize, crop and normalise: "
                f"in addition to '{found}' it {how} on a test picture of {picture.width}×{picture.height}. Build the network in "
                f"your own code with the steps that it needs, and give path/file.py:factory."
            )
    return found if channels > 1 else replace(found, mean=_one_if_equal(found.mean), std=_one_if_equal(found.std))


def _sizes(processor: Any, came: torch.Size) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """Size of the crop, and of the resize before it.

    Args:
        processor: of transformers.
        came: height and width of its result for a picture.
    """
    size: dict[str, int] = {key: value for key, value in dict(processor.size or {}).items() if value}
    squashed = (size["height"], size["width"]) if {"height", "width"} <= set(size) else None
    crop = (int(came[0]), int(came[1]))
    share: float | None = getattr(processor, "crop_pct", None)
    name = type(processor).__name__
    if not getattr(processor, "do_resize", True) or ("shortest_edge" not in size and squashed is None):
        return crop, crop
    if squashed is not None and share is None:
        return crop, squashed
    shorter = size["shortest_edge"] if squashed is None else min(squashed)
    if name.startswith("ConvNext"):
        return (crop, (shorter, shorter)) if shorter >= WARPED_FROM else (crop, int(shorter / (share or 1)))
    if name.startswith("Levit"):
        shorter = int(256 / 224 * shorter)
    crop = crop if getattr(processor, "do_center_crop", False) else (shorter, shorter)
    return crop, shorter if share is None else int(shorter / share)


def _ramp(width: int, height: int) -> Image.Image:
    """A picture of smooth gradients, a different one for each channel."""
    across, down = torch.linspace(0, 255, width).expand(height, width), torch.linspace(0, 255, height)[:, None].expand(height, width)
    levels = torch.stack([across, down, 255 - (across + down) / 2], dim=-1).round().to(torch.uint8)
    return Image.frombytes("RGB", (width, height), bytes(levels.flatten().tolist()))


def _processed(processor: Any, picture: Image.Image, request: Request) -> Tensor:
    """A processor's result for a picture, `(3, H, W)`."""
    try:
        values: Tensor = processor(picture, return_tensors="pt")["pixel_values"][0].float()
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UnsupportedError(f"the image processor of {request.model} makes no image from a picture ({error}).") from error
    if values.dim() != 3 or len(values) != 3:
        raise UnsupportedError(f"the image processor of {request.model} gives {tuple(values.shape)}; (3, height, width) is needed.")
    return values


def _from_config(request: Request, kind: Any, config: Any) -> Any:
    try:
        return kind.from_config(config, trust_remote_code=request.trust_code, **EAGER)
    except ValueError as error:
        raise UnsupportedError(
            f"{request.model} is a {config.model_type}, which is not an image classifier ({_first_line(error)})."
        ) from error


def _loaded(request: Request, kind: Any, **options: Any) -> Any:
    """A part of a model, from its folder, transformers' cache or the hub.

    Args:
        request: names the model.
        kind: a class of transformers.
        options: of its `from_pretrained`.
    """
    try:
        return kind.from_pretrained(request.name, trust_remote_code=request.trust_code, **options)
    except (SafetensorError, RuntimeError) as error:
        raise WeightsError(
            f"the weights of {request.model} cannot be read, or are not those of its configuration ({_first_line(error)}): save it "
            "again by save_pretrained."
        ) from error
    except OSError as error:
        raise WeightsError(
            f"{request.model} is neither a folder with a model of transformers nor in its cache, and could not be downloaded "
            f"({type(error).__name__}: {_first_line(error)}). Give the folder that save_pretrained wrote, as hf:FOLDER."
        ) from error
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise UntrustedCodeError(
                f"{request.model} comes with code of its own, which loading it would run. If you trust it, give --trust-code, in Python "
                "trust_code=True."
            ) from error
        raise UnsupportedError(
            f"{request.model} is not an image classifier, CLIP or SigLIP of transformers ({_first_line(error)})."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _one_if_equal(values: tuple[float, ...]) -> tuple[float, ...]:
    return values[:1] if len(set(values)) == 1 else values
