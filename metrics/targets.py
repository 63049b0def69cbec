"""Targets: the part of a network's output that is explained for each image of a batch.

A target has a differentiable *score*, which gradient methods use; in most cases a *probability*, which metrics use; and a name in the rows.
A target is indexed like the images: `target[index]` is the target of `images[index]`, so that one image may have many perturbed copies.

| target | output of the network | score | probability |
|---|---|---|---|
| `ClassTarget` | logits `(B, K)` | the class's logit | softmax, or sigmoid for several labels |
| `Contrast` | logits `(B, K)` | weighted sum of logits | sigmoid of the score |
| `Similarity` | vectors `(B, D)` | cosine with a reference | none: any function from a cosine to one would be arbitrary |
| `Region` | maps of logits `(B, K, h, w)` | mean of the class's logit over the region | mean of the class's probability there |
| `OutputFunction` | anything | what the function gives | none, or that of a second function |

Every function of `xattn.metrics` takes any of them, or a tensor of class indices `(B,)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from xattn.deferred import torch
from xattn.errors import InputError, UnsupportedError
from xattn.metrics.probability import Probability, sigmoid_probability, softmax_probability, widened
from xattn.metrics.target_base import Target

if TYPE_CHECKING:
    from torch import Tensor

Predict = Callable[["Tensor"], "Tensor"]
"""Images in pixel space `(B, 3, H, W)` → logits `(B, K)` before softmax or sigmoid, vectors `(B, D)` or maps of logits `(B, K, h, w)`."""
CANCELLED = 1e-6  # sums of weights up to this are rounding


@dataclass(frozen=True, eq=False)
class ClassTarget(Target):
    """One class per image.

    Args:
        classes: class indices `(B,)`.
        multi_label: the probability is the sigmoid of the class's logit instead of its softmax.
    """

    classes: Tensor
    multi_label: bool = False

    def score(self, output: Tensor) -> Tensor:
        _needs(output, 2, self)
        return output.gather(1, self.classes.to(output.device)[:, None]).squeeze(1)

    def probability(self, output: Tensor) -> Probability:
        _needs(output, 2, self)
        if self.multi_label:
            return sigmoid_probability(self.score(output))
        return softmax_probability(output, self.classes)

    @property
    def kind(self) -> str:
        return "a class"

    def names(self) -> list[str]:
        return [str(index) for index in self.classes.tolist()]


@dataclass(frozen=True, eq=False)
class Contrast(Target):
    """Contrast of some classes with others: Σ w·z, such as `A - 0.6*B`.

    The probability is the sigmoid of the score. For `A - B` it is the softmax over these two classes: the probability of A, given A or B.

    Args:
        classes: class indices `(B, T)`, or `(T,)` for all images.
        weights: their weights, in the same shape.
        multi_label: the margin uses sigmoids instead of a softmax.

    Raises:
        InputError: classes and weights do not match.
    """

    classes: Tensor
    weights: Tensor
    multi_label: bool = False

    def __post_init__(self) -> None:
        classes, weights = torch.as_tensor(self.classes, dtype=torch.long), torch.as_tensor(self.weights, dtype=torch.float32)
        classes, weights = (values[None] if values.dim() == 1 else values for values in (classes, weights))
        together = classes.dim() == weights.dim() == 2 and classes.shape[1] == weights.shape[1] > 0 and len(weights) in (1, len(classes))
        if not together:
            raise InputError(
                f"a contrast needs one weight for each class, as Contrast([281, 282], [1.0, -0.6]); got classes {tuple(classes.shape)} and "
                f"weights {tuple(weights.shape)}."
            )
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "weights", weights.expand(len(classes), -1))

    def score(self, output: Tensor) -> Tensor:
        _needs(output, 2, self)
        return (output.gather(1, self.classes.to(output.device)) * self.weights.to(output)).sum(dim=1)

    def probability(self, output: Tensor) -> Probability:
        return sigmoid_probability(self.score(output))

    def margin(self, output: Tensor) -> Tensor:
        """Mean probability of the classes of positive weight minus that of the classes of negative weight; all else if one side is
        empty."""
        _needs(output, 2, self)
        wide = widened(output)
        p = (wide.sigmoid() if self.multi_label else wide.softmax(dim=1)).gather(1, self.classes.to(wide.device))
        weights = self.weights.to(wide)
        sides = [(p * side).sum(dim=1) / side.sum(dim=1) for side in ((weights > 0).to(p), (weights < 0).to(p))]
        found = sides[0] - sides[1]
        return torch.where(found.isnan() & p.isfinite().all(dim=1), super().margin(output), found)

    def cancels(self) -> Tensor:
        """`(B,)` bool: whether the weights of each class add up to 0, as for a class minus itself, so that the score is always 0."""
        alike = self.classes[:, :, None] == self.classes[:, None]
        return ((alike * self.weights[:, None]).sum(dim=2).abs() <= CANCELLED).all(dim=1)

    @property
    def kind(self) -> str:
        return "a contrast"

    def names(self) -> list[str]:
        rows = zip(self.classes.tolist(), self.weights.tolist(), strict=True)
        return [written_contrast([(weight, str(index)) for index, weight in zip(*row, strict=True)]) for row in rows]


def written_contrast(terms: Sequence[tuple[float, str]]) -> str:
    """Formats weights and classes as a contrast in the user's notation: `3 - 0.6*7`."""
    text = ""
    for weight, name in terms:
        sign = ("- " if weight < 0 else "") if not text else (" - " if weight < 0 else " + ")
        text += sign + (name if abs(weight) == 1 else f"{abs(weight):g}*{name}")
    return text


@dataclass(frozen=True, eq=False)
class Similarity(Target):
    """Cosine of the network's vector with a reference vector; for networks whose output is vectors.

    Args:
        reference: `(B, D)`, or `(D,)` for all images.
        name: as in the rows.
    """

    reference: Tensor
    name: str = "similarity"

    def __post_init__(self) -> None:
        if self.reference.dim() not in (1, 2):
            raise InputError(f"a reference is one vector (D,), or one for each image (B, D); got {tuple(self.reference.shape)}.")
        object.__setattr__(self, "reference", self.reference[None] if self.reference.dim() == 1 else self.reference)

    def score(self, output: Tensor) -> Tensor:
        _needs(output, 2, self)
        if output.shape[1] != self.reference.shape[1]:
            raise InputError(f"the network gives vectors of {output.shape[1]} values; the reference has {self.reference.shape[1]}.")
        return torch.nn.functional.cosine_similarity(output, self.reference.to(output), dim=1)

    @property
    def kind(self) -> str:
        return "a similarity"

    @property
    def has_probability(self) -> bool:
        return False

    def names(self) -> list[str]:
        return [self.name] * len(self)

    def predicted(self, output: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class Region(Target):
    """A class over a region of the image; for networks whose output is a map of logits.

    A mask whose size is not that of the network's map is resized to it: each cell gets the share of it that the mask covers.

    Args:
        classes: class indices `(B,)`, or one for all images.
        masks: `(B, H, W)`, or `(H, W)` for all images; bool, or weights ≥ 0.
        multi_label: the probability is the sigmoid of the class's logit instead of its softmax.
        name: of the region in the rows.

    Raises:
        InputError: a region is empty, or masks have a wrong shape.
    """

    classes: Tensor
    masks: Tensor
    multi_label: bool = False
    name: str = "region"

    def __post_init__(self) -> None:
        classes = torch.as_tensor(self.classes, dtype=torch.long).reshape(-1)
        masks = self.masks[None] if self.masks.dim() == 2 else self.masks
        if masks.dim() != 3 or len(classes) not in (1, len(masks)) or len(masks) not in (1, len(classes)):
            raise InputError(
                f"a region needs a class and a mask (H, W) for each image; got {len(classes)} classes and masks {tuple(self.masks.shape)}."
            )
        if not bool((masks.flatten(1) > 0).any(dim=1).all()) or bool((masks < 0).any()):
            raise InputError("a region's mask is not negative, and is above zero somewhere; got a mask without any pixel.")
        count = max(len(classes), len(masks))
        object.__setattr__(self, "classes", classes.expand(count))
        object.__setattr__(self, "masks", masks.expand(count, -1, -1))

    def score(self, output: Tensor) -> Tensor:
        _needs(output, 4, self)
        own = output.gather(1, self.classes.to(output.device).view(-1, 1, 1, 1).expand(-1, 1, *output.shape[2:]))[:, 0]
        weights = self._weights(output)  # at least float32, so that the sum over many cells does not overflow
        return (own * (weights / weights.sum(dim=(1, 2), keepdim=True))).sum(dim=(1, 2))

    def probability(self, output: Tensor) -> Probability:
        _needs(output, 4, self)
        found = [self._of_image(*row) for row in zip(output, self.classes.to(output.device), self._weights(output).double(), strict=True)]
        return Probability(*(torch.stack(column) for column in zip(*found, strict=True)))

    def _of_image(self, logits: Tensor, index: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        inside = weights > 0
        cells, share = logits[:, inside].T, weights[inside] / weights.sum()
        own = index.expand(len(cells))
        found = sigmoid_probability(cells.gather(1, own[:, None])[:, 0]) if self.multi_label else softmax_probability(cells, own)
        return (found.p * share.to(found.p)).sum(), (found.rest * share.to(found.rest)).sum()

    def _weights(self, output: Tensor) -> Tensor:
        masks = self.masks.to(output.device, torch.promote_types(output.dtype, torch.float32))
        if masks.shape[1:] == output.shape[2:]:
            return masks
        shrinks = masks.shape[1] > output.shape[2] or masks.shape[2] > output.shape[3]
        return torch.nn.functional.interpolate(masks[:, None], size=output.shape[2:], mode="area" if shrinks else "nearest-exact")[:, 0]

    @property
    def kind(self) -> str:
        return "a region"

    def names(self) -> list[str]:
        return [f"{index} in {self.name}" for index in self.classes.tolist()]


@dataclass(frozen=True, eq=False)
class OutputFunction(Target):
    """A function of the network's output.

    Args:
        function: output of B images → scores `(B,)`, differentiable.
        follow: output of B images → probabilities `(B,)` for metrics; None: no probability.
        count: number of images.
        name: as in the rows; None: the function's name.
    """

    function: Callable[[Any], Tensor]
    follow: Callable[[Any], Tensor] | None = None
    count: int = 1
    name: str | None = None

    def score(self, output: Tensor) -> Tensor:
        return self._checked(self.function(output), output)

    def probability(self, output: Tensor) -> Probability:
        if self.follow is None:
            return super().probability(output)
        p = self._checked(self.follow(output), output).double()
        return Probability(p, 1 - p)

    def _checked(self, values: Any, output: Tensor) -> Tensor:
        if not isinstance(values, torch.Tensor) or values.shape != (len(output),):
            came = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise InputError(
                f"the target function {self.name or _called(self.function)} must give one value per image, ({len(output)},); got {came}."
            )
        return values

    @property
    def kind(self) -> str:
        return f"the function {self.name or _called(self.function)}"

    @property
    def has_probability(self) -> bool:
        return self.follow is not None

    def names(self) -> list[str]:
        return [self.name or _called(self.function)] * self.count

    def __len__(self) -> int:
        return self.count

    def joined(self, others: Sequence[Self]) -> Self:
        return replace(self, count=sum(other.count for other in others))

    def __getitem__(self, index: Tensor | slice) -> Self:
        count = len(index) if isinstance(index, torch.Tensor) else len(range(*index.indices(self.count)))
        return replace(self, count=count)


def _called(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _needs(output: Tensor, axes: int, target: Target) -> None:
    if output.dim() != axes:
        wanted = {2: "one row per image, (batch, classes)", 4: "a map of logits, (batch, classes, height, width)"}[axes]
        raise UnsupportedError(f"{target.kind} is taken of {wanted}; the network gives {tuple(output.shape)}.")


Targets: TypeAlias = "Target | Tensor | Callable[[Any], Tensor]"
"""Targets of metric functions: a target, class indices `(B,)`, or a function of the output that returns one score per image."""


def as_target(targets: Targets, count: int, *, multi_label: bool = False) -> Target:
    """Converts a user's argument to a target.

    Args:
        targets: a target, class indices `(B,)`, or a function of the output.
        count: B.
        multi_label: for class indices: sigmoid instead of softmax.

    Raises:
        InputError: the target is for another number of images, or the value is not a target.
    """
    if isinstance(targets, Target):
        return targets.expanded(count)
    if isinstance(targets, (list, tuple)) or hasattr(targets, "__array__"):
        try:
            classes = torch.as_tensor(targets)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"targets are class indices, ({count},); got {targets!r}.") from error
        whole = not (classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool)
        if classes.shape != (count,) or not whole:
            came = f"{tuple(classes.shape)} {str(classes.dtype).removeprefix('torch.')}. For one-hot rows, give the argmax"
            raise InputError(f"targets must be one class index per image, ({count},), whole numbers; got {came}.")
        return ClassTarget(classes.long(), multi_label)
    if callable(targets):
        return OutputFunction(targets, count=count)
    came = type(targets).__name__
    raise InputError(f"targets are class indices ({count},), a target of xattn.metrics.targets or a function; got {came}.")
