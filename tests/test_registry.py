"""Names, settings and adapters: one grammar for heads, methods and metrics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from xattn.errors import NameUnknownError, SettingError
from xattn.registry import Adapter, AtMost, Component, Registry


@dataclass(frozen=True)
class Settings:
    """A component with settings.

    More."""

    count: int = 3
    share: float | None = None
    kind: Literal["a", "b"] = "a"
    repeats: Annotated[int, AtMost(10_000)] | None = None
    deep: bool = False

    def __call__(self) -> tuple[object, ...]:
        return self.count, self.share, self.kind, self.deep


@pytest.fixture
def registry() -> Registry[str, object]:
    made: Registry[str, object] = Registry("thing")
    made.register("with-settings", "fact")(Settings)
    made.register("plain", "fact")(lambda: "plain")
    made.register_adapter(
        "other",
        Adapter(
            lambda: {"AdaptedMethod": Settings},
            lambda name, settings: Component(f"other:{name}", lambda: (name, settings), "f"),
            "json",
        ),
    )
    return made


@pytest.mark.parametrize(
    ("spec", "written", "value"),
    [
        ("with-settings", "with-settings", (3, None, "a", False)),
        ("with-settings:count=4,kind=b", "with-settings:count=4,kind=b", (4, None, "b", False)),
        ("with-settings:kind=b,count=4", "with-settings:count=4,kind=b", (4, None, "b", False)),
        ("with-settings:count=3", "with-settings", (3, None, "a", False)),
        ("with-settings:repeats=10000", "with-settings:repeats=10000", (3, None, "a", False)),
        ("with-settings:share=0.5,deep=true", "with-settings:share=0.5,deep=true", (3, 0.5, "a", True)),
        ("with-settings:share=none", "with-settings", (3, None, "a", False)),
        ("plain", "plain", "plain"),
    ],
)
def test_a_component_is_written_in_one_way_whatever_the_user_wrote(
    registry: Registry[str, object], spec: str, written: str, value: object
) -> None:
    component = registry.create(spec)
    assert component.spec == written
    assert component.instance() == value
    assert registry.create(component.spec).instance() == value


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("with_settings", NameUnknownError, "Unknown thing 'with_settings'. Did you mean 'with-settings'"),
        ("nothing", NameUnknownError, "Of other libraries: other:NAME"),
        ("with-settings:cuont=4", NameUnknownError, "Did you mean 'count'"),
        ("with-settings:count=four", SettingError, "takes count=int; got 'four'"),
        ("with-settings:kind=c", SettingError, r"takes kind=a\|b; got 'c'"),
        ("with-settings:deep=yes", SettingError, "takes deep=bool; got 'yes'"),
        ("with-settings:count", SettingError, "'count' in 'with-settings:count' is not a setting"),
        ("with-settings:count=1,count=2", SettingError, "'count' is given twice"),
        ("plain:x=1", SettingError, "'plain' has no settings; got x"),
        ("with-settings:repeats=10001", SettingError, r"takes repeats=int up to 10,000\|none; got '10001'"),
    ],
)
def test_what_cannot_be_meant_is_answered_with_what_can(
    registry: Registry[str, object], spec: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        registry.create(spec)


def test_an_adapter_creates_its_own_names_with_settings(registry: Registry[str, object]) -> None:
    assert registry.create("other:AdaptedMethod:a=1").instance() == ("AdaptedMethod", {"a": "1"})
    assert registry.names() == ["plain", "with-settings", "other:AdaptedMethod"]


def test_a_second_registration_of_a_name_is_an_error(registry: Registry[str, object]) -> None:
    with pytest.raises(ValueError, match="'plain' is registered twice"):
        registry.register("plain", "fact")(lambda: None)


def test_the_summary_is_the_docstring_s_first_line(registry: Registry[str, object]) -> None:
    assert registry.entry("with-settings").summary == "A component with settings."
    assert registry.entry("with-settings").settings == {"count": 3, "share": None, "kind": "a", "repeats": None, "deep": False}
