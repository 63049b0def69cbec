"""The autograd graph of a forward: nodes that every path crosses, and the kinds of operations."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import Node

PARAMETRIC = ("AddmmBackward", "MmBackward", "ConvolutionBackward", "LinearBackward", "BmmBackward")
ATTENTIONS = ("ScaledDotProduct",)
RESCALING = (
    *("ViewBackward", "UnsafeViewBackward", "TransposeBackward", "PermuteBackward", "ExpandBackward", "CloneBackward", "ToCopyBackward"),
    *("AddBackward", "SubBackward", "MulBackward", "DivBackward", "MaskedFillBackward", "UnsqueezeBackward", "SqueezeBackward"),
    *("ReshapeAliasBackward", "TBackward", "SelectBackward", "AliasBackward"),
)
CHOICES = ("GatherBackward", "IndexBackward", "IndexSelectBackward", "TopkBackward")
NORMALISATIONS = ("NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeLayerNorm", "NativeGroupNorm")


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of an operation's result."""
    metadata = node._input_metadata
    return tuple(metadata[0].shape) if metadata else ()


def is_a(node: Node, kinds: tuple[str, ...]) -> bool:
    """Whether an operation is of one of some kinds, by the beginning of its name."""
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


@dataclass(frozen=True)
class Origins:
    """The inputs from which the results of a forward's operations are computed.

    Attributes:
        image: operations that depend on the image.
        queries: for operations that depend on an attention with learnt queries, the number of these queries. If the queries, or the scores
            of the attention, are weights and do not depend on the image, it pools the positions of the image to a few vectors.
        chosen: operations that depend on a choice among tokens, such as which tokens to keep.
    """

    image: Set[Node]
    queries: Mapping[Node, Set[int]]
    chosen: Set[Node]

    def learnt(self, nodes: Iterable[Node]) -> int:
        """Number of convolutions or products with weights over several positions of an image, among some operations of one image's
        forward."""
        products = [node for node in nodes if is_a(node, PARAMETRIC) and node in self.image]
        found = [node for node in products if any(factor not in self.image for factor in _factors(node))]
        return sum(_places(shape_of(node)) > 1 and not self.is_pooled(node) for node in found)

    def is_pooled(self, node: Node) -> bool:
        """Whether the rows of an operation's result belong to learnt queries or chosen tokens, instead of fixed positions."""
        shape = shape_of(node)
        return _places(shape) in self.queries.get(node, ()) or (len(shape) == 3 and node in self.chosen)


def origins(root: Node, again: Callable[[], Node]) -> Origins:
    """The origins of the operations that lead to a node.

    Args:
        root: the node.
        again: returns the node for another image, to find which choices among tokens depend on the image.
    """
    order, below = _topological(root)
    choices = _choices(order, again)
    image: set[Node] = set()
    chosen: set[Node] = set()
    queries: dict[Node, set[int]] = {}
    for node in reversed(order):
        if (type(node).__name__ == "AccumulateGrad" and _is_image(node)) or any(child in image for child in below[node]):
            image.add(node)
        if found := _learnt_queries(node, image).union(*(queries[child] for child in below[node] if child in queries)):
            queries[node] = found
        if any(child in chosen for child in below[node]) or (node in image and node in choices):
            chosen.add(node)
    return Origins(image, queries, chosen)


def _choices(order: Sequence[Node], again: Callable[[], Node]) -> set[Node]:
    """The operations that select several rows, which differ for another image; a single row is a class token."""
    places = [place for place, node in enumerate(order) if _takes_some_rows(node)]
    if not places:
        return set()
    others, _ = _topological(again())
    is_same = len(others) == len(order)
    return {order[place] for place in places if not (is_same and _have_same_rows(order[place], others[place]))}


def _takes_some_rows(node: Node) -> bool:
    if not is_a(node, CHOICES) or len(shape_of(node)) not in (2, 3):
        return False
    before = node.next_functions[0][0]
    return before is not None and 1 < _places(shape_of(node)) < _places(shape_of(before))


def _have_same_rows(one: Node, other: Node) -> bool:
    found, found_there = _rows_taken(one), _rows_taken(other)
    return len(found) == len(found_there) and all(a.equal(b) for a, b in zip(found, found_there, strict=True))


def _rows_taken(choice: Node) -> list[Tensor]:
    kept = getattr(choice, "_saved_indices", None)
    kept = getattr(choice, "_saved_index", None) if kept is None else kept
    return [rows for rows in (kept if isinstance(kept, tuple) else (kept,)) if rows is not None]


def _learnt_queries(node: Node, image: Set[Node]) -> set[int]:
    shape = shape_of(node)
    if is_a(node, ATTENTIONS):
        return set() if node.next_functions[0][0] in image else {shape[-2]}
    if is_a(node, ("SoftmaxBackward",)) and len(shape) > 2 and (scores := _scores(node)):
        over_rows = node._saved_dim in (len(shape) - 2, 2**64 - 2)  # type: ignore[attr-defined]  # stored as an unsigned integer
        count = shape[-1 if over_rows else -2]
        return {count} if all(count in _learnt_sides(product, image) for product in scores) else set()
    return set()


def _learnt_sides(product: Node, image: Set[Node]) -> set[int]:
    """The sizes of the axes of a product that come from factors that do not depend on the image."""
    factors = _factors(product)
    if is_a(product, ("ConvolutionBackward",)):  # its channels come first and come from its weights
        factors.reverse()
    return {side for side, factor in zip(shape_of(product)[-2:], factors, strict=True) if factor not in image}


def _scores(softmax: Node) -> list[Node]:
    """The products that enter a softmax, before they are scaled, masked, mixed over heads by a convolution, and rearranged."""
    found, stack = [], [softmax]
    sides = sorted(shape_of(softmax)[-2:])
    while stack:
        for child, _ in stack.pop().next_functions:
            has_sides = child is not None and sorted(shape_of(child)[-2:]) == sides
            if child is not None and is_a(child, (*PARAMETRIC, "BaddbmmBackward")):
                if has_sides and is_a(child, ("ConvolutionBackward",)):
                    stack.append(child)
                elif has_sides:
                    found.append(child)
            elif child is not None and is_a(child, RESCALING):
                stack.append(child)
    return found


def _factors(product: Node) -> list[Node | None]:
    """The factors of a convolution or product, in order; None for weights without a gradient."""
    factors = [child for child, _ in product.next_functions]
    return factors[1:3] if is_a(product, ("AddmmBackward", "BaddbmmBackward")) else factors[:2]


def _places(shape: tuple[int, ...]) -> int:
    """Number of positions of an operation's result for one image: 1 for a vector or a map of 1 × 1."""
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
