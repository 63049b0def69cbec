"""Records the call tree of a forward: the result of each module and free function, with its node in the autograd graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from xattn.models.concurrency import in_this_thread
from xattn.models.outputs import map_in


@dataclass
class Event:
    """The output of a module or of a free function during the probe."""

    name: str
    module: str
    call: int
    offset: int | None
    node: Node
    shape: tuple[int, ...]
    children: list[Event] = field(default_factory=list)
    is_function: bool = False
    has_parameters: bool = False

    @property
    def is_block(self) -> bool:
        """Whether it is a module that contains modules with weights; everything else is an operation."""
        return any(child.has_parameters for child in self.children)

    def descendants(self) -> Iterator[Event]:
        """The calls inside it."""
        for child in self.children:
            yield child
            yield from child.descendants()


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.root = Event("", "", 1, None, None, ())  # type: ignore[arg-type]
        self.stack = [self.root]
        self.calls: Counter[str] = Counter()
        self.last: tuple[str, int] | None = None
        self.offset = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.offset += 1
        if self.last is not None and isinstance(result, Tensor) and result.grad_fn is not None:
            module, call = self.last
            label = getattr(func, "__name__", "function").strip("_")
            name = f"{_call_name(module, call)}+{label}"
            self.stack[-1].children.append(Event(name, module, call, self.offset, result.grad_fn, tuple(result.shape), is_function=True))
        return result

    def enter(self, name: str) -> None:
        self.stack.append(Event(name, name, 0, None, None, ()))  # type: ignore[arg-type]

    def leave(self, module: nn.Module, output: Any) -> None:
        event = self.stack.pop()
        event.has_parameters = any(True for _ in module.parameters())
        tensor = map_in(output)
        self.calls[event.module] += 1
        event.call = self.calls[event.module]
        if tensor is not None and tensor.grad_fn is not None:
            event.name = _call_name(event.module, event.call)
            event.node, event.shape = tensor.grad_fn, tuple(tensor.shape)
            self.stack[-1].children.append(event)
        else:  # calls inside may still be a stage
            self.stack[-1].children += event.children
        self.last, self.offset = (event.module, event.call), 0  # last, because reading a tensor's attributes counts as a function too


def _call_name(module: str, call: int) -> str:
    return module if call == 1 else f"{module}#{call}"


@dataclass
class Record:
    """The record of a forward.

    Attributes:
        image: a leaf of the graph.
        output: of the forward, with its graph.
        root: holds the calls, in order.
        calls: number of runs of each module.
    """

    image: Tensor
    output: Tensor
    root: Event
    calls: Counter[str]

    def by_node(self) -> dict[Node, list[Event]]:
        """The events that returned each operation's result, outer ones first."""
        found: dict[Node, list[Event]] = defaultdict(list)
        stack = list(self.root.children)
        while stack:
            event = stack.pop()
            found[event.node].append(event)
            stack.extend(event.children)
        return found


def recorded(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor) -> Record:
    """Runs one forward of an image and records it.

    Args:
        network: the module whose submodules are named.
        forward: images `(1, 3, H, W)` → output, running `network`.
        image: `(1, 3, H, W)`.
    """
    recorder = _Recorder()
    handles: list[RemovableHandle] = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(in_this_thread(lambda _m, _a, name=name: recorder.enter(name))))
            handles.append(module.register_forward_hook(in_this_thread(lambda m, _a, out: recorder.leave(m, out))))
    leaf = image.detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), recorder:
            output = forward(leaf)
    finally:
        for handle in handles:
            handle.remove()
    return Record(leaf, output, recorder.root, recorder.calls)
