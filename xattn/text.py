"""Makes text of others, such as names of files and classes, harmless for terminals and tables."""

from __future__ import annotations

import unicodedata

__all__ = ["counted", "neutral_cell", "shown"]

ACTIVE = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # control, format (as bidirectional overrides), surrogates, separators of lines
JOINERS = "\u200c\u200d"  # used in some scripts and in emoji
FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def shown(text: str, keep: str = "\n\t") -> str:
    r"""Text in which control characters, which a terminal would execute, are written as escapes.

    Args:
        text: any text.
        keep: control characters that are not escaped.

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
    """A number with its noun in the singular or plural.

    Args:
        count: the number.
        one: the noun, perhaps with its verb.
        several: the text for any other number; None: the noun's plural.

    >>> counted(1, "picture"), counted(3, "class"), counted(0, "picture has", "pictures have")
    ('1 picture', '3 classes', '0 pictures have')
    """
    several = several or one + ("es" if one.endswith(("s", "x", "ch")) else "s")
    return f"{count} {one if count == 1 else several}"


def neutral_cell(text: str) -> str:
    """A CSV cell that spreadsheets do not read as a formula: text that begins like one gets an apostrophe.

    >>> neutral_cell("=1+1"), neutral_cell("cat")
    ("'=1+1", 'cat')
    """
    return f"'{text}" if text.startswith(FORMULAS) else text
