"""JSON of others is checked against types before it is used."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pytest

from xattn.stored import Range, parsed, structured


@dataclasses.dataclass(frozen=True)
class Settings:
    name: str
    count: Annotated[int, Range(0, 10)] = 0
    kind: Literal["a", "b"] = "a"
    sides: int | tuple[int, int] = 1
    inner: dict[str, float | None] = dataclasses.field(default_factory=dict)


def test_a_value_of_every_kind_is_taken() -> None:
    content = parsed('{"name": "x", "count": 10, "kind": "b", "sides": [1, 2], "inner": {"p": 1, "q": null}}')
    assert structured(Settings, content) == Settings("x", 10, "b", (1, 2), {"p": 1.0, "q": None})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{}", "name is missing"),
        ('{"name": 1}', "name is 1; a text is needed"),
        ('{"name": "x", "count": 11}', "count is 11; from 0 to 10 is needed"),
        ('{"name": "x", "count": true}', "count is true; an integer is needed"),
        ('{"name": "x", "kind": "c"}', 'kind is "c"; "a" or "b" is needed'),
        ('{"name": "x", "sides": [1]}', "sides is a list of 1"),
        ('{"name": "x", "inner": {"p": "1"}}', 'inner.p is "1"; a number is needed'),
        ('{"name": "x", "more": 1}', "more is not known here"),
        ("[]", "the content is a list of 0; an object is needed"),
    ],
)
def test_what_is_wrong_is_named(content: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("[", r"\[")):
        structured(Settings, parsed(content))


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 40 + "]" * 40, "NaN", "-Infinity", "1e999", "9" * 5000, "", "{", '{"a": 1,}'])
def test_json_that_is_too_deep_too_large_or_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parsed(text)


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parsed(b'{"a": "\xff\xfe"}')


def test_entries_of_any_kind_are_kept() -> None:
    assert structured(dict[str, Any], {"a": [1, {"b": None}]}) == {"a": [1, {"b": None}]}
