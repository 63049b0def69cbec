"""Finds the stages of a network, where it can be cut, from one probing forward.

A *cut point* is a tensor that every path from the image to the output crosses: a dominator in the autograd graph of the output.
Stages are the cut points between blocks. No architecture is hard-coded: ResNets, DenseNets with a functional ReLU before the pooling,
SqueezeNet's convolutional classifier, channels-last networks and the tokens of transformers are all read from the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from xattn.errors import NameUnknownError, UnsupportedError
from xattn.models.capture import tapped
from xattn.models.graph import NORMALISATIONS, PARAMETRIC, Origins, behind, dominators, is_a, origins, shape_of
from xattn.models.layout import Layout, Place, Stage, to_nchw
from xattn.models.reader import FARTHEST_ASPECT, Map, Reader
from xattn.models.recorder import Event, Record, recorded
from xattn.models.tokens import token_layouts

Forward = Callable[[Tensor], Tensor]

REORDERING = (
    "SliceBackward",
    "AliasBackward",
    "TransposeBackward",
    "PermuteBackward",
    "ViewBackward",
    "CloneBackward",
    "UnsafeViewBackward",
)
POOLED = "the last map that every path from the image to the output crosses: it enters the pooling"
BEFORE_CLASS = "the last map whose cells the output depends on: behind it, only other tokens reach the output, such as a class token"
CROSSED = "a map that every path from the image to the output crosses"
NAMED = "named; the output may depend on the image by other paths, too"
PIECES = "several copies or pieces of an image, such as flips, crops or tiles, whose maps are not one map of the image"
GUESSED = "named, and a guess: which of its axes are height and width is told by the image's aspect alone"


@dataclass(frozen=True)
class Stages:
    """The stages of a network: the places where it can be cut.


    Attributes:
        stages: in the order of the forward; the last is the default. Empty if no map lies on every path.
        behind: maps after the default stage that do not affect the network's own output, but that a head can read.
        reason: why there is no default; empty if there is one.
        reader: reads other tensors of the network as maps.
        pooled: for a last map of tokens, the tokens from which the output is computed: a class token, or those that are averaged.
    """

    stages: tuple[Stage, ...]
    behind: tuple[Stage, ...]
    reason: str
    reader: Reader
    pooled: tuple[int, ...] = ()

    @property
    def tokens(self) -> tuple[Stage, ...]:
        """The maps with the same tokens as the last one; empty if it is not a map of tokens, or if the tokens change before it."""
        every = [stage for stage in (*self.stages, *self.behind) if stage.layout.grid != (0, 0)]
        same = tuple(stage for stage in every if stage.layout == every[-1].layout)
        return same if all(stage.layout.grid == every[-1].layout.grid for stage in every) else ()


def find_stages(network: nn.Module, forward: Forward, image: Tensor, *, named: str = "the network") -> Stages:
    """Finds a network's stages with one forward of one image, and one of seven images if it works on tokens.

    Args:
        network: the module whose submodules are named in the stages, in eval mode.
        forward: images `(B, 3, H, W)` → the output, running `network`.
        image: `(1, 3, H, W)`.
        named: name of the network in errors.

    Raises:
        UnsupportedError: no gradient of the output reaches the image.
    """
    record = recorded(network, forward, image)
    root = record.output.grad_fn
    if root is None:
        raise UnsupportedError(f"{named} passes no gradient from its logits to the image, so it has no stages to explain at.")
    chain = dominators(root)
    if not chain:
        raise UnsupportedError(
            f"{named} passes no gradient to the image, which explainers need (does a part of it run under no_grad?). Freeze "
            f"parameters by requires_grad_(False) instead."
        )
    every = behind(root)
    if any(is_a(node, ("CheckpointFunctionBackward",)) for node in every):
        raise UnsupportedError(
            f"{named} runs a part under torch.utils.checkpoint with use_reentrant=True, which hides its operations: switch it off, "
            f"or set use_reentrant=False."
        )
    reader = Reader(image.shape[-2] / image.shape[-1])
    reader.learn(every)
    made = origins(root, lambda: _root(forward, 1 - image))
    chain = [node for node in chain if not made.is_pooled(node)]
    events = record.by_node()
    gradients: dict[Node, Tensor] = {}
    last = final = _last_map_before_pooling(root, chain, reader.maps(chain), made, classes=record.output.shape[1])
    if last is None or _is_embedding(root, last, made):
        reader.tokens.update(_token_layouts(network, forward, image, chain, events))
        if tokens := [node for node in reader.maps(chain) if len(shape_of(node)) == 3]:
            maps = reader.maps(chain)
            gradients = _gradients(record, chain, maps[: maps.index(tokens[-1]) + 1])
            own = behind(tokens[-1])
            is_end = made.learnt(behind(root, own)) < made.learnt(own)
            last, final = (_last_reached(gradients, reader), tokens[-1]) if is_end else (None, None)
    elif norms := _norms_of_tokens(root, last, chain, made):
        before = reader.read(shape_of(last))
        assert before is not None  # it is one of the maps
        cells = Layout("NLC", grid=(before.height, before.width))
        reader.tokens.update(_token_layouts(network, forward, image, norms, events, cells))
        last = final = [last, *reader.maps(norms)][-1]
    known = [node for node in reader.maps(chain) if node in events]
    last, final = (_before_reordering(_last_until(end, known, chain), known) for end in (last, final))
    if last is None or final is None:
        return Stages((), (), _why_none(named, known, chain), reader)
    order = {node: position for position, node in enumerate(chain) if position <= chain.index(final)}
    cuts = _outermost(record.root, order, final, reader)
    cuts += [events[node][0] for node in dict.fromkeys([last, final]) if all(event.node is not node for event in cuts)]
    cuts.sort(key=lambda event: order[event.node])
    count = cuts.index(next(event for event in cuts if event.node is last)) + 1
    found = [_stage(event, reader.read(event.shape), image, record, CROSSED) for event in cuts]
    found[count - 1] = replace(found[count - 1], found=POOLED if last is final else BEFORE_CLASS)
    return Stages(tuple(found[:count]), tuple(found[count:]), "", reader, _moved_tokens(gradients.get(final), reader))


def _last_until(end: Node | None, maps: Sequence[Node], chain: Sequence[Node]) -> Node | None:
    """The last of some maps that is not after an end; None without an end."""
    if end is None:
        return None
    place = chain.index(end)
    return next((node for node in reversed(maps) if chain.index(node) <= place), None)


def _root(forward: Forward, image: Tensor) -> Node:
    """The operation that computes the output for an image."""
    with torch.enable_grad():
        found = forward(image.detach().requires_grad_()).grad_fn
    assert found is not None  # as for the first image
    return found


def _before_reordering(end: Node | None, maps: Sequence[Node]) -> Node | None:
    """A map of tokens before its tokens are sliced or its axes are swapped, which do not count as steps of the network."""
    while end is not None and len(shape_of(end)) == 3 and is_a(end, REORDERING) and maps.index(end) > 0:
        before = maps[maps.index(end) - 1]
        if len(shape_of(before)) != 3:
            break
        end = before
    return end


def _why_none(named: str, maps: Sequence[Node], chain: Sequence[Node]) -> str:
    if not maps and any(is_a(node, ("ConvolutionBackward",)) and shape_of(node)[:1] != (1,) for node in chain):
        return f"{named} makes {PIECES}"
    if not maps:
        return f"{named} has no feature map that every path from the image to its output crosses"
    return f"most of what {named} has learnt comes after its last feature map, on tensors that are no maps"


def _last_map_before_pooling(root: Node, chain: Sequence[Node], maps: Sequence[Node], made: Origins, *, classes: int) -> Node | None:
    """The map that enters the global pooling; or the map before a convolutional classifier, if no linear one follows the pooling."""
    if not maps:
        return None
    last = maps[-1]
    after = chain[chain.index(last) + 1 :]
    before = behind(last)
    if (tokens := made.learnt(behind(root, before))) and tokens >= made.learnt(before):
        return None  # most learnt layers come after the last map, over tokens: it is a vision transformer's patch embedding
    if not any(is_a(node, PARAMETRIC) for node in after) and (classifier := _convolutional_classifier(maps, classes)) is not None:
        maps = maps[: maps.index(classifier)] or maps
    while len(maps) > 1 and is_a(maps[-1], ("AdaptiveAvgPool2DBackward", "CloneBackward")):  # a pooling to 7 × 7, a change of layout
        maps = maps[:-1]
    return _before_power(maps)


def _before_power(maps: Sequence[Node]) -> Node:
    """The last map, before the power of a generalised mean (GeM) or the exponential of a log-sum-exp: these belong to the pooling."""
    place = len(maps) - 1
    while place > 0 and is_a(maps[place], ("PowBackward", "ExpBackward")):
        place -= 1
    clamped = place > 0 and place < len(maps) - 1 and (getattr(maps[place], "_saved_min", None) or 0) > 0  # the lower bound of GeM
    return maps[place - 1 if clamped else place]


def _norms_of_tokens(root: Node, last: Node, chain: Sequence[Node], made: Origins) -> list[Node]:
    """Normalisations of tokens between the last map of four axes and the pooling; none if a layer there has weights over positions."""
    if made.learnt(behind(root, behind(last))):
        return []
    return [node for node in chain[chain.index(last) + 1 :] if len(shape_of(node)) == 3 and is_a(node, NORMALISATIONS)]


def _is_embedding(root: Node, last: Node, made: Origins) -> bool:
    """Whether a map is a convolution's, with neither norm nor activation, and a later layer has weights over its positions."""
    return is_a(last, ("ConvolutionBackward",)) and made.learnt(behind(root, behind(last))) > 0


def _convolutional_classifier(maps: Sequence[Node], classes: int) -> Node | None:
    """The 1×1 convolution that computes a map of logits; None if the last map holds features, whose mean is an embedding."""
    place = next((place for place in reversed(range(len(maps))) if is_a(maps[place], ("ConvolutionBackward",))), None)
    if place is None or any(shape_of(node)[1] != classes or is_a(node, NORMALISATIONS) for node in maps[place:]):
        return None
    weight: Tensor = maps[place]._saved_weight  # type: ignore[attr-defined]
    return maps[place] if weight.shape[2:].numel() == 1 else None


def _outermost(root: Event, order: dict[Node, int], last: Node, reader: Reader) -> list[Event]:
    """The blocks that every path crosses; operations before the first block, or of one shape between blocks, count as one stage."""
    cuts = _expand(root, order, last, reader, size=None)
    first_block = next((i for i, event in enumerate(cuts) if event.is_block), len(cuts))
    kept: list[Event] = []
    for i, event in enumerate(cuts):
        following = cuts[i + 1] if i + 1 < len(cuts) else None
        if following is not None and not event.is_block and not following.is_block:
            in_stem = i < first_block < len(cuts)
            if in_stem or reader.signature(event) == reader.signature(following):
                continue
        if following is not None and following.is_block and not event.is_block and len(event.shape) == len(following.shape) == 3:
            continue  # a position added to tokens, a dropout of them
        kept.append(event)
    return kept


def _expand(parent: Event, order: dict[Node, int], last: Node, reader: Reader, size: tuple[int, ...] | None) -> list[Event]:
    """Children of a module that are cut points.

    A child is expanded if its inner blocks change the resolution more than once or are several blocks of tokens, or if it spans the whole
    path from image to pooling.
    """
    cuts: list[Event] = []
    for event in parent.children:
        inner = [e for e in event.descendants() if e.node in order and reader.is_map(e.shape)]
        sizes = {reader.signature(e)[1:] for e in inner if e.is_block} - {size}
        blocks = {e.node for e in inner if e.is_block and len(e.shape) == 3}
        whole = size is None and event.node is last
        if inner and (len(sizes) > 1 or len(blocks) > 1 or whole):
            cuts.extend(_expand(event, order, last, reader, size))
        elif event.node in order and reader.is_map(event.shape):
            cuts.append(event)
        if cuts:
            size = reader.signature(cuts[-1])[1:]
    distinct: dict[Node, Event] = {}
    for event in cuts:  # dropout and identity return their input: the first call that returns it names it
        if event.node not in distinct or (distinct[event.node].is_function and not event.is_function):
            distinct[event.node] = event
    return list(distinct.values())


def _token_layouts(
    network: nn.Module,
    forward: Forward,
    image: Tensor,
    chain: Sequence[Node],
    events: Mapping[Node, Sequence[Event]],
    known: Layout | None = None,
) -> dict[tuple[int, ...], Layout]:
    """Layouts of the shapes of three axes among some operations."""
    first: dict[tuple[int, ...], Event] = {}
    for node in chain:
        if len(shape_of(node)) == 3 and node in events:
            first.setdefault(shape_of(node), events[node][0])
    return _layouts_of(network, forward, image, list(first.values()), known)


def _layouts_of(
    network: nn.Module, forward: Forward, image: Tensor, events: Sequence[Event], known: Layout | None = None
) -> dict[tuple[int, ...], Layout]:
    """Layouts by shape, for the outputs of three axes that are maps of tokens."""

    def capture(images: Tensor) -> dict[str, Tensor]:
        kept: dict[str, Tensor] = {}

        def keep(place: Place, tensor: Tensor) -> None:
            kept[place.name] = tensor.detach()

        with torch.no_grad(), tapped(network, events, keep):
            forward(images)
        return kept

    if not events:
        return {}
    shapes = {event.name: event.shape for event in events}
    return {shapes[name]: layout for name, layout in token_layouts(capture, image, shapes, FARTHEST_ASPECT, known).items()}


def _last_reached(gradients: Mapping[Node, Tensor], reader: Reader) -> Node | None:
    """The last of some maps that has a cell with a gradient; a class token is not a cell."""
    reached = [node for node, gradient in gradients.items() if _cells(gradient, reader).any()]
    every: list[Node] = reached or [*gradients]
    return every[-1] if every else None


def _moved_tokens(gradient: Tensor | None, reader: Reader) -> tuple[int, ...]:
    """The indices of the tokens that have a gradient."""
    found = None if gradient is None else reader.read(tuple(gradient.shape))
    if gradient is None or found is None:
        return ()
    return tuple(found.layout.tokens(gradient)[0].any(dim=1).nonzero()[:, 0].tolist())


def _gradients(record: Record, chain: Sequence[Node], maps: Sequence[Node]) -> dict[Node, Tensor]:
    """The gradients of some maps on a chain, in its order.

    They are gradients of the pooled last map, so that a classifier of zeros, as before training, does not matter.
    """
    gradients: dict[Node, Tensor] = {}

    def keep(node: Node) -> Callable[[tuple[Tensor | None, ...]], None]:
        def hook(found: tuple[Tensor | None, ...]) -> None:
            if found[0] is not None:
                gradients[node] = found[0]

        return hook

    def start(found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_noise(found[0]), *found[1:])

    handles = [node.register_prehook(keep(node)) for node in maps]
    handles += [node.register_prehook(start) for node in chain[chain.index(maps[-1]) + 1 :][:1]]
    try:
        torch.autograd.grad(record.output, record.image, _noise(record.output), retain_graph=True)
    finally:
        for handle in handles:
            handle.remove()
    return {node: gradients[node] for node in maps if node in gradients}


def _noise(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)


def _cells(tensor: Tensor, reader: Reader) -> Tensor:
    found = reader.read(tuple(tensor.shape))
    return tensor if found is None else to_nchw(tensor, found.layout)


def _stage(event: Event, found: Map | None, image: Tensor, record: Record, how: str) -> Stage:
    if found is None:
        raise UnsupportedError(f"stage '{event.name}' gives {event.shape}, which is not a map (batch, channels, height, width).")
    return Stage(
        event.name,
        found.channels,
        (found.height, found.width),
        max(1, round(image.shape[-2] / found.height)),
        found.layout,
        event.module,
        event.call,
        event.offset,
        record.calls[event.module],
        how,
    )


def named_stage(network: nn.Module, forward: Forward, image: Tensor, name: str, known: Stages) -> Stage:
    """A stage by name: one of those found, or any module of the network whose output is a map, of positions or of tokens.

    Raises:
        NameUnknownError: there is no module of that name.
        UnsupportedError: the module's output is not a map, or it is not run.
    """
    listed = {stage.name: stage for stage in (*known.stages, *known.behind)}
    if name in listed:
        return listed[name]
    if not name or name.partition("#")[0].partition("+")[0] not in dict(network.named_modules()):
        raise NameUnknownError("stage", name, listed, "Any other module of the network can be named as well.")
    record = recorded(network, forward, image)
    event = next((event for event in record.root.descendants() if event.name == name), None)
    found, how = None, NAMED
    if event is not None:
        found = known.reader.read(event.shape)
        if found is None and len(event.shape) == 3:
            known.reader.tokens.update(_layouts_of(network, forward, image, [event]))
            found = known.reader.read(event.shape)
        if found is None:
            found, how = known.reader.guess(event.shape), GUESSED
    if event is None or found is None:
        came = f"gives {event.shape}" if event is not None else "is not run or gives no tensor that depends on the image"
        if event is not None and len(event.shape) == 4 and event.shape[0] != 1:
            came += f" for one image: the network makes {PIECES}"
        choice = f"Choose one of: {', '.join(listed)}." if listed else "Name another module."
        raise UnsupportedError(
            f"a stage needs a feature map (batch, channels, height, width), or tokens (batch, tokens, channels) that are cells of one; "
            f"'{name}' {came}. {choice}"
        )
    return _stage(event, found, image, record, how)
