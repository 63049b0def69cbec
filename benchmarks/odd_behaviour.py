"""Networks that do something odd, return something odd, or cannot be explained."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from odd_plain import CLASSES, SIDE, Around, Odd, Plain, frozen_by, of_plain, plain
from torch import Tensor, nn
from torch.nn import functional


class Counting(Plain):
    """A `Plain` that records how often it ran, or changes its weights.

    Args:
        change: of the network, at each forward.
    """

    def __init__(self, change: Callable[[Counting], object]) -> None:
        super().__init__()
        self.change, self.calls = change, 0
        self.register_buffer("count", torch.zeros(()))
        self.load_state_dict({**plain().state_dict(), "count": torch.zeros(())})
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.change(self)
        return super().forward(x)


def decayed(network: Counting) -> None:
    """Weights that shrink at each forward."""
    with torch.no_grad():
        network.fc.weight.mul_(0.9)


def counted(network: Counting) -> None:
    """A buffer that counts."""
    network.count += 1


def slept(x: Tensor) -> Tensor:
    """The same, later."""
    time.sleep(0.02)
    return x


def reseeded(x: Tensor) -> Tensor:
    """The same, with torch's generator seeded."""
    torch.manual_seed(3)
    return x


def stateful() -> Callable[[Tensor], Tensor]:
    """Logits that depend on those of the previous forward."""
    state = [torch.zeros(())]

    def after(z: Tensor) -> Tensor:
        state[0] = z.detach().mean() + 1
        return z * state[0]

    return after


class Straight(torch.autograd.Function):
    """The same, with a custom gradient."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


def behaving() -> Iterator[Odd]:
    """Returns networks that do something odd in their forward."""
    same = of_plain()
    yield Odd("dropout left on", lambda: Around(after=lambda z: functional.dropout(z, 0.5, training=True)), ends="warned")
    yield Odd("noise on its input", lambda: Around(lambda x: x + torch.randn_like(x)), ends="warned")
    yield Odd("a batch's mean taken off", lambda: Around(lambda x: x - x.mean(dim=0)), ends="warned")
    yield Odd("divided by the batch", lambda: Around(after=lambda z: z / len(z)), ends="warned")
    yield Odd(
        "batch norm without statistics",
        frozen_by(lambda n: setattr(n.body[1], "running_mean", None) or setattr(n.body[1], "running_var", None)),
        ends="warned",
    )
    yield Odd("weights that it changes itself", lambda: Counting(decayed), ends="warned", keeps=False)
    yield Odd("a state between forwards", lambda: Around(after=stateful()), ends="any")
    yield Odd("a counter", lambda: Counting(counted), same, keeps=False)
    yield Odd("slow", lambda: Around(slept), same)
    yield Odd("its input doubled and halved in place", lambda: Around(lambda x: x.mul_(2).div_(2)), same)
    yield Odd("its input clamped in place", lambda: Around(lambda x: x.clamp_(-9, 9)), same)
    yield Odd("its input overwritten behind it", lambda: Around(lambda x: x.clone(), lambda z: z), same)
    yield Odd("its output doubled in place", lambda: Around(after=lambda z: z.mul_(2)), of_plain(lambda z: z * 2))
    yield Odd("torch's generator seeded", lambda: Around(reseeded), same)
    yield Odd("a function with a gradient of its own", lambda: Around(Straight.apply, Straight.apply), same)
    yield Odd("precision chosen inside", lambda: Around(after=lambda z: z.double().float()), same)
    yield Odd("autocast inside", Autocast, ends="right")
    yield Odd("a path that depends on the values", lambda: Around(lambda x: x if bool(x.mean() > -1e9) else x * 2), same)
    yield Odd("a warning at each forward", lambda: Around(lambda x: warnings.warn("odd", stacklevel=1) or x), same)
    yield Odd("a large factor", lambda: Around(after=lambda z: z * 1e4), of_plain(lambda z: z * 1e4))
    yield Odd("a tiny factor", lambda: Around(after=lambda z: z * 1e-6), of_plain(lambda z: z * 1e-6))


class Autocast(Plain):
    """A `Plain` that computes in bfloat16 where torch would."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(plain().state_dict())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


# --- what they return -------------------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None


class Subclass(Tensor):
    """A tensor subclass."""


def returning() -> Iterator[Odd]:
    """Returns networks that return something odd."""
    same = of_plain()
    yield Odd("a dictionary with logits", lambda: Around(after=lambda z: {"logits": z, "loss": None}), same)
    yield Odd("a dictionary with another name", lambda: Around(after=lambda z: {"prediction": z}), same)
    yield Odd("a dictionary in a dictionary", lambda: Around(after=lambda z: {"a": {"b": (None, z)}}), same)
    yield Odd("a dataclass", lambda: Around(after=Output), same)
    yield Odd("a tuple with one tensor", lambda: Around(after=lambda z: (z,)), same)
    yield Odd("a list with other things", lambda: Around(after=lambda z: [None, "x", z]), same)
    yield Odd("a subclass of Tensor", lambda: Around(after=lambda z: z.as_subclass(Subclass)), same)
    yield Odd("axes of one", lambda: Around(after=lambda z: z[..., None, None]), same)
    yield Odd("probabilities", lambda: Around(after=lambda z: z.softmax(1)), of_plain(lambda z: z.log_softmax(1)))
    yield Odd("log-probabilities", lambda: Around(after=lambda z: z.log_softmax(1)), of_plain(lambda z: z.log_softmax(1)))
    yield Odd("one logit", lambda: Around(after=lambda z: z[:, :1]), of_plain(lambda z: torch.cat([-z[:, :1] / 2, z[:, :1] / 2], 1)))
    yield Odd(
        "a million classes",
        lambda: Around(after=lambda z: z.repeat(1, 200_000) - torch.arange(10**6) * 1e-3),
        of_plain(lambda z: z.repeat(1, 200_000) - torch.arange(10**6) * 1e-3),
    )
    yield Odd("a masked class", lambda: Around(after=lambda z: z + masked()), ends="right")
    yield Odd("not a number", lambda: Around(after=lambda z: z * torch.nan), ends="reported")
    yield Odd("infinity", lambda: Around(after=lambda z: z + torch.inf), ends="reported")
    yield Odd("its input", nn.Identity, ends="any")
    yield Odd("its input, flat", nn.Flatten, ends="any")
    yield Odd("an empty Sequential", nn.Sequential, ends="any")
    yield Odd("colours", lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), ends="any")


def masked() -> Tensor:
    """Returns 0 for each class, and minus infinity for the last one."""
    return torch.tensor([0.0] * (CLASSES - 1) + [-torch.inf])


def raising(error: BaseException) -> Callable[[Tensor], Tensor]:
    """Returns a step that raises."""

    def step(_: Tensor) -> Tensor:
        raise error

    return step


class WithoutForward(nn.Module):
    pass


class WithoutGradient(Plain):
    """A `Plain` that runs without gradients."""

    def __init__(self, mode: Callable[[], contextlib.AbstractContextManager[object]]) -> None:
        super().__init__()
        self.mode = mode
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            return super().forward(x)


def refused() -> Iterator[Odd]:
    """Returns networks that are refused with a message, or output no numbers."""
    returns: dict[str, Callable[[Tensor], Any]] = {
        "zero classes": lambda z: z[:, :0],
        "nothing": lambda z: None,
        "a text": lambda z: "cat",
        "an empty dictionary": lambda z: {},
        "a number": lambda z: float(z.sum()),
        "one number for the batch": lambda z: z.sum(),
        "classes before images": lambda z: z.t(),
        "three axes": lambda z: z[..., None].expand(-1, -1, 3),
        "five axes": lambda z: z[..., None, None, None].expand(-1, -1, 2, 2, 2),
        "the class": lambda z: z.argmax(1),
        "the class, one-hot": lambda z: functional.one_hot(z.argmax(1), CLASSES),
        "booleans": lambda z: z > 0,
        "complex numbers": lambda z: torch.complex(z, z),
        "NumPy": lambda z: z.detach().numpy(),
        "its output detached": lambda z: z.detach(),
        "a sparse tensor": lambda z: z.to_sparse(),
        "a generator": lambda z: (each for each in z),
        "twice as many images": lambda z: torch.cat([z, z]),
        "the first image alone": lambda z: z[:1],
    }
    for name, after in returns.items():
        yield Odd(
            f"returns {name}",
            lambda after=after: Around(after=after),
            ends="any" if name in ("the first image alone", "twice as many images") else "refused",
        )
    errors = (
        ValueError("odd"),
        KeyError("odd"),
        AttributeError("odd"),
        ZeroDivisionError(),
        NotImplementedError(),
        OSError("odd"),
        MemoryError(),
        RecursionError(),
        StopIteration(),
        Exception(""),
    )
    for error in errors:
        yield Odd(f"raises {type(error).__name__}", lambda error=error: Around(raising(error)), ends="refused")
    yield Odd("raises for three images", lambda: Around(lambda x: raising(KeyError("odd"))(x) if len(x) == 3 else x), ends="refused")
    yield Odd("without forward", WithoutForward, ends="refused")
    yield Odd("without gradients", lambda: WithoutGradient(torch.no_grad), ends="refused")
    yield Odd("in inference mode", lambda: WithoutGradient(torch.inference_mode), ends="refused")
    yield Odd("NumPy inside", lambda: Around(lambda x: torch.from_numpy(x.numpy())), ends="refused")
    yield Odd("its input detached", lambda: Around(lambda x: x.detach()), ends="refused")
    yield Odd("gradients turned off for all", lambda: Around(lambda x: torch._C._set_grad_enabled(False) or x), ends="refused")
    yield Odd("the meta device", lambda: plain().to("meta"), ends="refused")
    yield Odd("complex weights", lambda: plain().to(torch.complex64), ends="refused")
    yield Odd(
        "lazy layers", lambda: nn.Sequential(nn.LazyConv2d(8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)), ends="any"
    )
    yield Odd("scripted", lambda: torch.jit.script(plain()), ends="refused")
    yield Odd("traced", lambda: torch.jit.trace(plain(), torch.rand(1, 3, SIDE, SIDE)), ends="refused")
    yield Odd("a part scripted", frozen_by(lambda n: setattr(n, "body", torch.jit.script(n.body))), ends="refused")
    yield Odd("quantised", lambda: torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}, dtype=torch.qint8), ends="any")
    yield Odd("a function", lambda: plain().forward, ends="refused")
    yield Odd("a class", lambda: Plain, ends="refused")
    yield Odd("a state dict", lambda: plain().state_dict(), ends="refused")
    yield Odd("nothing", lambda: None, ends="refused")
    yield Odd("over volumes", lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten()), ends="refused")
    yield Odd("over sequences", lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten()), ends="refused")
    yield Odd("over tokens", lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten()), ends="refused")
