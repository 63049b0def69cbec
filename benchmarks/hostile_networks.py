"""Networks that are built or behave oddly: cases as in `hostile.py`.

A case is right if its output, its Grad-CAM and its average drop equal those of a plain network computed in plain torch, alone and in a
batch, and the network is left unchanged; or if the log reports it as unstable; or if it is refused with a clear message.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from hostile import Case, Wrong
from odd_behaviour import behaving, refused, returning
from odd_built import built
from odd_plain import SIDE, Odd
from torch import Tensor, nn
from torch.nn import functional

import xattn
from xattn.errors import XattnError


def fingerprint(network: nn.Module, keeps: bool) -> list[object]:
    """Returns the state that a call must not change."""
    found: list[object] = []
    for name, module in network.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        found.append((name, module.training, *(len(each) for each in hooks), sorted(vars(module))))
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        content = hashlib.sha256(tensor.detach().cpu().to_dense().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).digest()
        found.append((name, tensor.requires_grad, tensor.grad is None, content if keeps else b""))
    return found


def close(name: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Raises if two tensors differ by more than rounding."""
    if found.shape != expected.shape:
        raise Wrong(f"{name} is {tuple(found.shape)}, expected {tuple(expected.shape)}")
    off = float((found.double() - expected.double()).abs().max())
    if not off <= tolerance * max(1.0, float(expected.abs().max())):
        raise Wrong(f"{name} differs by {off:.3g} of {float(expected.abs().max()):.3g}")


def check(odd: Odd, clf: xattn.Classifier, images: Tensor) -> None:
    """Raises if xattn's results for a network differ from the plain computation."""
    given = odd.images(images)
    maps = xattn.explain(clf, given, ["grad-cam"], progress=False)
    rows = xattn.evaluate(clf, given, maps, ["average-drop", "insertion"], progress=False)
    alone = xattn.explain(clf, given[:1], ["grad-cam"], progress=False)
    if odd.ends == "reported" and not (rows["error"].notna().all() and rows["value"].isna().all()):
        raise Wrong("rows without an error")
    if odd.plainly is None or odd.ends in ("warned", "reported"):
        return
    mean, std = (torch.tensor(clf.preprocessing.__getattribute__(name)).view(-1, 1, 1) for name in ("mean", "std"))

    def run(pixels: Tensor) -> tuple[Tensor, Tensor]:
        assert odd.plainly is not None
        return odd.plainly((pixels - mean) / std)

    features, logits = run(given)
    target = logits.argmax(dim=1)
    (gradient,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), features)
    expected = (gradient.float().mean(dim=(2, 3), keepdim=True) * features.float()).sum(dim=1).relu().detach()
    close("output", clf.predict(given).float(), logits.detach(), odd.tolerance)
    close("Grad-CAM", maps.raw["grad-cam"].float(), expected, odd.tolerance)
    close("Grad-CAM alone", alone.raw["grad-cam"].float(), expected[:1], odd.tolerance)
    with torch.no_grad():
        o = logits.softmax(dim=1).gather(1, target[:, None])[:, 0]
        e = run(given * maps.masks["grad-cam"][:, None])[1].softmax(dim=1).gather(1, target[:, None])[:, 0]
    drop = torch.tensor(rows.loc[rows["metric"] == "average-drop", "value"].to_numpy())
    close("average drop", drop, 100 * (o - e).clamp(min=0) / o, 100 * odd.tolerance)


def networks() -> Iterator[Case]:
    """Generates odd networks."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        images = functional.interpolate(torch.rand(3, 3, 5, 5), size=SIDE, mode="bicubic").clamp(0, 1)
    for odd in (*built(), *behaving(), *returning(), *refused()):

        def attempt(_: Path, odd: Odd = odd) -> None:
            with warnings.catch_warnings(), logged() as lines:
                warnings.simplefilter("ignore")
                ended(odd, images.clone(), lines)

        yield Case(odd.name, attempt)


def ended(odd: Odd, images: Tensor, lines: list[str]) -> None:
    """Runs a network and compares its results.

    Args:
        odd: the network.
        images: images to explain.
        lines: lines logged during the run.
    """
    network = odd.make()
    before = fingerprint(network, odd.keeps) if isinstance(network, nn.Module) and odd.ends in ("right", "warned", "reported") else []
    mode = torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()
    try:
        check(odd, xattn.attach(network, input_size=SIDE, resize=SIDE), images)
    except XattnError as error:
        if odd.ends in ("right", "reported"):
            raise Wrong(f"it was refused: {error}") from error
        raise
    finally:
        if (torch.is_grad_enabled(), torch.get_default_dtype(), torch.is_inference_mode_enabled()) != mode:
            torch.set_grad_enabled(mode[0])
            torch.set_default_dtype(mode[1])
            raise Wrong("torch's modes are not as they were")
    if odd.ends == "refused":
        raise Wrong("it was taken")
    if odd.ends == "warned" and not any("answers differently" in line for line in lines):
        raise Wrong("its instability was not reported")
    if before and fingerprint(network, odd.keeps) != before:
        raise Wrong("the network is not as it was")


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Collects what xattn logs inside the context."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("xattn").addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger("xattn").removeHandler(handler)
