"""Fallback fonts for names in scripts that a figure's own font lacks."""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Iterable

import matplotlib
from matplotlib.figure import Figure
from matplotlib.font_manager import FontEntry, FontProperties, findfont, fontManager, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from xattn.text import counted, shown

BOX = "□"  # replaces a character that no font has; DejaVu Sans has it
NOT_SEEN = {"Mn", "Me", "Cf"}  # categories of marks and joiners, which may be omitted
LAST_RESORT = "lastresort"  # a font in which every letter is a box
NORMAL = 400

logger = logging.getLogger("xattn")


def lettered(figure: Figure) -> None:
    """Assigns to each text of a figure fonts that have its characters; characters that no font has become boxes, and are logged.

    Control characters are written as escapes.
    """
    lacking: dict[str, None] = {}
    for text in figure.findobj(Text):
        families = tuple(text.get_fontfamily())
        written, more = drawable(shown(text.get_text()), families, text.get_fontweight())
        if written != text.get_text():
            lacking |= dict.fromkeys(_boxed(shown(text.get_text()), written))
            text.set_text(written)
        if more:
            text.set_fontfamily([*families, *more])
    if lacking:
        _report("".join(lacking))


def drawable(text: str, families: tuple[str, ...], weight: str | int = "normal") -> tuple[str, tuple[str, ...]]:
    """Returns a text with boxes for characters that no font has, and the additional font families that it needs.

    >>> drawable("cat ↓", ("DejaVu Sans",))
    ('cat ↓', ())
    """
    if text.isascii():
        return text, ()
    written = ""
    more: dict[str, None] = {}
    for character in text:
        if character.isspace() or any(_has(family, weight, character) for family in families):
            written += character
        elif family := _family_with(character):
            written += character
            more[family] = None
        elif unicodedata.category(character) not in NOT_SEEN:
            written += BOX
    return written, tuple(more)


def _boxed(text: str, written: str) -> Iterable[str]:
    """Returns the characters of a text that the displayed text lacks."""
    return (character for character in text if character not in written and unicodedata.category(character) not in NOT_SEEN)


@functools.lru_cache(maxsize=4096)
def _has(family: str, weight: str | int, character: str) -> bool:
    return bool(get_font(findfont(FontProperties(family=[family], weight=weight))).get_char_index(ord(character)))


@functools.lru_cache(maxsize=4096)
def _family_with(character: str) -> str | None:
    """Finds a font family on this machine that has a character and can be drawn, preferably upright, regular and without serifs."""
    for entry in sorted(fontManager.ttflist, key=_preference):
        if LAST_RESORT in entry.name.replace(" ", "").lower():
            continue
        try:
            font = FT2Font(entry.fname)
            if font.get_char_index(ord(character)):
                font.set_size(10, 72)
                font.load_char(ord(character))  # a font of coloured pictures fails here
                return str(entry.name)
        except (OSError, RuntimeError):
            continue
    return None


def _preference(entry: FontEntry) -> tuple[bool, bool, bool, str]:
    return entry.style != "normal", entry.weight != NORMAL, "Sans" not in entry.name, entry.name


@functools.cache
def _report(characters: str) -> None:
    """Logs that no font has some characters, once per set of characters."""
    some = " ".join(characters[:10]) + (" …" if len(characters) > 10 else "")
    logger.warning(
        "no installed font has %s of the names in the figure (drawn as %s): %s. Install one, such as Noto Sans, and remove matplotlib's "
        "list of fonts in %s.",
        counted(len(characters), "character"),
        BOX,
        some,
        matplotlib.get_cachedir(),
    )
