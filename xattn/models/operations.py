"""Records the tensor operations of one forward, in order, with their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from xattn.errors import UnsupportedError


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the image, by its number in `Operations.values`."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One call of a function of torch.

    Attributes:
        function: as torch dispatches it, after splitting composite functions.
        arguments: with a `Value` instead of each tensor that depends on the image.
        keywords: in the same form.
        results: one per result, in order; None for a result that is not a tensor.
    """

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[Value | None, ...]

    @property
    def name(self) -> str:
        """The function's name; for an in-place function, that of the out-of-place one."""
        return _name(self.function)

    @property
    def inputs(self) -> list[Value]:
        """The tensors that depend on the image, in order."""
        return [leaf for leaf in tree_flatten((self.arguments, self.keywords))[0] if isinstance(leaf, Value)]


@dataclass(frozen=True)
class Operations:
    """The operations of a forward.

    Attributes:
        calls: in order; operations that do not depend on the image are left out.
        values: of the tensors that depend on the image, at the time of their computation.
        output: of the forward.
    """

    calls: list[Operation]
    values: list[Tensor]
    output: Value


class _Tape(TorchDispatchMode):
    """Records operations on the image, in this thread, and runs them in the image's precision.

    A tensor is identified by its object. When memory is overwritten in place, the objects that share it are dropped, and reading one raises
    an error.
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Operation] = []
        self.values: list[Tensor] = []
        self.objects: list[Tensor] = []  # by number; stored so that no other tensor gets the id, or the memory, of one of them
        self.known: dict[int, Value] = {}
        self.written: dict[int, Tensor] = {}
        self.dtype = image.dtype
        self._enter(image)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, overwrites = kwargs or {}, func._schema.is_mutable
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        if self.written and any(id(each) not in self.known and _memory(each) in self.written for each in given):
            raise UnsupportedError(
                f"'{_name(func)}' reads a tensor that was overwritten in place, in part or as a part of another: its origin is unknown."
            )
        if not any(id(each) in self.known for each in given):
            return func(*args, **kwargs)
        kept = 1 if overwrites else 0  # the overwritten tensor stays the same object
        args, kwargs = (*args[:kept], *tree_map(self._precise, args[kept:])), tree_map(self._precise, kwargs)
        with self:
            simpler = func.decompose(*args, **kwargs)
        if simpler is not NotImplemented:
            return simpler
        arguments, keywords = tree_map(lambda leaf: self.known.get(id(leaf), leaf) if isinstance(leaf, Tensor) else leaf, (args, kwargs))
        if overwrites:
            self._before_writing(func, args)
        result = func(*args, **kwargs)
        if _name(func).startswith("new_") or _name(func).endswith("_like"):
            return result
        results = [
            self._enter(each) if isinstance(each, Tensor) and (overwrites or id(each) not in self.known) else None
            for each in (result if isinstance(result, (tuple, list)) else [result])
        ]
        if any(results):
            self.calls.append(Operation(func, tuple(arguments), keywords, tuple(results)))
        return result

    def _precise(self, given: Any) -> Any:
        if isinstance(given, torch.dtype):
            return self.dtype if given.is_floating_point else given
        return given.to(self.dtype) if isinstance(given, Tensor) and given.is_floating_point() else given

    def _enter(self, tensor: Tensor) -> Value:
        self.known[id(tensor)] = Value(len(self.values))
        self.values.append(tensor)
        self.objects.append(tensor)
        return self.known[id(tensor)]

    def _before_writing(self, func: Any, args: Any) -> None:
        """Stores the values that will be overwritten, and drops the tensors that hold them."""
        if not func._schema.name.endswith("_") or not isinstance(args[0], Tensor):
            raise UnsupportedError(f"'{_name(func)}' writes into one of its arguments: what is computed from that is unknown.")
        memory = _memory(args[0])
        self.written[memory] = args[0]
        for key, value in list(self.known.items()):
            if _memory(self.objects[value.number]) == memory:
                self.values[value.number] = self.objects[value.number].clone()
                del self.known[key]


def _name(func: Any) -> str:
    namespace, _, name = str(func._schema.name).partition("::")
    return name.rstrip("_") if namespace == "aten" else f"{namespace}::{name}"


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def operations(forward: Callable[[Tensor], Tensor], images: Tensor) -> Operations:
    """Runs a forward without gradients and records its operations.

    Args:
        forward: images → output.
        images: `(B, C, H, W)`. All operations that depend on them run in their precision, for any precision of the weights.

    Raises:
        UnsupportedError: a tensor is used that another operation partly overwrote, or the output is computed outside torch.
    """
    with torch.inference_mode():
        tape = _Tape(images.detach().clone())
        with tape:
            output = forward(tape.values[0])
    if id(output) not in tape.known:
        raise UnsupportedError("what the network returns is not computed from the images by functions of torch: it cannot be traced back.")
    return Operations(tape.calls, tape.values, tape.known[id(output)])
