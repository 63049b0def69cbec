"""Checks the arguments of the functions of `xattn.metrics` and converts them to tensors: images, masks, fills, and `predict`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from xattn.deferred import torch
from xattn.errors import InputError
from xattn.metrics.probability import SUM_TOLERANCE, log_odds, widened
from xattn.metrics.target_base import Target
from xattn.metrics.targets import ClassTarget, Contrast, Predict, Region
from xattn.text import counted

if TYPE_CHECKING:
    from torch import Tensor

Outputs = Literal["logits", "probabilities"]
"""What `predict` returns."""

EDGE = 1e-3  # amount by which a resized image may leave [0, 1]
MASK_EDGE = 1e-4  # amount by which a resized mask may leave [0, 1]


def as_tensor(given: Any, what: str) -> Tensor:
    """Converts a tensor or an array to a tensor.

    Args:
        given: by the user.
        what: its name in messages, in the plural.

    Raises:
        InputError: the value is neither, or does not hold numbers.
    """
    if isinstance(given, torch.Tensor):
        return given
    if (
        isinstance(given, (list, tuple))
        and given
        and all(isinstance(item, torch.Tensor) and item.shape == given[0].shape for item in given)
    ):
        return torch.stack(list(given))
    if not hasattr(given, "__array__"):
        raise InputError(f"{what} are a tensor, or a NumPy array; got {type(given).__name__}.")
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{what} cannot be read as a tensor ({error}). Pass a tensor of numbers.") from error


def as_images(given: Any) -> Tensor:
    """Images `(B, C, H, W)` in pixel space, from a tensor or an array.

    Raises:
        InputError: the shape is wrong, there is no image, or values are integers or outside [0, 1].
    """
    images = as_tensor(given, "images")
    if images.dim() != 4 or not images.numel():
        one = " One image is images[None]." if images.dim() == 3 else ""
        raise InputError(f"images are (batch, channels, height, width), at least one; got {tuple(images.shape)}.{one}")
    if not images.is_floating_point():
        raise InputError(f"images are floats in [0, 1]; got {str(images.dtype).removeprefix('torch.')}. Divide 8-bit images by 255.")
    low, high = (float(extreme) for extreme in images.detach().aminmax())
    if not (low >= -EDGE and high <= 1 + EDGE):
        raise InputError(
            f"images are in pixel space, [0, 1]; these reach from {low:.3g} to {high:.3g}. Divide 8-bit images by 255; leave out any "
            "normalisation: predict does it, as classifier.predict."
        )
    return images


def as_maps(given: Any, what: str = "maps", count: int | None = None) -> Tensor:
    """Maps `(B, h, w)`, floats, from a tensor or an array; also from `(B, 1, h, w)`, and from `(h, w)` if the count is known to be one.

    Args:
        given: by the user.
        what: their name in messages.
        count: of images, if known.

    Raises:
        InputError: the value is not a tensor or an array, or does not hold real numbers.
    """
    maps = as_tensor(given, what)
    if maps.is_complex():
        raise InputError(f"{what} are real numbers; got {str(maps.dtype).removeprefix('torch.')}.")
    if maps.dim() == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    elif maps.dim() == 2 and count == 1:
        maps = maps[None]
    if (maps.dim() != 3 or not maps.numel()) and count is None:
        raise InputError(f"{what} are (batch, height, width), at least one; got {tuple(maps.shape)}. One map is maps[None].")
    return maps if maps.is_floating_point() else maps.float()


def as_masks(given: Any, count: int, what: str = "masks") -> Tensor:
    """Masks `(B, H, W)`, or maps `(B, h, w)`, from a tensor or an array; also `(B, 1, H, W)`, and `(H, W)` for one image.

    Raises:
        InputError: the shape is wrong, or values are not finite; the message names the images that they belong to.
    """
    masks = as_maps(given, what, count)
    if masks.dim() != 3 or len(masks) != count or not masks.numel():
        raise InputError(
            f"{what} are (batch, height, width), one for each of {counted(count, 'image')}; got {tuple(masks.shape)}. Raw maps become "
            "masks by xattn.metrics.to_masks(maps, (height, width))."
        )
    whole = torch.isfinite(masks).flatten(1).all(dim=1)
    if not bool(whole.all()):
        numbers = (~whole).nonzero()[:, 0].tolist()
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        raise InputError(
            f"{what} are finite numbers; those of {len(numbers)} of {counted(count, 'image')} hold NaN or infinity (numbers {shown}). "
            "Leave these images out, or make masks by xattn.metrics.to_masks, which marks such maps as degenerate."
        )
    return masks


def refuse_no_masks(masks: Tensor) -> None:
    """Raises if maps are not masks.

    Raises:
        InputError: they do not lie in [0, 1].
    """
    low, high = (float(extreme) for extreme in masks.aminmax())
    if low < -MASK_EDGE or high > 1 + MASK_EDGE:
        raise InputError(
            f"masks lie in [0, 1]; these reach from {low:.3g} to {high:.3g}. Raw maps become masks by "
            "xattn.metrics.to_masks(maps, (height, width))."
        )


def as_regions(given: Any, maps: Tensor) -> Tensor:
    """Regions `(B, N, H, W)`, bool, on the device of the maps, from a tensor or an array of bools or of zeros and ones; also `(B, H, W)`.

    Args:
        given: by the user.
        maps: one for each image.

    Raises:
        InputError: the shape is wrong, or there are other values.
    """
    regions = as_tensor(given, "regions")
    if regions.dim() == 3:
        regions = regions[:, None]
    if regions.dim() != 4 or len(regions) != len(maps):
        raise InputError(
            f"regions are (batch, height, width), or (batch, objects, height, width), one for each of {counted(len(maps), 'image')}; got "
            f"{tuple(regions.shape)}."
        )
    if regions.dtype != torch.bool:
        if not bool(((regions == 0) | (regions == 1)).all()):
            raise InputError("regions are true where the object is; these have values other than 0 and 1. Compare them with a threshold.")
        regions = regions == 1
    if regions.shape[1] == 0:  # no object anywhere
        regions = regions.new_zeros((len(regions), 1, *regions.shape[2:]))
    return regions.to(maps.device)


def as_fill(given: Any) -> Tensor | None:
    """The colour that replaces pixels, from a tensor, an array or a list of numbers; None stays.

    Raises:
        InputError: the value is none of these, or not in [0, 1].
    """
    if given is None:
        return None
    try:
        colour = torch.as_tensor(given)
        inside = bool(((colour >= 0) & (colour <= 1)).all()) and colour.numel() > 0
    except (TypeError, ValueError, RuntimeError):
        inside = False
    if not inside:
        raise InputError(
            "a fill is a colour in pixel space, one number in [0, 1] for each channel, as classifier.mean or [0.5, 0.5, 0.5]; "
            f"got {given!r}."
        )
    return colour


def refuse_chunk(chunk: Any, name: str = "chunk") -> None:
    """Raises if the number of images per forward is not a whole number of at least 1.

    Args:
        chunk: the number.
        name: of the argument.

    Raises:
        InputError: it is not.
    """
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise InputError(f"{name} is the number of images per forward, 1 or more; got {chunk!r}.")


class CheckedPredict:
    """A user's `predict`, whose output is checked and returned as logits.

    Args:
        predict: images `(B, C, H, W)` → a tensor or an array with one row per image.
        target: what metrics read from the output.
        outputs: what the rows are; None: logits, and `refuse_probabilities` raises if they are probabilities.

    Raises:
        InputError: `predict` is not a function, or `outputs` has another value.
    """

    def __init__(self, predict: Predict, target: Target, outputs: Outputs | None) -> None:
        if not callable(predict):
            raise InputError(f"predict is a function from images to logits, as classifier.predict; got {type(predict).__name__}.")
        if outputs not in (None, "logits", "probabilities"):
            raise InputError(f"outputs is 'logits' or 'probabilities', what predict gives; got {outputs!r}.")
        self.predict: Callable[[Tensor], Any] = predict
        self.target = target
        self.outputs = outputs
        self.separate = bool(getattr(target, "multi_label", False))
        self._alike: Tensor | None = None  # whether all rows so far can be probabilities

    def __call__(self, images: Tensor) -> Tensor:
        given = self.predict(images)
        if not isinstance(given, torch.Tensor) and not hasattr(given, "__array__"):
            raise InputError(
                f"predict must give a tensor of logits, one row per image; it gave {type(given).__name__}. Wrap it, for example as "
                f"lambda images: model(images).logits."
            )
        output = as_tensor(given, "logits")
        if not output.dim() or len(output) != len(images):
            raise InputError(f"predict must give one row per image; for {counted(len(images), 'image')} it gave {tuple(output.shape)}.")
        output = output if output.is_floating_point() else output.float()
        if self._alike is None:
            self._refuse_classes(output)
        if self.outputs == "probabilities":
            return self._logits(output)
        if self.outputs is None and output.dim() in (2, 4) and isinstance(self.target, (ClassTarget, Region)):
            alike = _are_probabilities(output.detach(), separate=self.separate)
            self._alike = alike if self._alike is None else self._alike & alike
        return output

    def _refuse_classes(self, output: Tensor) -> None:
        """Raises if a class is not in the output."""
        classes = getattr(self.target, "classes", None)
        if not isinstance(classes, torch.Tensor) or output.dim() < 2 or not classes.numel():
            return
        low, high = int(classes.min()), int(classes.max())
        if low < 0 or high >= output.shape[1]:
            raise InputError(
                f"class {low if low < 0 else high} is outside the {output.shape[1]} classes that predict gives, 0 to {output.shape[1] - 1}."
            )
        if isinstance(self.target, Contrast) and bool((none := self.target.cancels()).any()):
            written = self.target.names()[int(none.nonzero()[0])]
            raise InputError(f"the contrast {written} is 0 for every output of predict, as its classes cancel out: leave such images out.")

    def _logits(self, output: Tensor) -> Tensor:
        wide = widened(output)
        low, high = (float(extreme) for extreme in wide.aminmax())
        if not (low >= -SUM_TOLERANCE and high <= 1 + SUM_TOLERANCE):
            raise InputError(f"probabilities lie in [0, 1]; predict gave {low:.3g} to {high:.3g}. If it gives logits, leave out outputs.")
        return log_odds(wide) if self.separate else wide.clamp(min=0).log()

    def refuse_probabilities(self) -> None:
        """Raises if every row was a row of probabilities.

        Raises:
            InputError: it was, and `outputs` does not say that these are logits.
        """
        if self._alike is not None and bool(self._alike):
            what = "all lie in [0, 1]" if self.separate else "all lie in [0, 1] and sum to one, as probabilities do"
            raise InputError(
                f"predict must give logits, before any {'sigmoid' if self.separate else 'softmax'}; its rows {what}. Give the "
                f"logits, or set what the rows are: outputs='probabilities', or outputs='logits'."
            )


def _are_probabilities(output: Tensor, *, separate: bool) -> Tensor:
    """Whether all rows can be probabilities, a bool without axes."""
    if output.shape[1] < 2:
        return torch.zeros((), dtype=torch.bool, device=output.device)
    if separate:  # only zeros: the logits of a network with no information
        return ((output >= 0) & (output <= 1)).all() & (output > 0).any()
    inside = ((output >= 0) & (output <= 1 + SUM_TOLERANCE)).all()
    return inside & ((widened(output).sum(dim=1) - 1).abs() <= SUM_TOLERANCE).all().to(output.device)
