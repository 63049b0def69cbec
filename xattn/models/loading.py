"""`load` builds a classifier from a name or from an xattn file; `attach` wraps a module that the caller built."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xattn.birds import pretrained
from xattn.data.preprocessing import Preprocessing, preprocessing_with
from xattn.errors import InputError, UntrustedCodeError, WeightsError
from xattn.heads.base import heads
from xattn.models import sources
from xattn.models.building import Prompts, Request, Weights
from xattn.models.checkpoints import Header, Source, is_saved, read_header, split_weights
from xattn.models.classifier import Classifier
from xattn.models.input_size import own_size
from xattn.models.inputs import Inputs
from xattn.models.resolution import high_resolution
from xattn.models.state_dicts import digest_of, fit_weights
from xattn.ocr import PREFIX as OCR
from xattn.rga import PREFIX as RELATION_AWARE

logger = logging.getLogger("xattn")

Size = int | Sequence[int]
KEEPS_ITS_OWN = "gap"  # the head of a file that holds only a network


@torch.random.fork_rng(devices=[])  # the state of torch's generator does not change
def load(
    model: str,
    *,
    head: str | None = None,
    classes: int | str | Path | Sequence[str] | None = None,
    templates: Sequence[str] = (),
    high_res: Sequence[str] = (),
    dilate: bool = False,
    weights: str | Path | None = None,
    labels: str | Path | Sequence[str] | None = None,
    input_size: Size | None = None,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    multi_label: bool = False,
    regression: bool = False,
    output: str | int | None = None,
    device: str | torch.device | None = None,
    trust_code: bool = False,
) -> Classifier:
    """Loads a pretrained classifier by name.

    Args:
        model: `birds:NAME` for the shipped classifiers, `torchvision:NAME`, `timm:NAME`, `hf:NAME_OR_FOLDER` (an image classifier, CLIP
            or SigLIP of transformers), `open_clip:NAME`, `focus:BACKBONE[:key=value,…]` (a new two-stream network on a backbone of
            these), `rga:BACKBONE[:key=value,…]` (a ResNet with relation-aware attention, whose gates are new),
            `ocr:BACKBONE[:key=value,…]` (an OCR network for segmentation, whose classifiers are new), `few-shot:resnet12[:key=value,…]`
            (a new network for few-shot learning), `package.module:factory`, `path/file.py:factory` (a callable without arguments that
            returns the network), or a `.safetensors` that `Classifier.save` or `xattn train` wrote, which has its own head.
        head: the head that computes the logits, `name[:key=value,…]`; None: that of a saved file, else gap. A file with gap takes any head,
            which is then new.
        classes: number of outputs of a head with its own linear layer (br-npa, b-cnn), of a network of focus:, rga:, ocr: or few-shot:, or
            of a network of torchvision or timm that keeps its pooling and gets a new classifier, to be trained; None: the network's. For a
            network that compares images with texts (open_clip, CLIP, SigLIP): the texts of its classes, or a text file with one per line;
            they are also the labels.
        templates: for classes given by text, each with `{}` for the class, such as "a photo of a {}."; a class is the mean of their
            embeddings. Empty: the unchanged texts.
        high_res: stages whose stride is removed, such as ["layer3", "layer4"]; see `xattn.models.high_resolution`.
        dilate: dilate the kernels after these strides, so that each keeps its receptive field.
        weights: a local `.pth` or `.safetensors`, read without executing anything in it, or the name of weights of torchvision or
            open_clip. None: the library's default, downloaded if it is not cached; for a factory, the weights that it returns. A local
            file for a GoogLeNet or an Inception is loaded like torchvision's own weights, with transform_input. For a saved file that holds
            only a head: the present location of the network's weights. A `.safetensors` that `Classifier.save` or `xattn train` wrote comes
            with its head, preprocessing and labels.
        labels: a text file with one class name per line, or the names.
        input_size: side of the crop, or height and width.
        resize: shorter side before the crop, or height and width.
        mean: of the normalisation, in [0, 1], one for each channel or one for all; with local weights, ImageNet's unless given, or 0.5 if
            the network does not take three channels.
        std: standard deviation of the normalisation, in the same form.
        multi_label: whether probabilities are the sigmoid of each logit, as they always are for SigLIP and multi-label models of
            transformers.
        regression: whether outputs are values, not logits: they have no probability, and only metrics of the map are computed.
        output: which of the network's several outputs is explained, by name or position, or "vectors" for a head with vectors for comparing
            pictures (dg-net); None: `logits`, or the final output, which is computed from the others.
        device: for the classifier; None: a GPU if there is one, else the CPU.
        trust_code: import and run the code that a `.safetensors` names as the source of its network, or that comes with a model on the
            Hugging Face hub. Without it, only networks that xattn knows by name (`birds:NAME` and the others above) are built.

    Raises:
        NameUnknownError: there is no such network.
        InputError: classes by text are missing, or the network has classes of its own.
        UntrustedCodeError: the file names code, or the model comes with code, and trust_code was not given.
        WeightsError: the weights do not fit, cannot be read, or cannot be obtained.
        MissingPackageError: timm, transformers or open_clip is needed and not installed.

    >>> import xattn
    >>> xattn.load("birds:gap", device="cpu").class_count
    16
    """
    if dilate and not high_res:
        raise InputError("dilate (--dilate) needs stages whose stride is removed, high_res (--high-res): give them too, or leave it out.")
    own: dict[str, object] = {
        "head": head,
        "high_res": tuple(high_res),
        "dilate": dilate,
        "classes": classes,
        "templates": tuple(templates),
    }
    saved = _saved_file(model, weights, own, trust_code)
    if saved is None:
        count, prompts = _classes(classes, templates)
        replaces = heads.create(head or KEEPS_ITS_OWN).metadata.replaces
        new = count if replaces == "nothing" else None
        built = sources.build(Request(model, weights, prompts, trust_code, new, tuple(high_res), dilate))
        network, base, names, trained = built.network, built.preprocessing, built.labels, built.trained
        texts = {} if prompts is None else {"prompts": prompts.classes, "templates": prompts.templates}
        source = Source(sources.absolute(model), _kept(weights), digest_of(network.state_dict()), tuple(high_res), dilate, **texts)
        keeps = replaces != "classifier"  # a head that replaces the classifier has its own logits
        name, multi_label = model, multi_label or (built.multi_label and not regression and (keeps or prompts is None))
        regression = regression or (built.regression and keeps and not multi_label)
    else:
        network, source = _network_of(saved, None if saved.named is not None else weights, trust_code)
        base, names, name = Preprocessing.from_json(saved.header.preprocessing), saved.header.labels, saved.name
        head, multi_label, count = head or saved.header.head, saved.header.multi_label, saved.header.classes
        trained = saved.header.trained
        regression, output = saved.header.regression, saved.header.output if output is None else output
    is_new = saved is None or head != saved.header.head
    preprocessing = preprocessing_with(base, input_size=input_size, resize=resize, mean=mean, std=std)
    network.eval()
    if source.high_res and not source.model.startswith((RELATION_AWARE, OCR)):
        high_resolution(network, source.high_res, dilate=source.dilate, input_size=preprocessing.input_size)
    classifier = Classifier(
        network,
        name=name,
        preprocessing=preprocessing,
        labels=None if labels is None else read_labels(labels),
        head=head or KEEPS_ITS_OWN,
        classes=count,
        fresh=is_new,
        source=source,
        multi_label=multi_label,
        regression=regression,
        output=output,
        reads=None if saved is None or is_new else saved.header.stages,
    )
    if classifier.channels_last:
        _convert_to_channels_last(network)
    if saved is not None and not is_new:
        fit_weights(classifier.head, split_weights(saved.file)[1], model, classifier.head.fixed_size)
        classifier.inner = saved.header.inner
    classifier.trained = classifier.trained and trained if is_new else trained
    if labels is None and names is not None and len(names) == classifier.class_count:
        classifier.labels = tuple(names)  # ImageNet's names do not apply to a network with another number of classes
    classifier.eval()
    try:
        return classifier.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device '{device}' cannot be used ({reason}). Give cpu, or a GPU that torch sees.") from error


@dataclass(frozen=True)
class _Saved:
    """An xattn `.safetensors` from which a classifier is loaded.

    Attributes:
        file: its path.
        header: its header.
        named: the network that the user names; None: the one in the file.
        name: of the classifier in the rows.
    """

    file: str
    header: Header
    named: str | None
    name: str


def _saved_file(model: str, weights: str | Path | None, given: dict[str, object], trust_code: bool) -> _Saved | None:
    """The xattn file from which a classifier is to be loaded; None if `model` names a network.

    Raises:
        InputError: a setting is given that the file has itself.
        UntrustedCodeError: the file names code, and the user neither names the network nor trusts the code.
    """
    file = own_file(model)
    named = None
    if file is None:
        if weights is None or not is_saved(weights):
            return None
        file, named = str(weights), sources.absolute(model)
    header = read_header(file)
    known = {"head": given["head"] if header.head == KEEPS_ITS_OWN else header.head, "classes": header.classes}
    if beside := [name for name, value in given.items() if value not in (None, (), False, known.get(name))]:
        saved = model if named is None else file
        raise InputError(f"'{saved}' has its own {', '.join(beside)}: leave that out, or give only the network's weights.")
    if named is None and not trust_code and sources.is_code(header.source.model):
        raise UntrustedCodeError(
            f"'{file}' names '{header.source.model}' as the source of its network: loading it would import that code and run it. "
            f"If you trust the file and the code, give --trust-code, in Python trust_code=True. Or name the network yourself, --model "
            f"{header.source.model} --weights {file}."
        )
    name = model
    if named is None and not model.startswith(pretrained.PREFIX):
        name = header.name if header.head_alone else Path(file).stem
    return _Saved(file, header, named, name)


def own_file(model: str) -> str | None:
    """The xattn file, with its head, that a name refers to; None if it refers to a network."""
    if model.startswith(pretrained.PREFIX) and model not in pretrained.NETWORKS:
        return str(pretrained.file_of(model))
    return model if model.endswith(".safetensors") else None


def names_code_of(file: str | Path, model: str) -> bool:
    """Whether the code that an xattn file names for its network is the model that the user names."""
    return read_header(file).source.model == sources.absolute(model)


def _classes(classes: int | str | Path | Sequence[str] | None, templates: Sequence[str]) -> tuple[int | None, Prompts | None]:
    """Converts a user's `classes` to a number of classes, or to their texts."""
    if classes is None or isinstance(classes, int):
        if templates:
            raise InputError("templates are for classes given by text: give classes as texts, or as a text file with one per line.")
        return classes, None
    if isinstance(templates, str):
        raise InputError(f"templates are a list of texts; got the text '{templates}'. Write [{templates!r}].")
    texts = [text.strip() for text in read_labels(classes)]
    return None, Prompts(tuple(filter(None, texts)), tuple(templates) or ("{}",))


def _network_of(saved: _Saved, weights: str | Path | None, trust_code: bool) -> tuple[nn.Module, Source]:
    """The network of an xattn file: with its own weights, or with those that its head was trained on.

    Args:
        saved: the file.
        weights: where the weights of its network are now.
        trust_code: run code that its network's model brings.
    """
    stored = saved.header.source if saved.named is None else replace(saved.header.source, model=saved.named)
    prompts = Prompts(stored.prompts, stored.templates) if stored.prompts else None

    def request_of(given: Weights) -> Request:
        return Request(stored.model, given, prompts, trust_code, high_res=stored.high_res, dilate=stored.dilate)

    if not saved.header.head_alone:
        if weights is not None:
            raise InputError(f"'{saved.file}' holds its own weights; weights='{weights}' was also given. Give only one.")
        network = sources.build(request_of(split_weights(saved.file)[0])).network
        _set_flags(network, saved)
        return network, replace(stored, digest="")
    chosen = stored.weights if weights is None else str(weights)
    needs = f"'{saved.file}' holds a head for {stored.model} with the weights {stored.weights or 'that its library gives'}"
    try:
        network = sources.build(request_of(chosen)).network
    except (WeightsError, InputError) as error:
        raise WeightsError(f"{needs}, and they could not be obtained: {error} Give their location with weights (--weights).") from error
    _set_flags(network, saved)
    if (digest := digest_of(network.state_dict())) != stored.digest:
        raise WeightsError(
            f"{needs} (digest {stored.digest}); those of {chosen or stored.model} have {digest}: the head was trained with other weights."
        )
    return network, replace(stored, weights=chosen)


def _set_flags(network: nn.Module, saved: _Saved) -> None:
    for name, value in saved.header.build.items():
        setattr(network, name, value)


def attach(
    module: nn.Module,
    *,
    head: str = "gap",
    classes: int | None = None,
    input_size: Size | None = None,
    resize: Size | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    labels: str | Path | Sequence[str] | None = None,
    name: str | None = None,
    multi_label: bool = False,
    regression: bool = False,
    output: str | int | None = None,
    inputs: Inputs | None = None,
) -> Classifier:
    """Wraps a network that is already built, without changing or moving it.

    For a `DataParallel`, a `DistributedDataParallel` or a compiled module, the inner module is wrapped: hooks, by which features are taken,
    run there once and at full speed.

    Args:
        module: normalised images `(B, C, H, W)`, with C as in its first layer, → logits `(B, K)`; or vectors `(B, D)`, or maps of logits
            `(B, K, h, w)`, for targets that use these.
        head: the head that computes the logits, `name[:key=value,…]`.
        classes: number of outputs of a head with its own linear layer (br-npa, b-cnn); None: the network's.
        input_size: side of the crop, or height and width; None: 224, or the size that the network states if it cannot run 224.
        resize: shorter side before the crop; input size × 256/224 if None.
        mean: of the normalisation that the network was trained with, in [0, 1], one for each channel or one for all; None: ImageNet's, or
            0.5 if the network does not take three channels.
        std: standard deviation of the normalisation, in the same form.
        labels: a text file with one class name per line, or the names.
        name: its name in the rows; None: the name of the module's class.
        multi_label: whether probabilities are the sigmoid of each logit. Without it, a single logit is read as two classes, 1 (positive)
            and 0.
        regression: whether outputs are values, not logits: they have no probability, and only metrics of the map are computed.
        output: which of several outputs is explained, by name or position (`"heads.0"` inside another); None: `logits`, or the final
            output, which is computed from the others.
        inputs: the network's images `(B, C, H, W)`, normalised → further arguments of its forward by name, for these B images. They may be
            perturbed images, in any order. None: its forward takes only images.

    Examples:
        >>> import torchvision, xattn
        >>> clf = xattn.attach(torchvision.models.resnet18(), input_size=64)
        >>> [stage.name for stage in clf.stages]
        ['maxpool', 'layer1', 'layer2', 'layer3', 'layer4']
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"attach wraps a torch.nn.Module; got {type(module).__name__}. xattn.load takes a network's name.")
    module = _unwrapped(module)
    size = own_size(module) if input_size is None else input_size
    return Classifier(
        module,
        name=name or type(module).__name__,
        preprocessing=preprocessing_with(Preprocessing(), input_size=size, resize=resize, mean=mean, std=std),
        labels=None if labels is None else read_labels(labels),
        head=head,
        classes=classes,
        multi_label=multi_label,
        regression=regression,
        output=output,
        inputs=inputs,
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module inside the wrappers that run it on several devices or compiled."""
    while isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(module, "_orig_mod"):
        inner: Any = module._orig_mod if hasattr(module, "_orig_mod") else module.module
        logger.info("%s: the %s inside is explained", type(module).__name__, type(inner).__name__)
        module = inner
    return module


def _convert_to_channels_last(network: nn.Module) -> None:
    """Converts the weights of 2-D convolutions to the memory format of the images; other weights do not change."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)


def refuse_no_classifier(given: object) -> None:
    """Raises if an argument is not a classifier; the message says how to make one of it.

    Args:
        given: by the user.

    Raises:
        InputError: it is not a classifier.
    """
    if isinstance(given, Classifier):
        return
    if isinstance(given, nn.Module):
        advice = "a module becomes one by xattn.attach(module, mean=…, std=…)"
    else:
        advice = "a name becomes one by xattn.load(name), a module by xattn.attach(module)"
    raise InputError(f"a classifier of xattn is needed; got {type(given).__name__}: {advice}.")


def read_labels(labels: str | Path | Sequence[str]) -> list[str]:
    """Class names, as given or from a text file with one per line."""
    if not isinstance(labels, (str, Path)):
        if not isinstance(labels, Iterable):
            raise InputError(f"labels are the names of the classes, or a text file with one per line; got {type(labels).__name__}.")
        return list(labels)
    try:
        return Path(labels).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"labels '{labels}' could not be read ({error}): give a text file with a class name per line.") from error


def _kept(weights: str | Path | None) -> str | None:
    """How an xattn file records weights: a local file by its absolute path."""
    return None if weights is None else os.path.abspath(weights) if Path(weights).is_file() else str(weights)
