"""Named parts: heads, methods, metrics. One table feeds the API, the command line, the docs and the contract tests.

A part is a function, or a frozen dataclass whose fields are its settings. It is written `name[:key=value,…]` wherever a user names one:
in Python, on the command line and in the rows of a table. A *door* gives the parts of another library, as `door:NAME[:key=value,…]`.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from xattn.errors import NameUnknownError, SettingError

__all__ = ["Door", "Entry", "Part", "Registry", "coerce", "split_spec", "written"]

F = TypeVar("F")
Obj = TypeVar("Obj", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[F]):
    """What is registered under a name.

    Attributes:
        name: the name.
        obj: a function, or a frozen dataclass of settings with `__call__`.
        facts: what the registry's kind of part declares of itself.
        summary: first line of the docstring.
        settings: the settings and their defaults.
    """

    name: str
    obj: Callable[..., Any]
    facts: F
    summary: str

    @property
    def settings(self) -> dict[str, Any]:
        if not (isinstance(self.obj, type) and dataclasses.is_dataclass(self.obj)):
            return {}
        return {f.name: f.default for f in dataclasses.fields(self.obj)}


@dataclass(frozen=True)
class Part(Generic[F]):
    """A part with its settings, ready to be called.

    Attributes:
        spec: its name as it stands in the rows: `name`, or `name:key=value,…` with the settings that are not the default.
        run: the function, or the dataclass instance.
        facts: the entry's facts.
    """

    spec: str
    run: Callable[..., Any]
    facts: F


@dataclass(frozen=True)
class Door(Generic[F]):
    names: Callable[[], Mapping[str, Any]]
    open: Callable[[str, Mapping[str, str]], Part[F]]
    installed: Callable[[], bool]


class Registry(Generic[F]):
    """A table of parts of one kind.

    Args:
        kind: the kind, as messages call it: "method", "metric", "head".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry[F]] = {}
        self.doors: dict[str, Door[F]] = {}

    def register(self, name: str, facts: F) -> Callable[[Obj], Obj]:
        """Decorator that enters a function or a settings dataclass under a name. A name twice is an error."""

        def enter(obj: Obj) -> Obj:
            if name in self.entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self.entries[name].obj!r} and {obj!r}")
            summary = (obj.__doc__ or "").strip().split("\n")[0]
            self.entries[name] = Entry(name, obj, facts, summary)
            return obj

        return enter

    def register_door(self, name: str, door: Door[F]) -> None:
        """Lets in the parts of another library as `name:NAME`."""
        self.doors[name] = door

    def names(self) -> list[str]:
        """All names, those behind the doors of installed libraries included."""
        return sorted(self.entries) + sorted(self.foreign())

    def foreign(self) -> dict[str, str]:
        """Names behind the doors of installed libraries, with the first line that the library says of each."""
        return {
            f"{name}:{part}": (inspect.getdoc(obj) or "").strip().split("\n")[0]
            for name, door in self.doors.items()
            if door.installed()
            for part, obj in door.names().items()
        }

    def entry(self, name: str) -> Entry[F]:
        """The entry of a name.

        Raises:
            NameUnknownError: with the nearest name.
        """
        if name not in self.entries:
            behind = f"Of other libraries: {', '.join(f'{door}:NAME' for door in self.doors)}." if self.doors else ""
            raise NameUnknownError(self.kind, name, self.entries, behind)
        return self.entries[name]

    def part(self, spec: str) -> Part[F]:
        """The part that a user's `name[:key=value,…]` names.

        Raises:
            NameUnknownError: no such name.
            SettingError: no such setting, or a value that does not fit it.
        """
        name, rest = spec.partition(":")[::2]
        if name in self.doors and rest and not _looks_like_settings(rest):
            inner, settings = split_spec(rest)
            return self.doors[name].open(inner, settings)
        name, settings = split_spec(spec)
        entry = self.entry(name)
        if settings and not entry.settings:
            raise SettingError(f"{self.kind} '{name}' has no settings; got {', '.join(settings)} in '{spec}'.")
        if not (isinstance(entry.obj, type) and dataclasses.is_dataclass(entry.obj)):
            return Part(name, entry.obj, entry.facts)
        values = {key: self._value(entry, key, text) for key, text in settings.items()}
        make: Callable[..., Any] = entry.obj
        instance = make(**values)
        return Part(written(name, instance), instance, entry.facts)

    def _value(self, entry: Entry[F], key: str, text: str) -> Any:
        if key not in entry.settings:
            raise NameUnknownError(f"setting of {self.kind} '{entry.name}'", key, entry.settings)
        hint = typing.get_type_hints(entry.obj)[key]
        try:
            return coerce(text, hint)
        except ValueError as error:
            raise SettingError(f"{self.kind} '{entry.name}' takes {key}={_described(hint)}; got '{text}'.") from error


def _looks_like_settings(rest: str) -> bool:
    return "=" in rest.partition(":")[0]


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """`name:key=value,key=value` → name and settings as text.

    Raises:
        SettingError: a setting without `=`, or the same key twice.
    """
    name, _, rest = spec.partition(":")
    settings: dict[str, str] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise SettingError(f"'{item}' in '{spec}' is no setting: write {name}:key=value,key=value.")
        if key in settings:
            raise SettingError(f"setting '{key}' stands twice in '{spec}'.")
        settings[key] = value.strip()
    return name.strip(), settings


def written(name: str, settings: Any) -> str:
    """A settings dataclass as a user writes it, defaults left out."""
    changed = [
        f"{f.name}={_text(getattr(settings, f.name))}" for f in dataclasses.fields(settings) if getattr(settings, f.name) != f.default
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def coerce(text: str, hint: Any) -> Any:
    """Text as a value of an annotated type: bool, int, float, str, a Literal, or one of these or None.

    Raises:
        ValueError: it does not read as that type.
    """
    origin = get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = get_args(hint)
        if text.lower() == "none" and type(None) in options:
            return None
        for option in options:
            if option is not type(None):
                try:
                    return coerce(text, option)
                except ValueError:
                    continue
        raise ValueError(text)
    if origin is Literal:
        for option in get_args(hint):
            if text == str(option):
                return option
        raise ValueError(text)
    if hint is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return hint(text)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(_described(option) for option in get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
