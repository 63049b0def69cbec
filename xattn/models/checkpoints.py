"""Weights files: other people's checkpoints, and xattn's own `.safetensors` with its settings in the header."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import re
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xattn.data.preprocessing import Preprocessing
from xattn.errors import InputError, SettingError, WeightsError
from xattn.stored import Range, parsed, structured

logger = logging.getLogger("xattn")

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network")  # entries of a checkpoint that hold a state dict
AVERAGED = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "ema_model_state_dict", "params_ema")  # a moving average's
MOST_STEPS = 10**6  # of gradient descent: minutes
HEADER = "xattn"
FORMAT = 2
NETWORK, HEAD = "network.", "head."  # prefixes of keys in xattn's own files
FLAGS = ("transform_input",)  # settings of a network that its weights do not record


@dataclass(frozen=True)
class Source:
    """How a network is rebuilt.

    Attributes:
        model: a name that `xattn.load` takes.
        weights: the file or the name of the weights; None: the library's default.
        digest: of the network's weights as loaded.
        high_res: stages whose stride was removed.
        dilate: whether dilation replaced it.
        prompts: its classes, if they are given by text.
        templates: in which these texts were put.
    """

    model: str
    weights: str | None = None
    digest: str = ""
    high_res: tuple[str, ...] = ()
    dilate: bool = False
    prompts: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()


@dataclass(frozen=True)
class InnerLoop:
    """How the last linear layer of a classifier is fitted to a few pictures of new classes: gradient descent on their cross-entropy.

    Attributes:
        steps: number of steps.
        lr: learning rate.
    """

    steps: Annotated[int, Range(1, MOST_STEPS)] = 50
    lr: float = 0.01

    def __post_init__(self) -> None:
        numbers = isinstance(self.steps, int) and isinstance(self.lr, (int, float)) and bool not in (type(self.steps), type(self.lr))
        if not (numbers and 1 <= self.steps <= MOST_STEPS and 0 < self.lr <= sys.float_info.max):
            got = f"{self.steps!r:.40} and {self.lr!r:.40}"
            raise SettingError(f"gradient descent takes 1 to {MOST_STEPS:,} steps, and a learning rate above 0; got {got}.")
        object.__setattr__(self, "lr", float(self.lr))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.pth`, `.pt`, `.th`, `.ckpt` or `.safetensors` file; nothing in the file is executed.

    An `argparse.Namespace` and NumPy scalars beside the tensors are skipped.

    Raises:
        InputError: the file does not exist.
        WeightsError: it is not a weights file, or holds objects other than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no weights file '{path}'. Give a .pth or .safetensors file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with _harmless():
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler's errors on other kinds of file have no common base class
        raise WeightsError(_why_unread(path, error)) from error
    state = _state_in(loaded, path) if isinstance(loaded, Mapping) else None
    if state is None:
        raise WeightsError(f"weights '{path}' hold {type(loaded).__name__} without tensors; a state dict is needed.")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


class _Skipped:
    """What stands for a harmless object that is no tensor while a file is read: it takes any argument and any state, and keeps none."""

    def __new__(cls, *_: object) -> _Skipped:
        return super().__new__(cls)

    def __setstate__(self, _: object) -> None: ...


# NumPy's own functions are not called, as a hostile dtype makes them read memory that is not theirs.
_HARMLESS = [
    type(name, (_Skipped,), {"__module__": module})
    for module, name in (
        ("argparse", "Namespace"),
        ("numpy", "dtype"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
    )
]


def _harmless() -> AbstractContextManager[Any]:
    """Lets torch read stand-ins for harmless objects inside; torch before 2.5 has no way to, and refuses these by name."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if allowed is None else allowed(_HARMLESS)


def _why_unread(path: Path, error: Exception) -> str:
    """Why a weights file could not be read, with the lines that convert it where it holds objects."""
    if isinstance(error, SafetensorError):
        return f"weights '{path}' could not be read ({error})."
    said, converted = str(error), repr(str(path.with_suffix(".weights.pth")))
    if "TorchScript" in said:
        return (
            f"weights '{path}' are a TorchScript archive, which holds code. If you trust it, convert it:\n"
            f"    found = torch.jit.load({str(path)!r}, map_location='cpu')\n"
            f"    torch.save(found.state_dict(), {converted})"
        )
    if isinstance(error, pickle.UnpicklingError) and re.search(r"Unsupported (global|class|operand)|GLOBAL", said):
        named = re.search(r"GLOBAL ([\w.<>]+)", said)
        name = "" if named is None else named[1] if "." in named[1] else f"builtins.{named[1]}"
        way = f"hold more than tensors: {name} is in the way, and reading it" if name else "are not pickled as by torch.save: reading them"
        return (
            f"weights '{path}' {way} would run code. If you trust the file, convert it where its code is installed:\n"
            f"    found = torch.load({str(path)!r}, map_location='cpu', weights_only=False)\n"
            f"    torch.save(found.state_dict() if hasattr(found, 'state_dict') else found.get('state_dict', found), {converted})\n"
            "with its own key of a state dict in the place of 'state_dict', if it has another."
        )
    reason = (said.strip() or type(error).__name__).partition("\n")[0][:200].removesuffix(".")
    return f"weights '{path}' could not be read: it is no PyTorch file, or a damaged one ({reason}). Give a .pth or .safetensors file."


def _state_in(loaded: Mapping[Any, Any], path: Path) -> Mapping[Any, Any] | None:
    """The state dict in what a file holds, at most two entries deep; None if there is none.

    Of an entry of a moving average and one of the plain weights it is the plain one, and the log says so.
    """
    found = {str(key): value for key, value in loaded.items() if isinstance(value, Mapping)}
    held = {key: state for key, value in found.items() if (state := _tensors_in(value)) is not None}
    chosen = next((key for key in (*WRAPPERS, *AVERAGED) if key in held), None)
    if chosen is None:
        if _has_tensors(loaded):
            return loaded
        if len(held) > 1:
            raise WeightsError(
                f"weights '{path}' hold several state dicts: {', '.join(held)}. Keep one: "
                f"torch.save(torch.load('{path}', weights_only=True)['{next(iter(held))}'], 'one.pth')."
            )
        chosen = next(iter(held), None)
    if chosen is None:
        return None
    if others := [key for key in held if key != chosen and key in (*WRAPPERS, *AVERAGED)]:
        logger.warning(
            "of %s, '%s' is loaded; it also holds %s. For another: torch.save(torch.load('%s', weights_only=True)['%s'], 'other.pth')",
            path,
            chosen,
            ", ".join(f"'{key}'" for key in others),
            path,
            others[0],
        )
    return held[chosen]


def _tensors_in(entry: Mapping[Any, Any]) -> Mapping[Any, Any] | None:
    """The entry itself, or a state dict wrapped in it; None if it has no tensors."""
    if _has_tensors(entry):
        return entry
    return next((entry[key] for key in WRAPPERS if isinstance(entry.get(key), Mapping) and _has_tensors(entry[key])), None)


def _has_tensors(entry: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in entry.values())


def fit_weights(network: nn.Module, weights: dict[str, Tensor], path: str | Path, advice: str = "") -> None:
    """Loads a state dict, after removing wrappers' prefixes; every weight of the network must be there.

    What is left out is logged: weights beside those of the network, such as a loss's or a moving average's.

    Raises:
        WeightsError: the state dict does not fit, with the missing and unknown keys and the shapes that differ.
    """
    fitting, left_out = matched(weights, network.state_dict())
    if problem := mismatch(network, fitting):
        raise WeightsError(f"weights '{path}' do not fit {type(network).__name__}: {problem}.{advice and ' '}{advice}")
    if left_out:
        logger.warning("left out of the weights, as they are not the network's: %s", _grouped(left_out))
    own = network.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}  # files of old have none
    state = OrderedDict(counters | fitting)
    state._metadata = own._metadata  # type: ignore[attr-defined]  # by which some modules tell their version
    network.load_state_dict(state)


def matched(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that are a network's, under its own keys, and the keys of the others.

    The network's are those behind the prefix (`module.`, `model.backbone.`, …, or none) that brings most keys to those of the network;
    of equally good ones the first in the file that is no moving average's. Where every weight of the network is there, those of modules
    that it does not have are left out too.

    >>> weights = {"model.fc.weight": torch.ones(1), "loss.weight": torch.ones(1)}
    >>> matched(weights, {"fc.weight": torch.zeros(1)})
    ({'fc.weight': tensor([1.])}, ['loss.weight'])
    """
    if not own:
        return weights, []
    counts: Counter[str] = Counter()
    for key in weights:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in own:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    prefix = max(counts, key=lambda found: (counts[found], not set(AVERAGED) & set(found.split("."))), default="")
    inner = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    left_out = [key for key in weights if not key.startswith(prefix)]
    if all(key in inner for key in own if not key.endswith("num_batches_tracked")):
        modules = {key.partition(".")[0] for key in own}
        foreign = [key for key in inner if key.partition(".")[0] not in modules]
        inner = {key: value for key, value in inner.items() if key not in foreign}
        left_out += [f"{prefix}{key}" for key in foreign]
    return inner, left_out


def _grouped(keys: Sequence[str]) -> str:
    """Keys in words: several of one module as `module.* (3)`."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[key.partition(".")[0]].append(key)
    return ", ".join(several[0] if len(several) == 1 else f"{name}.* ({len(several)})" for name, several in groups.items())


def mismatch(network: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """Why a state dict does not fit, in words; empty if it fits."""
    own = network.state_dict()
    missing = [key for key in own if key not in weights and not key.endswith("num_batches_tracked")]
    unknown = [key for key in weights if key not in own]
    shapes = [
        f"{key} is {tuple(weights[key].shape)}, needed {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    parts = [
        f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})"
        for what, keys in (("keys missing", missing), ("keys unknown", unknown), ("shapes differ", shapes))
        if keys
    ]
    return "; ".join(parts)


def classes_in(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """The number of classes in a checkpoint that differs from the network only in the size of its last layer; None otherwise."""
    weights, _ = matched(weights, network.state_dict())
    differing = [key for key, own in network.state_dict().items() if key in weights and weights[key].shape != own.shape]
    counts = {weights[key].shape[0] for key in differing}
    last = {key.rpartition(".")[0] for key in differing}
    return counts.pop() if len(last) >= 1 and len(counts) == 1 else None


def channels_in(network: nn.Module, weights: dict[str, Tensor]) -> int | None:
    """The number of channels that the first convolution of a checkpoint takes, where it differs from the network's; None otherwise."""
    weights, _ = matched(weights, network.state_dict())
    for key, own in network.state_dict().items():
        if own.dim() == 4:
            kept = weights[key].shape if key in weights else own.shape
            others_fit = len(kept) == 4 and (kept[0], *kept[2:]) == (own.shape[0], *own.shape[2:])
            return int(kept[1]) if others_fit and kept[1] != own.shape[1] else None
    return None


def digest_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name, first 16 digits."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Header:
    """The header of an xattn `.safetensors`, beside the weights.

    Attributes:
        source: of the network.
        head_alone: the file holds only the head's weights.
        name: of the classifier in the rows.
        head: its name with settings.
        trained: whether it was trained.
        classes: number of classes.
        labels: class names.
        multi_label: probabilities are sigmoids.
        preprocessing: in the form of `dataclasses.asdict`.
        build: those of the network's `FLAGS` that its weights do not record.
        regression: outputs are values without a probability.
        output: path of the network's output that is explained; None: its name or its being alone says which it is.
        stages: names of those that the head reads; empty in files that do not name them.
        inner: of a classifier whose last layer was trained to be fitted to new classes; None: it was not.
    """

    source: Source
    head_alone: bool
    name: str
    head: str
    trained: bool
    classes: Annotated[int, Range(1, 10**7)]
    labels: tuple[str, ...] | None
    multi_label: bool
    preprocessing: dict[str, Any]
    build: dict[str, bool]
    regression: bool = False
    output: str | None = None
    stages: tuple[str, ...] = ()
    inner: InnerLoop | None = None


def save(path: str | Path, header: Header, network: Mapping[str, Tensor], head: Mapping[str, Tensor]) -> None:
    """Writes a head's weights, the network's too unless the header says that the head is alone, and what is needed to rebuild them."""
    kept = {f"{HEAD}{key}": value for key, value in head.items()}
    if not header.head_alone:
        kept |= {f"{NETWORK}{key}": value for key, value in network.items()}
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in kept.items()}
    part = Path(f"{path}.{os.getpid()}.part")
    save_file(tensors, part, metadata={HEADER: json.dumps({"format": FORMAT, **asdict(header)})})
    part.replace(path)


def is_saved(path: str | Path) -> bool:
    """Whether a file is a `.safetensors` that xattn wrote."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return False
    try:
        with safe_open(path, framework="pt") as opened:
            return HEADER in (opened.metadata() or {})
    except (OSError, SafetensorError):
        return False


def read_header(path: str | Path) -> Header:
    """The header of an xattn `.safetensors`.

    Raises:
        WeightsError: the file does not exist, or xattn did not save it.
    """
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"'{path}' could not be read as .safetensors ({error}).") from error
    if HEADER not in metadata:
        raise WeightsError(f"'{path}' holds weights alone: name the network as the model and give this file as its weights.")
    try:
        stored = structured(dict[str, Any], parsed(metadata[HEADER]))
        if stored.pop("format", None) != FORMAT:
            raise WeightsError(f"'{path}' is of another format than {FORMAT}, which this xattn reads. Save it again.")
        header = structured(Header, stored)
        Preprocessing.from_json(header.preprocessing)
    except ValueError as error:
        if isinstance(error, WeightsError):
            raise
        reason = str(error).removesuffix(".")
        raise WeightsError(f"the header of '{path}' is damaged: {reason}. Save the file again, or get it again.") from error
    for name, value in header.build.items():
        if name not in FLAGS or not isinstance(value, bool):
            raise WeightsError(f"'{path}' would set '{name}' of its network to {value!r}, which xattn never writes: do not trust the file.")
    return header


def split_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The network's and the head's weights in an xattn `.safetensors`."""
    found = read_weights(path)
    network, head = (
        {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)} for prefix in (NETWORK, HEAD)
    )
    return network, head
