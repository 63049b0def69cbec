"""Finds where a network can be cut, from one probing forward.

A *cut point* is a tensor that every path from the image to the logits crosses: a dominator in the autograd graph of the logits.
Stages are the cut points between blocks. No architecture is hard-coded: ResNets, DenseNets with a functional ReLU before the pooling,
SqueezeNet's convolutional classifier and channels-last networks are all read from the same graph.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from xattn.errors import NameUnknownError, UnsupportedError
from xattn.models.concurrency import in_this_thread
from xattn.models.graph import NORMALISATIONS, PARAMETRIC, behind, dominators, is_a, learnt, shape_of
from xattn.models.outputs import map_in

Layout = Literal["NCHW", "NHWC"]

FARTHEST_ASPECT = math.log(2) + 1e-9  # 3 × 10 cells are right for an image of 48 × 160; so are 1 × 5
CHANNELS_FIRST = (
    "ConvolutionBackward",
    "MaxPool2D",
    "AvgPool2D",
    "AdaptiveAvgPool2D",
    "AdaptiveMaxPool2D",
    "NativeBatchNorm",
    "CudnnBatchNorm",
    "MiopenBatchNorm",
    "NativeGroupNorm",
    "Upsample",
    "PixelShuffle",
)


@dataclass(frozen=True)
class Stage:
    """A place where features are taken.

    Attributes:
        name: what the user writes: a module's dotted name, `name#2` for its second call, `name+relu` for a function applied to it.
        channels: number of channels.
        size: height and width of the map at the classifier's input size.
        stride: input height over map height.
        layout: axes of the tensor inside the network.
        module: dotted name of the hooked module.
        call: which call of that module, from 1.
        offset: for a function, how many torch functions after the module's call; None for the module's own output.
        calls: how often the module runs in one forward.
    """

    name: str
    channels: int
    size: tuple[int, int]
    stride: int
    layout: Layout
    module: str
    call: int = 1
    offset: int | None = None
    calls: int = 1


@dataclass
class _Event:
    """The output of a module or of a free function during the probe."""

    name: str
    module: str
    call: int
    offset: int | None
    node: Node
    shape: tuple[int, ...]
    children: list[_Event] = field(default_factory=list)
    is_function: bool = False
    has_parameters: bool = False
    reader: _Reader | None = None

    @property
    def is_block(self) -> bool:
        """Whether it is a module made of modules that learn; everything else is an operation."""
        return any(child.has_parameters for child in self.children)

    @property
    def map(self) -> _Map | None:
        return None if self.reader is None else self.reader.read(self.shape)

    @property
    def signature(self) -> tuple[int, int, int]:
        """Channels, height and width of a map."""
        found = self.map
        return (found.channels, found.height, found.width) if found else (0, 0, 0)

    @property
    def is_cut(self) -> bool:
        return self.map is not None and self.signature[1] * self.signature[2] > 1


class _Recorder(TorchFunctionMode):
    """Records the call tree of a forward: the output of each module and free function, with its place in the autograd graph."""

    def __init__(self, reader: _Reader) -> None:
        super().__init__()
        self.reader = reader
        self.root = _Event("", "", 1, None, None, ())  # type: ignore[arg-type]
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
            event = _Event(name, module, call, self.offset, result.grad_fn, tuple(result.shape), is_function=True, reader=self.reader)
            self.stack[-1].children.append(event)
        return result

    def enter(self, name: str) -> None:
        self.stack.append(_Event(name, name, 0, None, None, (), reader=self.reader))  # type: ignore[arg-type]

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
        else:  # what is inside may be a stage all the same
            self.stack[-1].children += event.children
        self.last, self.offset = (event.module, event.call), 0  # last, because reading a tensor's attributes counts as a function too


def _call_name(module: str, call: int) -> str:
    return module if call == 1 else f"{module}#{call}"


def find_stages(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, *, named: str = "the network") -> list[Stage]:
    """Finds a network's stages with one forward of one image.

    Args:
        network: the module whose submodules are named in the stages, in eval mode.
        forward: images `(1, 3, H, W)` → logits `(1, K)`, a vector or a map of logits, running `network`.
        image: `(1, 3, H, W)`.
        named: name of the network in errors.

    Returns:
        Stages in the order of the forward; the last is the tensor that enters the global pooling.

    Raises:
        UnsupportedError: no map with height and width lies between the image and the logits.
    """
    reader = _Reader(image.shape[-2] / image.shape[-1])
    recorder = _Recorder(reader)
    handles: list[RemovableHandle] = []
    for name, module in network.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(in_this_thread(lambda _m, _a, name=name: recorder.enter(name))))
            handles.append(module.register_forward_hook(in_this_thread(lambda m, _a, out: recorder.leave(m, out))))
    try:
        with torch.enable_grad(), recorder:
            image = image.detach().clone().requires_grad_()
            logits = forward(image)
    finally:
        for handle in handles:
            handle.remove()
    if logits.grad_fn is None:
        raise UnsupportedError(f"{named} passes no gradient from its logits to the image, so it has no stages to explain at.")

    chain = dominators(logits.grad_fn)
    if not chain:
        raise UnsupportedError(
            f"{named} lets no gradient reach the image (a part of it runs under no_grad?): explainers need one. Freeze parameters by "
            "requires_grad_(False) instead."
        )
    reader.learn(behind(logits.grad_fn))
    maps = [node for node in chain if (found := reader.read(shape_of(node))) and found.height * found.width > 1]
    events = _events_by_node(recorder.root)
    last = _last_map_before_pooling(logits.grad_fn, chain, maps, classes=logits.shape[1])
    while last is not None and last not in events:
        earlier = maps[: maps.index(last)]
        last = earlier[-1] if earlier else None
    if last is None:
        raise UnsupportedError(
            f"{named} has no spatial feature map between image and logits (a ViT has tokens alone): explainers need a map "
            "(batch, channels, height, width). Use a convolutional network, or Swin. The functions of xattn.metrics take any predict."
        )
    order = {node: position for position, node in enumerate(chain) if position <= chain.index(last)}
    cuts = _outermost(recorder.root, order, last)
    if not cuts or cuts[-1].node is not last:
        cuts.append(events[last][0])
    return [_stage(event, tuple(image.shape[-2:]), recorder.calls[event.module]) for event in cuts]


class _Map(NamedTuple):
    """A tensor of four axes read as a feature map."""

    layout: Layout
    channels: int
    height: int
    width: int


class _Reader:
    """Reads shapes as maps.

    What convolutions, poolings and their normalisations give is a map with channels first; what a layer norm gives over four axes is one
    with channels last, if its sides are as the image's. Another tensor of four axes (queries and values of an attention have four, too) is
    a map where its sides are those of one of these; in a network that has none of them, where they are as the image's.
    """

    def __init__(self, aspect: float) -> None:
        self.aspect = aspect
        self.first: set[tuple[int, ...]] = set()
        self.last: set[tuple[int, ...]] = set()

    def learn(self, nodes: Iterable[Node]) -> None:
        """Takes note of the sides of the maps among what a network's operations gave."""
        for node in nodes:
            shape = shape_of(node)
            if len(shape) != 4 or min(shape) < 1:
                continue
            if is_a(node, CHANNELS_FIRST):
                self.first.add(shape[2:])
            elif is_a(node, ("NativeLayerNorm",)) and self._off(_Map("NHWC", shape[3], shape[1], shape[2])) <= FARTHEST_ASPECT:
                self.last.add(shape[1:3])

    def read(self, shape: tuple[int, ...] | None) -> _Map | None:
        """The map of a shape; None where it is none."""
        if shape is None or len(shape) != 4 or min(shape) < 1:
            return None
        first, last = _Map("NCHW", *shape[1:]), _Map("NHWC", shape[3], shape[1], shape[2])
        if shape[2:] in self.first or (shape[2:] in self.last and shape[1:3] not in self.last):
            return first
        if shape[1:3] in self.last | self.first:
            return last
        return None if self.first or self.last else self.guess(shape, FARTHEST_ASPECT)

    def guess(self, shape: tuple[int, ...], farthest: float = math.inf) -> _Map | None:
        """The reading whose height over width is nearest to the image's, channels first where both are as near."""
        readings = (_Map("NCHW", *shape[1:]), _Map("NHWC", shape[3], shape[1], shape[2]))
        best = min(readings, key=self._off)
        return best if self._off(best) <= farthest else None

    def _off(self, found: _Map) -> float:
        return abs(math.log(found.height / found.width / self.aspect))


def _events_by_node(root: _Event) -> dict[Node, list[_Event]]:
    found: dict[Node, list[_Event]] = defaultdict(list)
    stack = list(root.children)
    while stack:
        event = stack.pop()
        found[event.node].append(event)
        stack.extend(event.children)
    return found


def _last_map_before_pooling(root: Node, chain: Sequence[Node], maps: Sequence[Node], *, classes: int) -> Node | None:
    """The map that enters the global pooling; or the map before a convolutional classifier, if no linear one follows the pooling."""
    if not maps:
        return None
    last = maps[-1]
    after = chain[chain.index(last) + 1 :]
    before = behind(last)
    if (tokens := learnt(behind(root, before))) and tokens >= learnt(before):
        return None  # most of what is learnt comes after the last map, over tokens: a vision transformer's patch embedding
    if not any(is_a(node, PARAMETRIC) for node in after) and (classifier := _convolutional_classifier(maps, classes)) is not None:
        maps = maps[: maps.index(classifier)] or maps
    while len(maps) > 1 and is_a(maps[-1], ("AdaptiveAvgPool2DBackward", "CloneBackward")):  # a pooling to 7 × 7, a change of layout
        maps = maps[:-1]
    return maps[-1]


def _convolutional_classifier(maps: Sequence[Node], classes: int) -> Node | None:
    """The 1×1 convolution that gives a map of logits; None if the last map holds features, whose mean is an embedding."""
    place = next((place for place in reversed(range(len(maps))) if is_a(maps[place], ("ConvolutionBackward",))), None)
    if place is None or any(shape_of(node)[1] != classes or is_a(node, NORMALISATIONS) for node in maps[place:]):
        return None
    weight: Tensor = maps[place]._saved_weight  # type: ignore[attr-defined]
    return maps[place] if weight.shape[2:].numel() == 1 else None


def _outermost(root: _Event, order: dict[Node, int], last: Node) -> list[_Event]:
    """The blocks that every path crosses; operations before the first block, or of one shape between blocks, count as one stage."""
    cuts = _expand(root, order, last, size=None)
    first_block = next((i for i, event in enumerate(cuts) if event.is_block), len(cuts))
    kept: list[_Event] = []
    for i, event in enumerate(cuts):
        following = cuts[i + 1] if i + 1 < len(cuts) else None
        if following is not None and not event.is_block and not following.is_block:
            in_stem = i < first_block < len(cuts)
            if in_stem or event.signature == following.signature:
                continue
        kept.append(event)
    return kept


def _expand(parent: _Event, order: dict[Node, int], last: Node, size: tuple[int, ...] | None) -> list[_Event]:
    """Children of a module that are cut points.

    A child is opened if its inner blocks change the resolution more than once, or if it spans the whole way from image to pooling.
    """
    cuts: list[_Event] = []
    for event in parent.children:
        inner = [e for e in _descendants(event) if e.node in order and e.is_cut]
        sizes = {e.signature[1:] for e in inner if e.is_block} - {size}
        whole = size is None and event.node is last
        if inner and (len(sizes) > 1 or whole):
            cuts.extend(_expand(event, order, last, size))
        elif event.node in order and event.is_cut:
            cuts.append(event)
        if cuts:
            size = cuts[-1].signature[1:]
    distinct: dict[Node, _Event] = {}
    for event in cuts:  # dropout and identity return their input: the first to give it names it
        if event.node not in distinct or (distinct[event.node].is_function and not event.is_function):
            distinct[event.node] = event
    return list(distinct.values())


def _descendants(event: _Event) -> Iterator[_Event]:
    for child in event.children:
        yield child
        yield from _descendants(child)


def _stage(event: _Event, image_size: tuple[int, ...], calls: int) -> Stage:
    found = event.map
    if found is None:
        raise UnsupportedError(f"stage '{event.name}' gives {event.shape}, which is no map (batch, channels, height, width).")
    stride = max(1, round(image_size[0] / found.height))
    return Stage(
        event.name, found.channels, (found.height, found.width), stride, found.layout, event.module, event.call, event.offset, calls
    )


def named_stage(network: nn.Module, forward: Callable[[Tensor], Tensor], image: Tensor, name: str, known: Sequence[Stage]) -> Stage:
    """A stage by name: one of those found, or any module of the network that gives a map.

    Raises:
        NameUnknownError: there is no module of that name.
        UnsupportedError: the module gives no map `(batch, channels, height, width)`, or is not run.
    """
    listed = {stage.name: stage for stage in known}
    if name in listed:
        return listed[name]
    modules = dict(network.named_modules())
    if name not in modules or not name:
        raise NameUnknownError("stage", name, listed, "Any other module of the network can be named as well.")
    shapes: list[tuple[int, ...] | None] = []

    def note(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = map_in(output)
        shapes.append(None if tensor is None else tuple(tensor.shape))

    handle = modules[name].register_forward_hook(in_this_thread(note))
    try:
        with torch.no_grad():
            forward(image)
    finally:
        handle.remove()
    shape = shapes[0] if shapes else None
    found = _Reader(image.shape[-2] / image.shape[-1]).guess(shape) if shape is not None and len(shape) == 4 and min(shape) > 0 else None
    if found is None:
        came = f"gives {shape}" if shape is not None else "is not run or gives no tensor"
        raise UnsupportedError(
            f"a stage needs a feature map (batch, channels, height, width); '{name}' {came}. Choose one of: {', '.join(listed)}."
        )
    stride = max(1, round(image.shape[-2] / found.height))
    return Stage(name, found.channels, (found.height, found.width), stride, found.layout, name, calls=len(shapes))
