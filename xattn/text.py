"""Text of others, such as names of files and classes, made harmless for terminals and tables."""

from __future__ import annotations

import unicodedata

__all__ = ["counted", "neutral_cell", "shown"]

ACTIVE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (as bidirectional overrides), surrogates, separators of lines
JOINERS = "\u200c\u200d"  # of scripts and emoji
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def shown(text: str, keep: str = "\n\t") -> str:
    r"""Text with control characters, which a terminal would obey, written as escapes.

    Args:
        text: as it came.
        keep: control characters that stay.

    >>> shown("cat\x1b[31m.png")
    'cat\\x1b[31m.png'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ACTIVE and character not in keep + JOINERS
        else character
        for character in text
    )


def counted(count: int, one: str, several: str | None = None) -> str:
    """A number and what it counts.

    Args:
        count: how many.
        one: the noun, perhaps with its verb.
        several: the same for any other number; None: the noun's plural.

    >>> counted(1, "picture"), counted(3, "class"), counted(0, "picture has", "pictures have")
    ('1 picture', '3 classes', '0 pictures have')
    """
    several = several or one + ("es" if one.endswith(("s", "x", "ch")) else "s")
    return f"{count} {one if count == 1 else several}"


def neutral_cell(text: str) -> str:
    """A cell of a CSV that no spreadsheet takes for a formula: with an apostrophe before what begins like one.

    >>> neutral_cell("=1+1"), neutral_cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(FORMULAS) else text
