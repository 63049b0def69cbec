"""Checks whether a network's output is the same in a second forward, and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from xattn.errors import UnsupportedError, XattnError

TOLERANCE = 1e-3  # share of the output's spread, in float32
ROUNDINGS = 32  # of the output's precision


def instability(network: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor, name: str) -> str | None:
    """Describes how a network's output for one image changes between forwards, or with the other images of the batch.

    The state of torch's random generators does not change.

    Args:
        network: in eval mode.
        run: images `(B, C, H, W)` → its output, one row per image.
        image: `(1, C, H, W)`.
        name: of the network in messages.

    Raises:
        UnsupportedError: the network does not return one output per image.

    Returns:
        A sentence that says how much it changes, and in which module the change begins; None if the output is the same except for rounding.
    """
    devices = [image.device] if image.device.type == "cuda" else []
    batch = torch.cat([image, 1 - image / 4])
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        alone = run(image)
        if share := _change(alone, run(image)):
            return (
                f"{name} answers differently the second time: its output for one image changes by {share:.0%} of its spread"
                f"{_begins(network, run, image, image)}. Maps and scores are partly noise: turn off what draws random numbers in "
                "eval mode, such as a dropout."
            )
        try:
            both = run(batch)
        except XattnError:
            raise
        except Exception as error:  # a network's code may raise anything
            reason = str(error).partition("\n")[0] or type(error).__name__
            return f"{name} cannot run two images at once ({reason}). Metrics run images in batches: let its forward take any number."
        if len(both) != len(batch):
            raise UnsupportedError(f"{name} gives {len(both)} outputs for {len(batch)} images: its forward must give one for each image.")
        if share := _change(alone, both[:1]):
            return (
                f"{name} answers differently in a batch: its output for one image changes by {share:.0%} of its spread with another image "
                f"beside it{_begins(network, run, image, batch)}. Maps and scores depend on the batch: a batch normalisation needs running "
                "statistics in eval mode."
            )
    return None


def _change(before: Tensor, after: Tensor) -> float | None:
    """The largest change of an output as a share of its spread; None if the change is rounding."""
    if before.shape != after.shape or not before.is_floating_point():
        return None
    precision = torch.finfo(before.dtype).eps
    before, after = before.double() if before.device.type != "mps" else before.float(), after.to(before.device)
    size = float(before.abs().max())
    spread = float((before - before.mean(dim=1, keepdim=True)).abs().max()) if before[0].numel() > 1 else size
    change = float((after - before).abs().max())
    if not change > max(TOLERANCE, ROUNDINGS * precision) * spread + ROUNDINGS * precision * size:
        return None
    return change / spread if spread else 1.0


def _begins(network: nn.Module, run: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> str:
    """The module in which the outputs of two forwards begin to differ, as a part of a sentence."""
    before, after = _outputs(network, run, first), _outputs(network, run, second)
    for (name, module, output), (other, _, again) in zip(before, after, strict=False):
        if name == other and output.dim() > 1 and _change(output[:1], again[:1]) is not None:
            return f", first behind '{name}' ({type(module).__name__})"
    return ""


def _outputs(network: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> list[tuple[str, nn.Module, Tensor]]:
    """The outputs of the leaf modules, in the order of the forward."""
    found: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda module, _given, output: found.append((name, module, output)) if isinstance(output, Tensor) else None

    handles = [
        module.register_forward_hook(keep(name)) for name, module in network.named_modules() if not any(True for _ in module.children())
    ]
    try:
        run(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
