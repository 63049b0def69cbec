"""Reads JSON from files that others may have written, and checks it against annotated types before it is used."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

__all__ = ["Count", "Range", "Side", "parsed", "structured"]

T = TypeVar("T")
MOST_BYTES = 256 * 2**20
DEEPEST = 32


@dataclass(frozen=True)
class Range:
    """Inclusive bounds of a number, as in `Annotated[int, Range(1, 10)]`."""

    low: float
    high: float


Count = Annotated[int, Range(0, 2**31 - 1)]
Side = Annotated[int, Range(1, 2**16)]


def parsed(content: str | bytes) -> Any:
    """Parses JSON to Python values.

    Raises:
        ValueError: the content is not JSON in UTF-8, is too large or nested too deeply, or holds NaN, infinity or a number of thousands of
            digits.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"{len(content):,} bytes, more than the {MOST_BYTES:,} that are read")
    try:
        value = json.loads(content, parse_constant=_no_number, parse_float=_finite)
        _check_depth(value)
    except RecursionError as error:
        raise ValueError(f"nested more than {DEEPEST} deep") from error
    return value


def structured(kind: type[T], value: Any, path: str = "") -> T:
    """Converts parsed JSON to a dataclass, or checks it against a `TypedDict`, whose undeclared entries are kept unchecked.

    A dataclass takes only its own fields; JSON's lists become tuples where a tuple is declared.

    Args:
        kind: the type.
        value: from `parsed`.
        path: of the value, in messages.

    Raises:
        ValueError: a type or bound is wrong, or an entry is missing or unknown; the message has its path.

    >>> @dataclass(frozen=True)
    ... class Point:
    ...     x: float
    ...     names: tuple[str, ...] = ()
    >>> structured(Point, {"x": 1, "names": ["a"]})
    Point(x=1.0, names=('a',))
    >>> structured(Point, {"x": "1"})
    Traceback (most recent call last):
    ValueError: x is "1"; a number is needed
    """
    result: T = _as(kind, value, path)
    return result


def _as(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Required, typing.NotRequired):
        return _as(arguments[0], value, path)
    if origin is Annotated:
        found = _as(arguments[0], value, path)
        for bound in arguments[1:]:
            if isinstance(bound, Range) and not bound.low <= found <= bound.high:
                raise _wrong(path, value, f"from {bound.low:g} to {bound.high:g}")
        return found
    if origin in (types.UnionType, typing.Union):
        return _one_of(arguments, value, path)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            raise _wrong(path, value, " or ".join(json.dumps(option) for option in arguments))
        return value
    if origin is tuple:
        return _tuple(arguments, value, path)
    if origin is list:
        return [_as(arguments[0], item, f"{path}[{number}]") for number, item in enumerate(_sequence(value, path))]
    if origin in (dict, Mapping):
        return {key: _as(arguments[1], item, _below(path, key)) for key, item in _mapping(value, path).items()}
    if typing.is_typeddict(hint) or dataclasses.is_dataclass(hint):
        return _record(hint, _mapping(value, path), path)
    if hint is float and type(value) is int and abs(value) < sys.float_info.max:
        return float(value)
    if hint is type(None):
        hint = types.NoneType
    if type(value) is not hint:
        raise _wrong(path, value, KINDS.get(hint, str(hint)))
    return value


KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text", types.NoneType: "null"}


def _one_of(options: tuple[Any, ...], value: Any, path: str) -> Any:
    reasons = []
    for option in options:
        try:
            return _as(option, value, path)
        except ValueError as error:
            reasons.append((option, error))
    if value is not None and len(rest := [error for option, error in reasons if option is not types.NoneType]) == 1:
        raise rest[0]
    raise _wrong(path, value, " or ".join(KINDS.get(option, "a value of another kind") for option in options))


def _tuple(arguments: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    items = _sequence(value, path)
    if arguments[1:] == (...,):
        return tuple(_as(arguments[0], item, f"{path}[{number}]") for number, item in enumerate(items))
    if len(items) != len(arguments):
        raise _wrong(path, value, f"a list of {len(arguments)}")
    return tuple(_as(hint, item, f"{path}[{number}]") for number, (hint, item) in enumerate(zip(arguments, items, strict=True)))


def _record(kind: Any, value: Mapping[str, Any], path: str) -> Any:
    hints = _hints(kind)
    if typing.is_typeddict(kind):
        needed: frozenset[str] = kind.__required_keys__
    else:
        fields = [f for f in dataclasses.fields(kind) if f.init]
        needed = frozenset(f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING)
        if unknown := set(value) - {f.name for f in fields}:
            raise ValueError(f"{_below(path, min(unknown))} is not known here")
    if missing := needed - set(value):
        raise ValueError(f"{_below(path, min(missing))} is missing")
    found = {key: _as(hints[key], item, _below(path, key)) if key in hints else item for key, item in value.items()}
    return found if typing.is_typeddict(kind) else kind(**found)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(path, value, "an object")
    return value


def _sequence(value: Any, path: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _wrong(path, value, "a list")
    return value


def _below(path: str, key: str) -> str:
    shown = key if len(key) <= 60 else f"{key[:60]}…"
    return f"{path}.{shown}" if path else shown


def _wrong(path: str, value: Any, needed: str) -> ValueError:
    shown = f"a list of {len(value)}" if isinstance(value, (list, tuple)) else "an object" if isinstance(value, dict) else json.dumps(value)
    return ValueError(f"{path or 'the content'} is {shown if len(shown) <= 80 else shown[:80] + '…'}; {needed} is needed")


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        inner = [item for item in level if isinstance(item, (dict, list))]
        level = [item for outer in inner for item in (outer.values() if isinstance(outer, dict) else outer)]


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is larger than any number")
    return value
