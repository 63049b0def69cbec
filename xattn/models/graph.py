"""The autograd graph of a forward: what every path crosses, and what kinds of operation are where."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable

from torch import Tensor, nn
from torch.autograd.graph import Node

PARAMETRIC = ("AddmmBackward", "MmBackward", "ConvolutionBackward", "LinearBackward", "BmmBackward")
NORMALISATIONS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm")


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of what an operation gave."""
    metadata = node._input_metadata
    return tuple(metadata[0].shape) if metadata else ()


def is_a(node: Node, kinds: tuple[str, ...]) -> bool:
    """Whether an operation is of one of some kinds, by how their names begin."""
    return type(node).__name__.startswith(kinds)


def behind(root: Node, end: Collection[Node] = ()) -> list[Node]:
    """The operations that lead to a node, itself included, without those that lead to `end`."""
    seen: set[Node] = set(end)
    stack, found = [root], []
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            found.append(node)
            stack += [child for child, _ in node.next_functions if child is not None]
    return found


def dominators(root: Node) -> list[Node]:
    """Nodes on every path from the output to the image, in forward order.

    A node is on all paths when (paths from the root to it) × (paths from it to the image) is the number of all paths.
    """
    order, below = _topological(root)
    image = next((node for node in reversed(order) if type(node).__name__ == "AccumulateGrad" and _is_image(node)), None)
    if image is None:
        return []
    up: dict[Node, int] = defaultdict(int, {root: 1})
    for node in order:
        for child in below[node]:
            up[child] += up[node]
    down: dict[Node, int] = defaultdict(int, {image: 1})
    for node in reversed(order):
        if node is not image:
            down[node] = sum(down[child] for child in below[node])
    total = down[root]
    return [node for node in reversed(order) if node is not image and up[node] * down[node] == total]


def learnt(nodes: Iterable[Node]) -> int:
    """How many of some operations are convolutions or matrix products over several places of an image, in a forward of one image."""
    return sum(is_a(node, PARAMETRIC) and _places(shape_of(node)) > 1 for node in nodes)


def _places(shape: tuple[int, ...]) -> int:
    """In how many places the result of an operation on one image has values: 1 for a vector or a map of 1 × 1."""
    count = 1
    for length in shape[2:] if len(shape) == 4 else shape[:-1]:
        count *= length
    return count


def _is_image(node: Node) -> bool:
    shape = shape_of(node)
    variable: Tensor = node.variable  # type: ignore[attr-defined]
    return len(shape) == 4 and shape[0] == 1 and not isinstance(variable, nn.Parameter)


def _topological(root: Node) -> tuple[list[Node], dict[Node, list[Node]]]:
    below: dict[Node, list[Node]] = {}
    incoming: Counter[Node] = Counter()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in below:
            continue
        below[node] = [child for child, _ in node.next_functions if child is not None]
        for child in below[node]:
            incoming[child] += 1
            stack.append(child)
    ready, order = [root], []
    while ready:
        node = ready.pop()
        order.append(node)
        for child in below[node]:
            incoming[child] -= 1
            if incoming[child] == 0:
                ready.append(child)
    return order, below
