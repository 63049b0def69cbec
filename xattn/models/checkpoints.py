"""xattn's own weights files: `.safetensors` with a classifier's settings in the header."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xattn.data.preprocessing import Preprocessing
from xattn.errors import SettingError, WeightsError
from xattn.models.weights_files import read_weights
from xattn.stored import Range, parsed, structured

MOST_STEPS = 10**6  # of gradient descent: minutes
HEADER = "xattn"
FORMAT = 2
NETWORK, HEAD = "network.", "head."  # prefixes of keys in xattn's own files
FLAGS = ("transform_input",)  # settings of a network that its weights do not record


@dataclass(frozen=True)
class Source:
    """The data to rebuild a network.

    Attributes:
        model: a name that `xattn.load` takes.
        weights: the file or the name of the weights; None: the library's default.
        digest: of the network's weights as loaded.
        high_res: stages whose stride was removed.
        dilate: whether dilation replaced it.
        prompts: its classes, if they are given by text.
        templates: the templates of these texts.
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


@dataclass(frozen=True)
class Header:
    """The header of an xattn `.safetensors`, with everything except the weights.

    Attributes:
        source: of the network.
        head_alone: whether the file holds only the head's weights.
        name: of the classifier in the rows.
        head: its name with settings.
        trained: whether it was trained.
        classes: number of classes.
        labels: class names.
        multi_label: probabilities are sigmoids.
        preprocessing: in the form of `dataclasses.asdict`.
        build: the network's `FLAGS`, which its weights do not record.
        regression: outputs are values without a probability.
        output: path of the network's output that is explained; None: it is clear from its name or is the only one.
        stages: names of the stages that the head reads; empty in files that do not name them.
        inner: settings by which the last layer is fitted to new classes, if the classifier was trained for that; else None.
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
    """Writes a head's weights, the network's too unless `header.head_alone` is set, and the header to rebuild them."""
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
