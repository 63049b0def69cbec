"""Finds a class of a network by its index, its name, or its WordNet id."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xattn.data.labels import WNID, HotLabel, Label, imagenet_wnids
from xattn.errors import InputError, NameUnknownError

IMAGENET = 1000
_NUMBER = re.compile(r"-?[0-9]+")
_WHOLE = re.compile(r"(-?[0-9]+)\.0+")


def index_of(target: Any, labels: Sequence[str] | None, count: int, network: str) -> int:
    """The index of a class.

    Args:
        target: an index; a name; a WordNet id, for a network with ImageNet's 1000 classes; or an index as text (`7`, `7.0`), unless class
            names are numbers.
        labels: class names in the order of the logits; None: unknown.
        count: number of classes.
        network: its name in messages.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: an index is outside the classes, a name belongs to two classes, a name is given but no labels are known, or the value is
            not a class.
    """
    if isinstance(target, str):
        found = _index_of_text(target, labels, count, network)
        if found is not None:
            return found
        if len(target) > 9:
            raise InputError(f"class {target[:9]}… is outside the {count} classes of {network} (0 … {count - 1}).")
    try:
        index = int(target) if isinstance(target, str) else operator.index(target)
    except TypeError as error:
        raise InputError(f"a class is an index or a name; got {target!r} ({type(target).__name__}).") from error
    if not 0 <= index < count:
        hint = " If labels are counted from 1, subtract 1." if index == count else ""
        raise InputError(f"class {index} is outside the {count} classes of {network} (0 … {count - 1}).{hint}")
    return index


def _index_of_text(text: str, labels: Sequence[str] | None, count: int, network: str) -> int | None:
    """The index of a class by its name or WordNet id; None for a number that is not a name."""
    if labels is not None and (places := _places(tuple(labels)).get(text)):
        if len(places) > 1:
            indices = " and ".join(map(str, places))
            raise InputError(f"'{text}' is the name of {len(places)} classes of {network}, {indices}: give the index.")
        return places[0]
    if count == IMAGENET and WNID.fullmatch(text) and text in imagenet_wnids():
        return imagenet_wnids().index(text)
    if (whole := _WHOLE.fullmatch(text)) is not None:  # pandas writes a column of integers with a missing value like this
        return index_of(whole[1], labels, count, network)
    if _NUMBER.fullmatch(text) is None:
        if labels is None:
            raise InputError(f"class '{text}' is given by name, but {network} has no labels: pass labels, or an index.")
        raise NameUnknownError("class", text, labels)
    if labels is not None and _has_numbers(tuple(labels)):
        raise NameUnknownError(
            "class",
            text,
            labels,
            f"Some classes of {network} have numbers as names, so a number is read as a name here; in Python an int is an index.",
        )
    return None


def indices_of(label: Label | Sequence[int | str], labels: Sequence[str] | None, count: int, network: str) -> tuple[int, ...]:
    """The class indices of an image's label: one class, several, several names separated by `|`, or a vector of zeros and ones.

    Raises:
        NameUnknownError: there is no class of that name.
        InputError: as for `index_of`, or a vector of another length.
    """
    if isinstance(label, HotLabel):
        if label.length != count:
            raise InputError(f"a label that is a vector has one entry per class; {network} has {count} classes, the vector {label.length}.")
        return label.indices
    if isinstance(label, str) and "|" in label and label not in (labels or ()):
        label = tuple(name.strip() for name in label.split("|"))
    several: Sequence[Any] = label if isinstance(label, (list, tuple)) else [label]
    return tuple(dict.fromkeys(index_of(each, labels, count, network) for each in several))


def names_a_class(text: str, labels: Sequence[str] | None, count: int) -> bool:
    """Whether a text is the name or WordNet id of exactly one class."""
    if labels is not None and text in (places := _places(tuple(labels))):
        return len(places[text]) == 1
    return count == IMAGENET and WNID.fullmatch(text) is not None and text in imagenet_wnids()


def distinct_names(labels: Sequence[str]) -> list[str]:
    """Names of classes for a table: one that several classes have is followed by the class index.

    >>> distinct_names(["crane", "wren", "crane"])
    ['crane (0)', 'wren', 'crane (2)']
    """
    places = _places(tuple(labels))
    return [name if len(places[name]) == 1 else f"{name} ({index})" for index, name in enumerate(labels)]


@functools.lru_cache(maxsize=16)
def _places(labels: tuple[str, ...]) -> Mapping[str, tuple[int, ...]]:
    """By name, the indices of the classes that have it."""
    found: dict[str, tuple[int, ...]] = {}
    for index, name in enumerate(labels):
        found[name] = (*found.get(name, ()), index)
    return found


@functools.lru_cache(maxsize=16)
def _has_numbers(labels: tuple[str, ...]) -> bool:
    return any(_NUMBER.fullmatch(name) for name in labels)
