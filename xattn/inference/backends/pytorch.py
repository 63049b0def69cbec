"""Torch backend, with or without compilation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from xattn.inference.cloning import Runnable, clone_of
from xattn.inference.settings import Tuning

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def built(classifier: Runnable, tuning: Tuning) -> Callable[[Tensor], Tensor]:
    """Returns the function that computes the output of one chunk, see `xattn.inference.backends.built`."""
    channels_last = tuning.memory_format == "channels-last"
    form = torch.channels_last if channels_last and classifier.channels_last else torch.contiguous_format
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
        return found.clone() if tuning.compiled else found  # a CUDA graph reuses this memory for its next output

    return logits


@contextmanager
def _compiling() -> Iterator[None]:
    """Disables gradients, but not by inference mode, which freezing refuses; freezes weights; allows as many compilations as needed.

    Freezing as an option of torch.compile has no effect in torch 2.15: it is read before the options apply. Each classifier and chunk
    compiles the same few functions again; torch would stop after eight and continue uncompiled.
    """
    import torch._dynamo
    import torch._inductor.config

    with torch.no_grad(), torch._inductor.config.patch(freezing=True), torch._dynamo.config.patch(recompile_limit=256):
        yield
