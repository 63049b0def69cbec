"""The network's output for many perturbed images, as fast as the network runs on this machine."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from xattn.errors import NameUnknownError, SettingError
from xattn.inference.memory import is_out_of_memory
from xattn.inference.shared_backbone import SharedBackbone
from xattn.models.classifier import Classifier
from xattn.models.concurrency import evaluating
from xattn.registry import coerce, split_spec

MemoryFormat = Literal["channels-last", "contiguous"]
Precision = Literal["own", "bfloat16", "float16"]
Level = Literal["exact", "fast"]
logger = logging.getLogger("xattn")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Tuning:
    """How forwards of perturbed images are run.

    Attributes:
        chunk: images per forward.
        memory_format: of images, features and weights.
        folded: batch norms are folded into the preceding convolutions.
        compiled: with torch.compile and frozen weights.
        precision: of the network; "own" is that of its weights. Others are only for level "fast", which also lets a GPU use TF32.
    """

    chunk: int = 8
    memory_format: MemoryFormat = "channels-last"
    folded: bool = False
    compiled: bool = False
    precision: Precision = "own"

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise SettingError(f"a forward takes at least one image; got chunk={self.chunk}.")

    def __str__(self) -> str:
        words = [f"chunks of {self.chunk}", self.memory_format]
        words += ["batch norms folded"] if self.folded else []
        words += ["compiled"] if self.compiled else []
        return ", ".join(words + ([self.precision] if self.precision != "own" else []))

    @classmethod
    def read(cls, text: str) -> Tuning:
        """Parses a tuning that a user writes, such as `chunk=16,folded=true`; what is left out gets its default.

        Raises:
            SettingError: a value does not fit.
            NameUnknownError: there is no such setting.
        """
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for key, value in split_spec(f"tune:{text}")[1].items():
            if key not in hints:
                raise NameUnknownError("setting of tune", key, [field.name for field in fields(cls)])
            try:
                given[key] = coerce(value, hints[key])
            except ValueError as error:
                raise SettingError(f"tune cannot take {key}={value}.") from error
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Runnable = Classifier | SharedBackbone


class Predictor:
    """Images in pixel space `(B, 3, H, W)` → the output, float32 or float64, in eval mode and without gradients.

    The classifier stays unchanged: a tuning that changes weights is applied to a copy, which shares all other weights. Make a new
    predictor when weights have changed or the classifier has moved to another device. When memory runs out, the chunk is halved and the
    work continues.

    Args:
        classifier: the one to run.
        tuning: None: the default, 8 images per forward on the CPU, 64 on a GPU.
        level: "fast" lets a GPU round convolutions and products to TF32.

    Attributes:
        chunk: images per forward; callers should pass this many at a time.
    """

    def __init__(self, classifier: Runnable, tuning: Tuning | None = None, level: Level = "exact") -> None:
        refuse_unknown_level(level)
        self.classifier = classifier
        self.tuning = plain_tuning(classifier) if tuning is None else tuning
        self.level = level
        self.chunk = self.tuning.chunk
        self._logits = _built(classifier, self.tuning)

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.classifier.device, non_blocking=True)
        found: list[Tensor] = []
        start = 0
        with evaluating(self.classifier), _rounding(self.level):
            while start < len(images):
                piece = images[start : start + self.chunk]
                try:
                    found.append(self._logits(piece))
                except RuntimeError as error:
                    if not is_out_of_memory(error) or self.chunk == 1:
                        raise
                    self.chunk = max(1, self.chunk // 2)
                    logger.warning("memory ran out: %s goes on with chunks of %d.", self.classifier.name, self.chunk)
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                else:
                    start += len(piece)
        return found[0] if len(found) == 1 else torch.cat(found)


def plain_tuning(classifier: Runnable) -> Tuning:
    """The tuning that is used if nothing was measured."""
    return Tuning(8 if classifier.device.type == "cpu" else 64)


def refuse_unknown_level(level: str) -> None:
    """Raises if there is no such level.

    Args:
        level: "exact" or "fast".

    Raises:
        NameUnknownError: it is neither.
    """
    if level not in get_args(Level):
        raise NameUnknownError("level", str(level), get_args(Level))


@contextmanager
def _rounding(level: Level) -> Iterator[None]:
    """TF32 for level "fast" on a GPU; `evaluating`, around it, forbids it for convolutions and restores all settings."""
    if level == "exact" or not torch.cuda.is_available():
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        torch.backends.cudnn.allow_tf32 = False  # as set by `evaluating`, which another thread may still be in


def _built(classifier: Runnable, tuning: Tuning) -> Callable[[Tensor], Tensor]:
    """The function that computes the output of one chunk."""
    channels_last = tuning.memory_format == "channels-last"
    form = torch.channels_last if channels_last else torch.contiguous_format
    dtype = DTYPES.get(tuning.precision)
    is_plain = channels_last and not (tuning.folded or tuning.compiled or dtype)
    clone = classifier if is_plain else clone_of(classifier, form, dtype, folded=tuning.folded)

    def forward(images: Tensor) -> Tensor:
        normalised = classifier.normalise(images).to(memory_format=form)
        return clone.logits(normalised if dtype is None else normalised.to(dtype))

    run: Callable[[Tensor], Tensor] = forward
    if tuning.compiled:
        options: dict[str, Any] = {"triton.cudagraphs": True} if classifier.device.type == "cuda" else {}
        run = torch.compile(forward, dynamic=False, options=options)
        if classifier.device.type == "cpu":
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns about a missing GPU, which is irrelevant here

    def logits(images: Tensor) -> Tensor:
        with _compiling() if tuning.compiled else torch.inference_mode():
            found = run(images.contiguous() if tuning.compiled else images)  # one layout, so that it is compiled once
        found = found if found.dtype == torch.float64 else found.float()
        return found.clone() if tuning.compiled else found  # a CUDA graph reuses this memory for its next answer

    return logits


@contextmanager
def _compiling() -> Iterator[None]:
    """Without gradients, but not in inference mode, which freezing refuses; with frozen weights; and with as many compilations as needed.

    Freezing as an option of torch.compile has no effect in torch 2.15: it is read before the options apply. Each classifier and chunk
    compiles the same few functions again; torch would stop after eight and continue uncompiled.
    """
    import torch._dynamo
    import torch._inductor.config

    with torch.no_grad(), torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=256):
        yield


def clone_of(classifier: Runnable, form: torch.memory_format, dtype: torch.dtype | None = None, *, folded: bool = False) -> Runnable:
    """A copy in eval mode that shares all unchanged weights, in a memory format and precision, with batch norms folded or not."""

    def converted(tensor: Tensor) -> Tensor:
        return tensor.detach().to(memory_format=form if tensor.dim() == 4 else torch.preserve_format)

    memo: dict[int, Any] = {id(weight): nn.Parameter(converted(weight), requires_grad=False) for weight in classifier.parameters()}
    memo |= {id(buffer): converted(buffer) for buffer in classifier.buffers()}
    clone: Runnable = copy.deepcopy(classifier, memo).eval()
    if folded:
        _fold(clone)  # in its own precision, whatever the final one
    return clone if dtype is None else clone.to(dtype)


def _fold(clone: Runnable) -> None:
    """Folds every batch norm whose input is the output of one convolution, and nothing else, into that convolution.

    Whether the convolution's output is also used elsewhere is not detected here; whoever uses a folded copy compares its logits.
    """
    gave: dict[int, tuple[nn.Module, int]] = {}
    kept: list[Tensor] = []  # kept alive, so that no two share an id
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(module: nn.Module, _args: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(output, Tensor):
            gave[id(output)] = (module, output._version)
            kept.append(output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        source, version = gave.get(id(args[0]), (None, 0)) if args else (None, 0)
        if source is not None and args[0]._version == version:  # not modified in place in between
            pairs.append((source, module))

    handles: list[Any] = []
    for module in clone.network.modules():
        if type(module) in CONVOLUTIONS:
            handles.append(module.register_forward_hook(after))
        elif type(module) in NORMS and module.track_running_stats:
            handles.append(module.register_forward_pre_hook(before))
    try:
        with torch.no_grad():
            clone(clone.probe())
    finally:
        for handle in handles:
            handle.remove()
    taken = Counter(convolution for convolution, _ in pairs)
    for convolution, norm in pairs:
        if taken[convolution] > 1:
            continue
        if calls[convolution] == calls[norm] == 1 and not (_watched(convolution) or _watched(norm)):
            fused: Any = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            _exchange(clone.network, convolution, fused)
            _exchange(clone.network, norm, nn.Identity())


def _watched(module: nn.Module) -> bool:
    """Whether folding the module away would lose a user's hook or parametrisation."""
    return bool(module._forward_hooks or module._forward_pre_hooks or getattr(module, "parametrizations", None))


def _exchange(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in network.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
