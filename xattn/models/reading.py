"""Reads the explained output from a network's return value: finds the tensor, and the meaning of its values."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from xattn.errors import InputError, NameUnknownError, UnsupportedError
from xattn.metrics.probability import SUM_TOLERANCE, log_odds
from xattn.models.graph import PARAMETRIC, behind, is_a
from xattn.registry import is_integer

logger = logging.getLogger("xattn")

OUTPUT_KEYS = ("logits", "out")  # in transformers, and in torchvision's segmentation networks
DENSE = torch.strided
SOFTMAX, SIGMOID = ("SoftmaxBackward",), ("SigmoidBackward",)


@dataclass(frozen=True)
class OutputReader:
    """Reads the explained output from a network's return value.

    Attributes:
        network: name of the network in messages.
        path: of the tensor in the return value, such as `1`, `logits` or `heads.0`; None: the one named `logits` or `out`, the only tensor,
            or the first of a tuple with two axes.
        probabilities: whether its values are probabilities. Their logarithms are then used as logits, or their log-odds if `separate`.
        separate: whether each probability is independent, as for several labels, instead of summing to one.
        binary: whether it is one logit z, which is returned as the logits (−z/2, z/2) of two classes, whose softmax is (1 − σ(z), σ(z)).
        dense: whether it is a map of logits, in which a class is explained over a region.
    """

    network: str
    path: str | None = None
    probabilities: bool = False
    separate: bool = False
    binary: bool = False
    dense: bool = False

    def __call__(self, output: Any) -> Tensor:
        """The explained output: logits `(B, K)`, vectors `(B, D)` or maps of logits `(B, K, h, w)`.

        Raises:
            UnsupportedError: there is no such output.
        """
        found = self.select(output)
        if self.probabilities:
            found = log_odds(found) if self.separate else found.clamp(min=torch.finfo(found.dtype).tiny).log()
        return torch.cat([-found / 2, found / 2], dim=1) if self.binary else found

    def select(self, output: Any) -> Tensor:
        """The explained tensor, unchanged.

        Raises:
            UnsupportedError: there is none.
        """
        found: Any = output
        if not isinstance(output, Tensor):
            found = _by_name(output) if self.path is None else _at(output, self.path)
        if isinstance(found, Tensor) and (found.dim() == 1 or found.numel() == 1):
            found = found.reshape(-1, 1)  # one value per image, whose axis of size one was squeezed
        if isinstance(found, Tensor) and found.dim() == 4 and found.shape[2:] == (1, 1):
            found = found.flatten(1)
        if not isinstance(found, Tensor) or found.dim() not in (2, 4) or not found.shape[1] or found.is_complex() or found.layout != DENSE:
            raise UnsupportedError(_without_output(self.network, found if isinstance(found, Tensor) else output))
        return found


def _without_output(name: str, came: Any) -> str:
    shown: object = type(came).__name__
    if isinstance(came, Tensor):
        kind = f"{came.dtype} " if came.is_complex() else "" if came.layout == DENSE else f"{came.layout} "
        shown = f"{kind}{tuple(came.shape)}"
    return (
        f"{name} must give logits (batch, classes), or a map of logits (batch, classes, height, width), alone or as 'logits' or in a "
        f"tuple; it gave {shown}."
    )


def _parts(output: Any) -> list[tuple[str, Any]]:
    """The parts of an output, by name, or by position in a tuple or list."""
    if isinstance(output, Mapping):
        return [(str(key), value) for key, value in output.items()]
    if isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", range(len(output)))
        return [(str(name), value) for name, value in zip(names, output, strict=True)]
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    return []


def _paths(output: Any, before: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in an output by their paths, in order."""
    for name, value in _parts(output):
        if isinstance(value, Tensor):
            yield f"{before}{name}", value
        else:
            yield from _paths(value, f"{before}{name}.")


def _at(output: Any, path: str) -> Any:
    """The part of an output at a path; None if there is none."""
    found = output
    for name in path.split("."):
        parts = _parts(found)
        named = dict(parts)
        if name in named:
            found = named[name]
        elif is_integer(name) and -len(parts) <= int(name) < len(parts):
            found = parts[int(name)][1]
        else:
            found = getattr(found, name, None)
    return found


def _by_name(output: Any) -> Any:
    if isinstance(output, Mapping):
        return next((output[key] for key in OUTPUT_KEYS if key in output), None)
    for key in OUTPUT_KEYS:
        if isinstance(getattr(output, key, None), Tensor):
            return getattr(output, key)
    if isinstance(output, (tuple, list)):
        return next((item for item in output if isinstance(item, Tensor) and item.dim() == 2), None)
    return None


def output_reader(
    run: Callable[[Tensor], Any],
    images: Tensor,
    name: str,
    *,
    asked: str | int | None = None,
    multi_label: bool = False,
    regression: bool = False,
) -> tuple[OutputReader, int]:
    """Finds how a network's output is read, and its number of classes, from its return value for some images; decisions are logged.

    Args:
        run: images `(1, C, H, W)` → what the network returns.
        images: different images `(N, C, H, W)`; one is run if its output cannot be probabilities.
        name: of the network in messages.
        asked: which of several outputs the user wants, by name or position; None: it is found.
        multi_label: whether the outputs are independent labels.
        regression: whether the outputs are values, not classes.

    Raises:
        UnsupportedError: there is no output, or several could be meant.
        NameUnknownError: there is no output of that name.
    """
    with torch.enable_grad():
        first = images[:1].detach().requires_grad_()
        output = run(first)
    reader = OutputReader(name, _path(output, name, asked))
    values = reader.select(output)
    if values.shape[0] != 1 or (_squeezed(output, reader.path) and reader.select(run(images[:2])).shape != (2, 1)):
        raise UnsupportedError(_without_output(name, values))
    if values.dim() == 4:
        reader = replace(reader, dense=True)
        logger.warning(
            "%s gives a map of logits, %d classes on %d × %d cells: a class is explained over the cells that are predicted as it.",
            name,
            max(2, values.shape[1]),
            *values.shape[2:],
        )
    if regression or not values.is_floating_point():
        return reader, values.shape[1]
    single = values.shape[1] == 1
    kind = _probabilities(values, lambda: [reader.select(run(image[None])) for image in images[1:]])
    separate = kind is not None and (single or multi_label or kind == "sigmoid")
    binary = single and not multi_label
    if kind is not None:
        logger.warning(
            "%s gives probabilities (%s): the score of a class is the %s of its probability. Maps are sharper from a network that "
            "returns logits: where a probability reaches 1, its gradient is zero.",
            name,
            "a sigmoid is its last operation" if separate and kind == "sigmoid" else "its rows sum to one",
            "log-odds" if separate else "logarithm",
        )
        if kind == "sigmoid" and not single and not multi_label:
            logger.warning("%s gives a probability for each of several labels: it is explained as multi-label.", name)
    if binary:
        logger.warning(
            "%s gives one value per image: it is treated as the logit z of two classes, 1 (positive) with the score z/2 and 0 with -z/2, "
            "whose softmax is the sigmoid of z and its complement. For a single label use multi_label=True (--multi-label); for a "
            "value that is not a logit use regression=True (--regression).",
            name,
        )
    reader = replace(reader, probabilities=kind is not None, separate=separate, binary=binary)
    return reader, 2 if binary else values.shape[1]


def _squeezed(output: Any, path: str | None) -> bool:
    found = output if isinstance(output, Tensor) else _by_name(output) if path is None else _at(output, path)
    return isinstance(found, Tensor) and found.dim() < 2


def _probabilities(values: Tensor, others: Callable[[], Sequence[Tensor]]) -> str | None:
    """Whether values are probabilities: "softmax" if each row sums to one, "sigmoid" if each is independent; None if they are not.

    Args:
        values: of one image, with their graph.
        others: returns the values of other images.
    """
    single = values.shape[1] == 1
    activated = any(is_a(node, SIGMOID + SOFTMAX * single) for node in _after_last_layer(values.grad_fn))
    candidates = ["softmax"] * (not single) + ["sigmoid"] * activated
    candidates = [kind for kind in candidates if _are_probabilities(values, kind)]
    rest = others() if candidates else []
    return next((kind for kind in candidates if all(_are_probabilities(each, kind) for each in rest)), None)


def _are_probabilities(values: Tensor, kind: str) -> bool:
    wide = values.detach().double()
    inside = bool(((wide >= 0) & (wide <= 1 + SUM_TOLERANCE)).all())
    return inside and (kind == "sigmoid" or bool(((wide.sum(dim=1) - 1).abs() <= SUM_TOLERANCE).all()))


def _after_last_layer(root: Node | None) -> list[Node]:
    """The operations after the last layer with weights."""
    seen: set[Node] = set()
    stack = [] if root is None else [root]
    while stack:
        node = stack.pop()
        if node not in seen and not is_a(node, PARAMETRIC):
            seen.add(node)
            stack += [child for child, _ in node.next_functions if child is not None]
    return list(seen)


def _path(output: Any, name: str, asked: str | int | None) -> str | None:
    """The path of the explained tensor; None if it is clear from its name or the tensor is the only one."""
    found = dict(_paths(output))
    if asked is not None:
        if isinstance(output, Tensor):
            raise InputError(f"output {asked!r} chooses among several outputs; {name} returns one tensor {_shape(output)}: leave it out.")
        if not isinstance(_at(output, str(asked)), Tensor):
            raise NameUnknownError(f"output of {name}", str(asked), found, f"It returns {_listed(found)}.")
        return str(asked)
    if isinstance(output, Tensor) or (isinstance(_by_name(output), Tensor) and not isinstance(output, (tuple, list))):
        return None
    if any(isinstance(getattr(output, key, None), Tensor) for key in OUTPUT_KEYS):  # of a named tuple
        return None
    usable = {path: tensor for path, tensor in found.items() if _is_output(tensor)}
    if any(tensor.grad_fn is not None for tensor in usable.values()):
        usable = {path: tensor for path, tensor in usable.items() if tensor.grad_fn is not None}  # others are constants
    named = [path for path in usable if path.rpartition(".")[2] in OUTPUT_KEYS]
    if len(named) == 1:
        return named[0]
    chosen = _final(usable)
    if len(chosen) != 1 and usable:
        raise UnsupportedError(
            f"{name} returns {_listed(found)}, and it is unclear which are the logits: set output={next(iter(usable))!r} or its "
            "position, on the command line --output."
        )
    if not usable:
        raise UnsupportedError(_without_output(name, output))
    if len(usable) > 1:
        logger.warning("%s returns %s: the logits are '%s', which the others lead to.", name, _listed(found), chosen[0])
    return chosen[0]


def _is_output(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and len(tensor.shape) in (1, 2, 4) and tensor.shape[0] == 1 and (tensor.dim() > 1 or len(tensor) == 1)


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(['batch', *map(str, tensor.shape[1:])])})" if tensor.dim() and len(tensor) == 1 else f"{tuple(tensor.shape)}"


def _listed(found: Mapping[str, Tensor]) -> str:
    return ", ".join(f"'{path}' {_shape(tensor)}" for path, tensor in found.items())


def _final(usable: Mapping[str, Tensor]) -> list[str]:
    """The paths of the outputs, with one row per image, from which no other output is computed: the logits, if there is one path.

    A function of another output without weights of its own, such as probabilities or entropy next to the logits, does not count. Maps count
    only if there is nothing else.
    """
    if len(usable) == 1:
        return list(usable)
    ends = {
        tensor.grad_fn: path for path, tensor in reversed(list(usable.items())) if tensor.grad_fn is not None
    }  # for a tensor that occurs twice, the first
    leads = {end: set(behind(end)) for end in ends}
    flat = [end for end, path in ends.items() if usable[path].dim() < 4]
    found = [end for end in flat or ends if not any(other is not end and _adds_no_weights(end, other, leads) for other in flat)]
    return [
        ends[end]
        for end in found
        if not any(end in leads[other] and not _adds_no_weights(other, end, leads) for other in ends if other is not end)
    ]


def _adds_no_weights(end: Node, other: Node, leads: Mapping[Node, set[Node]]) -> bool:
    """Whether an output is a function of another without weights of its own."""
    return other in leads[end] and not any(is_a(node, (*PARAMETRIC, "AccumulateGrad")) for node in leads[end] - leads[other])
