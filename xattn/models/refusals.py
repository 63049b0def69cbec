"""Errors for networks that cannot be explained or that fail while they run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xattn.errors import UnsupportedError, XattnError
from xattn.models.input_size import required_arguments, stated_size


def refuse_unusable(network: nn.Module, name: str) -> None:
    """Raises if features cannot be taken from a network, for any image.

    Args:
        network: to be explained.
        name: of the network in messages.

    Raises:
        UnsupportedError: a part is scripted or compiled, or weights are complex, have no values yet, or are on the meta device.
    """
    for path, module in network.named_modules():
        part = f"{name}.{path}" if path else name
        if isinstance(module, torch.jit.ScriptModule):
            raise UnsupportedError(
                f"{part} is scripted or traced; such a module runs no Python hooks, and xattn takes features by hooks: attach the "
                f"original module."
            )
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise UnsupportedError(
                f"{part} is compiled; compiled code runs no hooks that are added later, and xattn takes features by hooks: compile "
                f"a copy, or "
                "attach the module before it is compiled; xattn compiles where that is faster (tune='full', --tune full)."
            )
    for path, tensor in (*network.named_parameters(), *network.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UnsupportedError(f"{name} has lazy layers: '{path}' has no shape yet. Run the network once on an image, then attach it.")
        if tensor.is_meta:
            raise UnsupportedError(f"{name} is on the meta device: '{path}' has no values. Load its weights first.")
        if tensor.is_complex():
            raise UnsupportedError(f"{name} has complex weights ('{path}'): explainers need a network of real numbers.")


def why_not_run(network: nn.Module, name: str, images: Tensor, size: tuple[int, int], inputs: object, error: Exception) -> UnsupportedError:
    """The error of a network that cannot run the probe.

    Args:
        network: that was run.
        name: of the network in messages.
        images: its input.
        size: height and width for which it was attached.
        inputs: its further inputs; None: none were given.
        error: the error that it raised.
    """
    required, stated = required_arguments(network), stated_size(network)
    if isinstance(error, NotImplementedError) and '"forward"' in str(error):
        advice = "Attach a module whose forward takes images and returns logits, such as the network inside this one."
    elif "Inference tensors" in str(error):
        advice = "Its weights were made under torch.inference_mode: build the network outside of it, or attach copy.deepcopy of it."
    elif len(required) > 1 and inputs is None:
        advice = (
            f"Its forward takes {', '.join(required)}: wrap it in a module whose forward takes images alone and fills in the rest; "
            f"or, in Python, give the rest by name, inputs=lambda images: {{{', '.join(f'{each!r}: …' for each in required[1:])}}}."
        )
    elif stated is not None and stated != size:
        advice = f"It is made for images of {stated[0]} × {stated[1]}: give that as input_size (--input-size), and resize."
    else:
        advice = "If it takes another size, give it: input_size (--input-size), and resize."
    return UnsupportedError(f"{name} cannot run an image {tuple(images.shape)}: {_shown(error)}. {advice}")


@contextmanager
def named_errors(name: str, images: Tensor) -> Iterator[None]:
    """Reports errors in the block as errors of the network, except out-of-memory errors, after which callers continue with fewer images.

    Args:
        name: of the network.
        images: that it runs.

    Raises:
        UnsupportedError: the network raises.
    """
    try:
        yield
    except (XattnError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # a network's code may raise anything
        if isinstance(error, RuntimeError) and "memory" in str(error):
            raise
        raise UnsupportedError(
            f"{name} cannot run images {tuple(images.shape)}: {_shown(error)}. It ran one image of noise when it was attached: its "
            f"forward must take any number of images, and any values."
        ) from error


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0].removesuffix('.')}".removesuffix(": ")
