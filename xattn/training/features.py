"""Features of a frozen network, computed once and kept in a memory-mapped file."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from xattn.data.preprocessing import pixels
from xattn.data.published import Target
from xattn.errors import InputError, RunError, UnsupportedError
from xattn.heads.base import Attended
from xattn.models import Classifier, evaluating
from xattn.models.capture import captured
from xattn.models.layout import to_nchw
from xattn.models.state_dicts import digest_of
from xattn.progress import Progress
from xattn.text import counted
from xattn.training.data import Crops
from xattn.training.recipe import Recipe

logger = logging.getLogger("xattn")

MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
PREDICTED = "predicted class"


class Features(NamedTuple):
    """What stands for the images of a batch when their features are known.

    Attributes:
        stages: features `(B, C, h, w)` of the stages that the head reads, by name.
        predicted: classes `(B,)` that the network predicts, for a head that asks for the class; else None.
    """

    stages: dict[str, Tensor]
    predicted: Tensor | None


class CachedCrops(Dataset[tuple[Features, Tensor]]):
    """The features of all pictures of a data set, by number; gives whole batches.

    Args:
        tensors: features `(N, C, h, w)` by stage, and predicted classes `(N,)`.
        targets: one class index per picture, or one vector of labels.
    """

    def __init__(self, tensors: Mapping[str, Tensor], targets: Sequence[Target]) -> None:
        self.tensors = tensors
        self.targets = torch.tensor(targets)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> tuple[Features, Tensor]:
        numbers = torch.tensor([key[1] if isinstance(key, tuple) else key for key in keys])
        found = {name: tensor[numbers] for name, tensor in self.tensors.items()}
        predicted = found.pop(PREDICTED, None)
        return Features(found, predicted), self.targets[numbers]


def check_cacheable(classifier: Classifier, recipe: Recipe, teacher: Classifier | None, devices: int | str, nodes: int) -> None:
    """Checks that features computed once are those of every epoch, and that they are all that training needs.

    Raises:
        InputError: they are not; says why.
    """
    for wrong, why in (
        (recipe.backbone, "the network is trained too, which changes them. Train the head alone, as preset probe does"),
        (
            recipe.smallest_crop is not None,
            f"random crops (smallest_crop={recipe.smallest_crop}) change them in every epoch. Set it to None, as preset probe does",
        ),
        (
            recipe.padding is not None or recipe.erasing > 0,
            f"random crops or erasing (padding={recipe.padding}, erasing={recipe.erasing}) change them in every epoch",
        ),
        (recipe.deletion_grid is not None, f"deleted patches (deletion_grid={recipe.deletion_grid}) change them in every epoch"),
        (teacher is not None, "a teacher needs the images. Leave out the teacher, or the cache"),
        (classifier.head.is_random, f"{classifier.head_name} draws random numbers by the images' content. Leave out the cache"),
        (str(devices) != "1" or nodes != 1, "they are read by one process. Leave out devices and nodes"),
        (not classifier.attachment.stages, f"{classifier.head_name} reads no features. Choose another head"),
    ):
        if wrong:
            raise InputError(f"features cannot be computed once and kept: {why}.")


def on_features(
    classifier: Classifier,
    training: Crops,
    validation: Dataset[Any],
    folder: Path,
    *,
    precision: Any,
    batch: int,
    workers: int,
    shown: bool,
) -> tuple[CachedCrops, Dataset[Any]]:
    """The features in the place of the crops, for training and validation; computed where the folder has no file of them.

    Args:
        classifier: whose network gives them.
        training: crops without augmentation.
        validation: crops, or a subset of the training crops.
        folder: for the files. Their names are a digest of network, stages, preprocessing, precision and pictures: several heads and runs
            share them.
        precision: of the training, as Lightning names it.
        batch: pictures per forward.
        workers: decoding processes.
        shown: whether to show progress.

    Raises:
        RunError: the folder cannot be written, or has too little space.
    """

    def cached(crops: Crops) -> CachedCrops:
        path = folder / f"features-{_key(classifier, crops, precision)}.safetensors"
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                _write(path, classifier, crops, precision, batch, workers, shown)
            elif shown:
                logger.info("features of %s are in %s", counted(len(crops), "picture"), path)
        except OSError as error:
            if isinstance(error, RunError):
                raise
            raise RunError(f"features cannot be written to '{folder}' ({error.strerror}).") from error
        with safe_open(path, framework="pt") as file:  # memory-mapped
            return CachedCrops({name: file.get_tensor(name) for name in file.keys()}, crops.data.targets)  # noqa: SIM118  # not a mapping

    own = cached(training)
    if isinstance(validation, Subset):
        return own, Subset(own, validation.indices)
    if not isinstance(validation, Crops):
        raise UnsupportedError(f"features can be kept only for crops of pictures; the validation data are a {type(validation).__name__}.")
    return own, cached(validation)


def as_it_is(batch: Any) -> Any:
    """The batch as `CachedCrops` gives it: a collate function."""
    return batch


def attend_features(classifier: Classifier, given: Features, classes: Tensor | None = None) -> Attended:
    """What `Classifier.run` gives for the images that these features are of.

    Args:
        classifier: in the state in which the features were computed; its head may have changed.
        given: the features.
        classes: `(B,)`, the labels, for a head that has one query per class in training.
    """
    attended = read_features(classifier, given, classes)
    attended.output = classified(classifier, attended.output)
    return attended


def read_features(classifier: Classifier, given: Features, classes: Tensor | None = None) -> Attended:
    """What the head gives for these features; arguments as for `attend_features`."""
    head, stages = classifier.head, classifier.attachment.stages
    if head.asks_class and classes is None:
        classes = given.predicted
    attended = head.start(len(given.stages[stages[0].name]), classes)
    for stage in stages:
        head.read(attended, stage.name, given.stages[stage.name])
    return attended


def classified(classifier: Classifier, vectors: Tensor) -> Tensor:
    """The logits `(B, K)` for what a head gives: these are they, or the network's own classifier makes them of vectors `(B, C)`.

    Where that is more than a linear layer, the network runs one image, and its classifier gets all vectors.
    """
    if classifier.attachment.replaces != "pooling":
        return vectors
    entry = classifier.attachment.entry
    if entry.linear is not None:
        logits: Tensor = entry.linear(vectors.to(entry.linear.weight.dtype))
        return logits
    calls = 0

    def put(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal calls
        calls += 1
        return (vectors.to(args[0].dtype).reshape(-1, *args[0].shape[1:]),) if calls == entry.call else None

    handle = classifier.network.get_submodule(entry.module or "").register_forward_pre_hook(put)
    try:
        output = classifier.read_output(classifier.network(classifier.normalise(classifier.probe())))
    finally:
        handle.remove()
    if len(output) != len(vectors):
        raise UnsupportedError(
            f"the classifier of {classifier.name} gave {len(output)} outputs for {len(vectors)} vectors, since it fixes the number "
            f"of images earlier: train it without cached features."
        )
    return output


def _key(classifier: Classifier, crops: Crops, precision: Any) -> str:
    """Digest of all that the features depend on. Files are known by path, size and time of change, other pictures by the data set's name
    and number; of either, the first and the last picture are compared."""
    pictures, count = crops.data.pictures, len(crops)
    ends = [zlib.crc32(pictures.picture(number).tobytes()) for number in (0, count - 1)]
    about = {
        "network": [classifier.name, digest_of(classifier.network.state_dict()), repr(classifier.network)],
        "stages": [stage.name for stage in classifier.attachment.stages],
        "asks_class": classifier.head.asks_class,
        "preprocessing": asdict(classifier.preprocessing),
        "precision": str(precision) if precision in MIXED else str(classifier.mean.dtype),
        "data": [crops.data.name, ends, *(pictures.identity(number) for number in range(count))],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _write(path: Path, classifier: Classifier, crops: Crops, precision: Any, batch: int, workers: int, shown: bool) -> None:
    """Writes the features of all pictures to a `.safetensors`, in one pass, without holding them in memory."""
    part = path.with_suffix(f".{os.getpid()}.part")
    loader = DataLoader(crops, batch, num_workers=workers)
    done = 0
    try:
        with Progress(len(crops), shown) as progress, part.open("w+b") as file:
            for images, _ in loader:
                found = _computed(classifier, images, precision)
                if not done:
                    mapped, views = _laid_out(file, path, len(crops), found)
                for name, tensor in found.items():
                    views[name][done : done + len(tensor)] = tensor.cpu()
                done += len(images)
                progress.add(len(images))
            views.clear()  # a map with views cannot be closed
            mapped.flush()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _laid_out(file: Any, path: Path, pictures: int, first_batch: Mapping[str, Tensor]) -> tuple[mmap.mmap, dict[str, Tensor]]:
    """The file at its full size, with the header of a `.safetensors`, and its tensors, which write to it."""
    header, places, end = {}, {}, 0
    for name, tensor in first_batch.items():
        shape, dtype = (pictures, *tensor.shape[1:]), tensor.dtype
        count = torch.Size(shape).numel()
        begin, end = end, end + count * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        places[name] = (begin, count, dtype, shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    first, size = 8 + len(text), 8 + len(text) + end
    stages = ", ".join(name for name in header if name != PREDICTED)
    logger.info("features of %s, %s: %s are written to %s", stages, counted(pictures, "picture"), _bytes(size), path)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise RunError(
            f"the features of {stages} of {counted(pictures, 'picture')} take {_bytes(size)}, and '{path.parent}' has {_bytes(free)} free: "
            "give a folder on another disk, or train without cached features."
        )
    file.write(struct.pack("<Q", len(text)) + text)
    file.truncate(size)
    mapped = mmap.mmap(file.fileno(), size)
    views = {
        name: torch.frombuffer(mapped, dtype=dtype, count=count, offset=first + begin).view(shape)
        for name, (begin, count, dtype, shape) in places.items()
    }
    return mapped, views


def _computed(classifier: Classifier, crops: Tensor, precision: Any) -> dict[str, Tensor]:
    """Features `(B, C, h, w)` of the stages that the head reads, by name, and the predicted classes where the head asks for them."""
    device, stages = classifier.device, classifier.attachment.stages
    dtype = MIXED.get(str(precision))
    with (
        torch.no_grad(),
        evaluating(classifier),
        torch.autocast(device.type, dtype, enabled=dtype is not None),
        captured(classifier.network, stages) as found,
    ):
        output = classifier.read_output(classifier.network(classifier.normalise(pixels(crops, device))))
    computed = {stage.name: to_nchw(found[stage.name], stage.layout) for stage in stages}
    if classifier.head.asks_class:
        computed[PREDICTED] = output.argmax(dim=1)
    return computed


def _bytes(count: int) -> str:
    """A number of bytes as people read it."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
