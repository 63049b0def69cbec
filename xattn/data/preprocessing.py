"""Preprocessing: from a decoded picture to the network's input crop in pixel space."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from PIL import Image

from xattn.data.depth import MAX_PIXELS
from xattn.deferred import torch
from xattn.errors import ImageError, InputError
from xattn.stored import structured

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
OTHER_MEAN = OTHER_STD = 0.5  # for networks that do not use three channels, if nothing else is given
CROP_SHARE = 224 / 256
LARGEST_CROP = 2**25  # pixels: a larger crop is a typing error, or a file that would fill the memory
LARGEST_SIDE = 2**16

Interpolation = Literal["nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos"]

logger = logging.getLogger("xattn")


class Region(NamedTuple):
    """A rectangle of a picture, in its pixels: 0 is the outer edge of the first pixel, so that edges need not lie between pixels.

    Attributes:
        left: position of its left edge.
        top: position of its upper edge.
        right: position of its right edge.
        bottom: position of its lower edge.
    """

    left: float
    top: float
    right: float
    bottom: float


class Frame(NamedTuple):
    """Position of a crop in its picture.

    Attributes:
        size: width and height of the picture.
        kept: the region that the crop shows.
    """

    size: tuple[int, int]
    kept: Region


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation of a classifier; the defaults are torchvision's for ImageNet.

    Pictures are decoded to as many channels as there are means: one for grey (ITU-R 601 luma), three for RGB, four for pictures that have
    four (RGBA, CMYK).

    Attributes:
        input_size: height and width of the crop.
        resize: length of the shorter side before the crop, or height and width for a resize that ignores the aspect ratio.
        mean: per channel, subtracted from values in [0, 1]; a classifier expands a single value to its channels.
        std: per channel, divides the result; a single value is expanded in the same way.
        interpolation: "bilinear", "bicubic", … always antialiased.
    """

    input_size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] = 256
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        resize = (self.resize, self.resize) if isinstance(self.resize, int) else self.resize
        if self.input_size[0] * self.input_size[1] > LARGEST_CROP or max(resize) > LARGEST_SIDE:
            raise InputError(
                f"input size {self.input_size} and resize {self.resize} are too large: at most "
                f"{LARGEST_CROP:,} pixels in the crop, and {LARGEST_SIDE:,} per side."
            )
        if self.interpolation not in get_args(Interpolation):
            raise InputError(f"interpolation is one of {', '.join(get_args(Interpolation))}; got '{self.interpolation}'.")
        sides = (min(self.input_size),) * 2 if isinstance(self.resize, int) else self.input_size
        if min(self.input_size) < 1 or any(before < after for before, after in zip(resize, sides, strict=True)):
            raise InputError(f"resize {self.resize} is smaller than the crop {self.input_size}: give a resize of at least the input size.")
        if not self.mean or not self.std or min(self.std) <= 0 or not all(0 <= v <= 1 for v in (*self.mean, *self.std)):
            raise InputError(
                f"mean and std need a value in [0, 1] for each channel, std above 0; got mean {self.mean} and std {self.std}. "
                "Divide values of 8-bit images by 255."
            )

    @property
    def channels(self) -> int:
        """Number of channels of the crop."""
        return len(self.mean)

    def for_channels(self, channels: int, name: str) -> Preprocessing:
        """Returns a copy with a mean and a standard deviation for each channel of a network; ImageNet's become 0.5 for other numbers of
        channels.

        Args:
            channels: number of the network's input channels.
            name: name of the network in messages.

        Raises:
            InputError: there is neither one value nor one for each channel.
        """
        mean = _for_channels("mean", self.mean, channels, IMAGENET_MEAN, OTHER_MEAN, name)
        std = _for_channels("std", self.std, channels, IMAGENET_STD, OTHER_STD, name)
        if channels != len(IMAGENET_MEAN):
            is_default = self.mean == IMAGENET_MEAN or self.std == IMAGENET_STD
            logger.warning(
                "%s takes images of %d channel%s%s%s.",
                name,
                channels,
                "s" * (channels > 1),
                ": colour pictures are made grey (ITU-R 601 luma)" if channels == 1 else "",
                "; mean and std are 0.5 where not given (mean, std; --mean, --std)" if is_default else "",
            )
        return self if (mean, std) == (self.mean, self.std) else replace(self, mean=mean, std=std)

    def crop(self, picture: Image.Image) -> Tensor:
        """Returns the network's input crop of a picture: uint8 `(C, H, W)`; divided by 255 it is in pixel space.

        Raises:
            ImageError: the picture lacks the channels that the network needs, or its aspect ratio is too extreme.
        """
        return channels_first(self.cropped(picture))

    def cropped(self, picture: Image.Image) -> Image.Image:
        """Returns the output of `crop` as a picture.

        Raises:
            ImageError: as for `crop`.
        """
        picture = self.converted(picture)
        size = self.resized(picture)
        if size[0] * size[-1] > MAX_PIXELS:
            raise ImageError(f"{picture.width}×{picture.height} would be resized to {size[1]}×{size[0]}: too long and thin")
        # Follows torchvision's processing of Pillow pictures, without torchvision's import, which takes seconds.
        how = Image.Resampling[self.interpolation.removesuffix("-exact").upper()]
        resized = picture if picture.size == (size[1], size[0]) else picture.resize((size[1], size[0]), how)
        return resized.crop(self._cut(size))

    def label_crop(self, labels: Image.Image) -> Tensor:
        """Crops a label map like `crop`, with nearest-neighbour interpolation: uint8 `(H, W)`."""
        size = self.resized(labels)
        resized = labels.resize((size[1], size[0]), Image.Resampling.NEAREST)
        return channels_first(resized.crop(self._cut(size)))[0]

    def region(self, picture: Image.Image) -> Region:
        """Returns the region of a picture that `crop` keeps, in the picture's own pixels.

        >>> Preprocessing().region(Image.new("RGB", (512, 256)))
        Region(left=144.0, top=16.0, right=368.0, bottom=240.0)
        """
        size = self.resized(picture)
        left, top, right, bottom = self._cut(size)
        across, down = picture.width / size[1], picture.height / size[0]
        return Region(left * across, top * down, right * across, bottom * down)

    def frame(self, picture: Image.Image) -> Frame:
        """Returns the position of the crop in a picture."""
        return Frame(picture.size, self.region(picture))

    def _cut(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """Returns left, upper, right and lower edge of the crop in a resized picture with a given height and width."""
        height, width = self.input_size
        top, left = round((size[0] - height) / 2), round((size[1] - width) / 2)
        return left, top, left + width, top + height

    def converted(self, picture: Image.Image) -> Image.Image:
        """Converts a picture to the channels that the network needs.

        Raises:
            ImageError: the picture cannot be converted to them.
        """
        modes = {1: "L", 3: "RGB"}
        if self.channels in modes:
            return picture if picture.mode == modes[self.channels] else picture.convert(modes[self.channels])
        if len(picture.getbands()) != self.channels:
            raise ImageError(
                f"the network takes {self.channels} channels, and the picture has {len(picture.getbands())} ({picture.mode}): give a "
                "picture that has them, or a torch dataset of tensors"
            )
        return picture

    def resized(self, picture: Image.Image) -> list[int]:
        """Returns height and width of the picture before the crop, as in torchvision: by the shorter side, keeping the aspect ratio."""
        if not isinstance(self.resize, int):
            return list(self.resize)
        height, width = self.input_size
        if height == width:
            shorter, longer = sorted((picture.width, picture.height))
            sides = [self.resize, int(self.resize * longer / shorter)]
            return sides if picture.height <= picture.width else sides[::-1]
        scale = max(height / picture.height, width / picture.width) * self.resize / min(height, width)
        return [max(height, round(picture.height * scale)), max(width, round(picture.width * scale))]

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Preprocessing:
        """Rebuilds it from the JSON form of `dataclasses.asdict`.

        Raises:
            ValueError: it has another form; as InputError, its values are not possible.
        """
        return structured(cls, stored)

    def __str__(self) -> str:
        height, width = self.input_size
        resize = self.resize if isinstance(self.resize, int) else "×".join(map(str, self.resize))
        mean, std = (" ".join(f"{value:.3g}" for value in values) for values in (self.mean, self.std))
        return f"resize {resize} ({self.interpolation}), crop {height}×{width}, mean {mean}, std {std}"


def channels_first(picture: Image.Image) -> Tensor:
    """Returns the values of an 8-bit picture: uint8 `(C, H, W)`."""
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, -1).permute(2, 0, 1)


def as_picture(crop: Tensor) -> Image.Image:
    """Converts a uint8 crop `(C, H, W)` to an RGB picture: the first three of more than three channels, else the first in grey."""
    shown = crop[:3] if len(crop) >= 3 else crop[:1].expand(3, -1, -1)
    return rgb_picture(shown.permute(1, 2, 0))


def rgb_picture(values: Tensor) -> Image.Image:
    """Converts uint8 values `(H, W, 3)` to an RGB picture."""
    return Image.frombytes("RGB", (values.shape[1], values.shape[0]), values.cpu().contiguous().numpy().tobytes())


def preprocessing_with(
    base: Preprocessing,
    *,
    input_size: int | Sequence[int] | None = None,
    resize: int | Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Preprocessing:
    """Returns `base` with the user's settings.

    An input size alone also changes the resize, by torchvision's ratio 224/256; if the base shows whole pictures, height and width are
    resized to the input size.
    """
    size = base.input_size if input_size is None else _pair(input_size)
    if resize is not None:
        resized = resize if isinstance(resize, int) else _pair(resize)
    else:
        resized = size if base.resize == base.input_size else round(min(size) / CROP_SHARE)
        resized = base.resize if size == base.input_size else resized
    return Preprocessing(size, resized, _values(mean, base.mean), _values(std, base.std), base.interpolation)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    values = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if len(values) != 2 or not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"a size is one whole number, or height and width; got {size!r:.40}.")
    return int(values[0]), int(values[1])


def _values(values: Sequence[float] | None, default: tuple[float, ...]) -> tuple[float, ...]:
    if values is None:
        return default
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InputError(f"mean and std are numbers, one for each channel; got {values!r:.40}.") from error


def _for_channels(
    what: str, values: tuple[float, ...], channels: int, imagenet: tuple[float, ...], other: float, name: str
) -> tuple[float, ...]:
    if len(values) == channels:
        return values
    if len(values) == 1:
        return values * channels
    if values == imagenet:
        return (other,) * channels
    needed = "three values, red, green and blue" if channels == len(imagenet) else f"{channels} value{'s' * (channels > 1)}"
    raise InputError(f"{what} needs {needed} in [0, 1], as {name} takes {channels} channels, or one for all; got {list(values)}.")


def pixels(crops: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Moves uint8 crops to pixel space on the device, channels-last; float32 unless another type is named."""
    return crops.to(device, non_blocking=True).to(dtype or torch.float32, memory_format=torch.channels_last) / 255
