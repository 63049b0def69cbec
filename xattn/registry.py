"""Registries of components: heads, methods, metrics, figures. One table feeds the API, the command line, the docs and the contract tests.

A component is a function, or a frozen dataclass whose fields are its settings. It is written `name[:key=value,…]` wherever a user names
one: in Python, on the command line and in the rows of a table. An *adapter* provides the components of another library, as
`library:NAME[:key=value,…]`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import math
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args, get_origin

from xattn.errors import InputError, NameUnknownError, SettingError

__all__ = ["Adapter", "AtMost", "Component", "Entry", "Registry", "coerce", "import_modules", "is_integer", "split_spec", "written"]

M = TypeVar("M")
T = TypeVar("T")
Obj = TypeVar("Obj", bound=Callable[..., Any])
LARGEST_INTEGER = 2**31 - 1
MOST_OF_OTHERS = 10**6  # the largest integer that is passed to another library, which might compute or allocate that many
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}")


@dataclass(frozen=True)
class AtMost:
    """The largest value of a setting, beyond which a run would never end or fill the memory, as `Annotated[int, AtMost(10_000)]`."""

    value: int


@dataclass(frozen=True)
class Entry(Generic[M]):
    """An entry of a registry.

    Attributes:
        name: the name.
        obj: a function, or a frozen dataclass of settings.
        metadata: its declared metadata.
        summary: first line of the docstring.
    """

    name: str
    obj: Callable[..., Any]
    metadata: M
    summary: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings and their defaults."""
        if not (isinstance(self.obj, type) and dataclasses.is_dataclass(self.obj)):
            return {}
        return {f.name: f.default for f in dataclasses.fields(self.obj)}


@dataclass(frozen=True)
class Component(Generic[M, T]):
    """A component with its settings, ready for use.

    Attributes:
        spec: its name in the rows: `name`, or `name:key=value,…` with the settings that are not the default.
        instance: the function, or the dataclass instance.
        metadata: its declared metadata.
    """

    spec: str
    instance: T
    metadata: M


@dataclass(frozen=True)
class Adapter(Generic[M, T]):
    """The components of another library.

    Attributes:
        names: the components by name, each with the object whose docstring describes it.
        create: a name and settings as text → the component.
        package: the library, as it is imported.
    """

    names: Callable[[], Mapping[str, Any]]
    create: Callable[[str, Mapping[str, str]], Component[M, T]]
    package: str

    @property
    def installed(self) -> bool:
        """Whether the library is installed; it is not imported."""
        return importlib.util.find_spec(self.package) is not None


class Registry(Generic[M, T]):
    """A table of components of one kind.

    Args:
        kind: name of the kind in messages: "method", "metric", "head".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.entries: dict[str, Entry[M]] = {}
        self.adapters: dict[str, Adapter[M, T]] = {}

    def register(self, name: str, metadata: M) -> Callable[[Obj], Obj]:
        """Decorator that registers a function or a settings dataclass under a name. A second registration of a name is an error."""

        def enter(obj: Obj) -> Obj:
            if name in self.entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self.entries[name].obj!r} and {obj!r}")
            summary = (obj.__doc__ or "").strip().split("\n")[0]
            self.entries[name] = Entry(name, obj, metadata, summary)
            return obj

        return enter

    def register_adapter(self, name: str, adapter: Adapter[M, T]) -> None:
        """Adds the components of another library as `name:NAME`."""
        self.adapters[name] = adapter

    def names(self) -> list[str]:
        """All names, including those of installed libraries."""
        return sorted(self.entries) + sorted(self.adapted_names())

    def installed(self) -> list[str]:
        """The names of the adapters whose libraries are installed; none is imported."""
        return [name for name, adapter in self.adapters.items() if adapter.installed]

    def adapted_names(self, libraries: Iterable[str] | None = None) -> dict[str, str]:
        """The names that adapters of installed libraries provide, with the first line of the library's docstring; imports the libraries.

        Args:
            libraries: names of adapters; None: all.
        """
        return {
            f"{name}:{inner}": (inspect.getdoc(obj) or "").strip().split("\n")[0]
            for name in self.installed()
            if libraries is None or name in libraries
            for inner, obj in self.adapters[name].names().items()
        }

    def entry(self, name: str) -> Entry[M]:
        """The entry of a name.

        Raises:
            NameUnknownError: with the nearest name.
        """
        if name not in self.entries:
            others = f"Of other libraries: {', '.join(f'{adapter}:NAME' for adapter in self.adapters)}." if self.adapters else ""
            raise NameUnknownError(self.kind, name, self.entries, others)
        return self.entries[name]

    def create(self, spec: str) -> Component[M, T]:
        """The component that a user's `name[:key=value,…]` means.

        Raises:
            NameUnknownError: no such name.
            SettingError: no such setting, or a value that does not fit it.
        """
        if not isinstance(spec, str):
            raise SettingError(f"a {self.kind} is named by a text, 'name' or 'name:key=value,…'; got {type(spec).__name__}.")
        name, rest = spec.partition(":")[::2]
        if name in self.adapters and rest and not _looks_like_settings(rest):
            inner, settings = split_spec(rest)
            return self.adapters[name].create(inner, settings)
        name, settings = split_spec(spec)
        entry = self.entry(name)
        if settings and not entry.settings:
            raise SettingError(f"{self.kind} '{name}' has no settings; got {', '.join(settings)} in '{spec}'.")
        make: Any = entry.obj
        if not (isinstance(make, type) and dataclasses.is_dataclass(make)):
            return Component(name, make, entry.metadata)
        instance: Any = make(**{key: self._value(entry, key, text) for key, text in settings.items()})
        return Component(written(name, instance), instance, entry.metadata)

    def create_all(self, specs: Iterable[str], *, allow_none: bool = False) -> list[Component[M, T]]:
        """The components that specs mean, each once.

        Raises:
            InputError: a string is given instead of a list, or nothing.
        """
        if isinstance(specs, str):
            raise InputError(f"{self.kind}s are a list: write {self.kind}s=['{specs}'].")
        found = list({component.spec: component for component in (self.create(spec) for spec in specs)}.values())
        if not found and not allow_none:
            raise InputError(f"no {self.kind} is named: write {self.kind}s=['{next(iter(sorted(self.entries)))}'].")
        return found

    def _value(self, entry: Entry[M], key: str, text: str) -> Any:
        if key not in entry.settings:
            raise NameUnknownError(f"setting of {self.kind} '{entry.name}'", key, entry.settings)
        hint = typing.get_type_hints(entry.obj, include_extras=True)[key]
        try:
            return coerce(text, hint)
        except ValueError as error:
            got = text if len(text) <= 80 else f"{text[:80]}…"
            raise SettingError(f"{self.kind} '{entry.name}' takes {key}={_described(hint)}; got '{got}'.") from error


def _looks_like_settings(rest: str) -> bool:
    return "=" in rest.partition(":")[0]


def split_spec(spec: str) -> tuple[str, dict[str, str]]:
    """`name:key=value,key=value` → name and settings as text.

    Raises:
        SettingError: a setting has no `=`, or a key occurs twice.
    """
    name, _, rest = spec.partition(":")
    settings: dict[str, str] = {}
    for item in rest.split(",") if rest else ():
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            raise SettingError(f"'{item}' in '{spec}' is not a setting: write {name}:key=value,key=value.")
        if key in settings:
            raise SettingError(f"setting '{key}' is given twice in '{spec}'.")
        settings[key] = value.strip()
    return name.strip(), settings


def written(name: str, settings: Any) -> str:
    """Formats a settings dataclass in the user's notation, without defaults."""
    changed = [
        f"{f.name}={_text(getattr(settings, f.name))}" for f in dataclasses.fields(settings) if getattr(settings, f.name) != f.default
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def coerce(text: str, hint: Any) -> Any:
    """Converts text to a value of an annotated type: bool, int, float, str, a Literal, one of these with a bound, or one of these or None.

    Integers are written in the digits 0 to 9 and lie within ±(2³¹ − 1); numbers are finite.

    Raises:
        ValueError: the text is not a value of this type.

    >>> coerce("12", int), coerce("1e-3", float), coerce("none", int | None)
    (12, 0.001, None)
    """
    origin = get_origin(hint)
    if origin is Annotated:
        kind, *bounds = get_args(hint)
        value = coerce(text, kind)
        if any(isinstance(bound, AtMost) and value > bound.value for bound in bounds):
            raise ValueError(text)
        return value
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
    if hint is int and (not is_integer(text) or abs(int(text)) > LARGEST_INTEGER):
        raise ValueError(text)
    value = hint(text)
    if hint is float and not math.isfinite(value):
        raise ValueError(text)
    return value


def is_integer(text: str) -> bool:
    """Whether a text is an integer in the digits 0 to 9, at most ten of them."""
    return _INTEGER.fullmatch(text) is not None


def _described(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        kind, *bounds = get_args(hint)
        return _described(kind) + "".join(f" up to {bound.value:,}" for bound in bounds if isinstance(bound, AtMost))
    if get_origin(hint) is Literal:
        return "|".join(map(str, get_args(hint)))
    if get_origin(hint) in (types.UnionType, typing.Union):
        return "|".join(_described(option) for option in get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def import_modules(package: str, path: Iterable[str]) -> None:
    """Imports every module of a package, so that everything that they register is known.

    Args:
        package: its name, `__name__` in its `__init__`.
        path: its `__path__`.
    """
    for module in pkgutil.iter_modules(path):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
