"""Runs a method of another library, and restores the network and the process afterwards.

Such methods run on the network and the normalised image, as their own users run them, so that 0 is the mean colour. They run on one
image at a time, seeded by its content, so that their randomness does not depend on the batch. They change modules, hooks and the process's
random generators: each gets the network exclusively, and they run one after the other.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import random
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from xattn.errors import SettingError, UnsupportedError
from xattn.explainers.base import methods
from xattn.explainers.trace import Trace
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget
from xattn.models.classifier import Classifier
from xattn.models.concurrency import evaluating, exclusive
from xattn.registry import MOST_OF_OTHERS

_one_at_a_time = threading.RLock()

Attribute = Callable[[nn.Module, Tensor, int, Trace], Tensor]
"""Network, normalised image `(1, 3, H, W)`, class index of the target, trace → raw map `(h, w)`."""


@dataclass(frozen=True)
class AdaptedMethod:
    """A method of another library.

    Attributes:
        spec: name with settings, as in the rows.
        attribute: runs it on one image.
    """

    spec: str
    attribute: Attribute

    def __call__(self, trace: Trace) -> Tensor:
        """Raw map `(B, h, w)`, at the library's resolution.

        Raises:
            UnsupportedError: the library cannot run on this network; the message gives its own reason.
        """
        maps = []
        classifier = trace.classifier
        normalised = classifier.normalise(trace.images.detach())
        with _one_at_a_time, exclusive(classifier.network), evaluating(classifier), restored(classifier), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries announce the hooks they set
            for number, (image, seed) in enumerate(zip(normalised, trace.seeds, strict=True)):
                network, index = _explained(classifier, trace.target[number : number + 1])
                with seeded(seed), torch.enable_grad(), silent():
                    try:
                        found = self.attribute(network, image[None].contiguous(), index, trace)
                    except Exception as error:  # any error of the library is the reason that is reported
                        if isinstance(error, UnsupportedError):
                            raise
                        reason = str(error).strip().split("\n")[0] or type(error).__name__
                        raise UnsupportedError(f"{self.spec} cannot run on {classifier.name}: {reason}") from error
                maps.append(found.detach().to(trace.images))
        return torch.stack(maps)

    def __reduce__(self) -> tuple[Any, ...]:
        return _recreated, (self.spec,)  # its closure holds the library's objects


def _recreated(spec: str) -> Any:
    return methods.create(spec).instance


def _explained(classifier: Classifier, target: Target) -> tuple[nn.Module, int]:
    """The network that the library runs, and the class to explain; for other targets, a network with one class, whose logit is the
    score."""
    if isinstance(target, ClassTarget):
        return _Network(classifier), int(target.classes[0])
    return _ScoreNetwork(classifier, target), 0


class _Network(nn.Module):
    """Normalised images → logits, with the network and its head as children, as libraries that iterate over modules expect."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.network
        self.head = classifier.head
        self.forward = classifier.logits


class _ScoreNetwork(nn.Module):
    """Normalised images → the score of one target, as the logit of a network with one class."""

    def __init__(self, classifier: Classifier, target: Target) -> None:
        super().__init__()
        self.network = classifier.network
        self.head = classifier.head
        self.logits = classifier.logits
        self.target = target

    def forward(self, normalised: Tensor) -> Tensor:
        output = self.logits(normalised)
        return self.target.expanded(len(output)).score(output)[:, None]


@contextmanager
def restored(module: nn.Module) -> Iterator[None]:
    """Restores modules, attributes, hooks, gradients and their flags after the block."""
    attributes = [(m, dict(vars(m))) for m in module.modules()]
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")
    hooks = [(getattr(m, table), dict(getattr(m, table))) for m in module.modules() for table in tables if hasattr(m, table)]
    children = [(m, dict(m._modules)) for m in module.modules()]  # AblationCAM replaces a module, and leaves it replaced if it fails
    gradients = [(p, p.grad, p.requires_grad) for p in module.parameters()]
    for parameter, _, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        for parent, before in children:
            parent._modules.clear()
            parent._modules.update(before)
        for table, before_hooks in hooks:
            table.clear()
            table.update(before_hooks)
        for changed, before_all in attributes:
            vars(changed).clear()
            vars(changed).update(before_all)
        for parameter, gradient, required in gradients:
            parameter.grad = gradient
            parameter.requires_grad_(required)


@contextmanager
def silent() -> Iterator[None]:
    """Drops what the libraries print, and their progress bars: stdout is for data. Other threads print as usual."""
    with contextlib.redirect_stdout(_Muted(sys.stdout)), contextlib.redirect_stderr(_Muted(sys.stderr)):
        yield


class _Muted(io.TextIOBase):
    """A stream that drops what its creating thread writes."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.owner = threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.owner else self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds all random generators inside, and restores them afterwards."""
    numpy = importlib.import_module("numpy")  # pytorch-grad-cam uses its generator
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def value_of(text: str) -> Any:
    """A setting's text as a number, a boolean, None or text.

    Raises:
        SettingError: an integer is so large that the library would compute or allocate endlessly.
    """
    for read in (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        if isinstance(value, int) and abs(value) > MOST_OF_OTHERS:
            raise SettingError(f"integers for other libraries are at most {MOST_OF_OTHERS:,}; got {text[:80]}.")
        return value
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def spec_of(library: str, name: str, settings: Mapping[str, str]) -> str:
    """Name of a method in the rows."""
    written = ",".join(f"{key}={value}" for key, value in settings.items())
    return f"{library}:{name}:{written}" if written else f"{library}:{name}"


def arguments_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named arguments of a function."""
    skipped = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {n: p for n, p in inspect.signature(function).parameters.items() if n != "self" and p.kind not in skipped}


def required_of(function: Callable[..., Any]) -> set[str]:
    """The arguments of a function that have no default."""
    return {name for name, p in arguments_of(function).items() if p.default is inspect.Parameter.empty}


def layer_of(trace: Trace, spec: str, *, channels_first: bool) -> nn.Module:
    """The module whose output is the trace's stage, for a library that hooks it.

    Raises:
        UnsupportedError: the library would hook another tensor, or misread its axes.
    """
    stage = trace.stage
    if stage.offset is not None:
        raise UnsupportedError(f"{spec} hooks a module; stage '{stage.name}' is a function's output. Choose a stage that is a module.")
    if stage.boxes:
        raise UnsupportedError(f"{spec} reads maps of the whole image; stage '{stage.name}' has maps of patches. Use xattn's own CAMs.")
    if stage.calls > 1:
        raise UnsupportedError(f"{spec} hooks a module, and '{stage.module}' runs {stage.calls} times per forward. Choose another stage.")
    if trace.classifier.head.asks_class:
        raise UnsupportedError(f"{spec} hooks a module, but a head with one query per class runs the network twice. Use xattn's own CAMs.")
    if channels_first and stage.layout.axes != "NCHW":
        raise UnsupportedError(
            f"{spec} takes axis 1 for the channels; stage '{stage.name}' has other axes, so the map would be silently wrong."
        )
    return trace.classifier.network.get_submodule(stage.module)
