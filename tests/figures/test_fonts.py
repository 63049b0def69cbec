"""Names in any script are drawn, by whatever font has their letters."""

from __future__ import annotations

import logging
from pathlib import Path

import matplotlib
import pytest
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from xattn.figures import fonts, save
from xattn.figures.fonts import drawable
from xattn.figures.sheet import Sheet, text_width

OWN = ("DejaVu Sans",)


@pytest.fixture(autouse=True)
def fresh() -> None:
    for kept in (fonts._has, fonts._family_with, fonts._report):
        kept.cache_clear()


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font that has 猫, as wide as a W."""
    font = TTFont(font_manager.findfont("DejaVu Sans"))
    for table in font["cmap"].tables:
        table.cmap = {ord("猫"): table.cmap[ord("W")]}
    for record in font["name"].names:
        if record.nameID in (1, 4, 16):
            record.string = "Cats"
    font.save(tmp_path / "cats.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    font_manager.fontManager.addfont(tmp_path / "cats.ttf")
    return "Cats"


def test_a_letter_that_the_font_lacks_comes_from_one_that_has_it(cats: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert drawable("猫 1", OWN) == ("猫 1", (cats,))
    with matplotlib.rc_context({"font.family": list(OWN)}):
        assert text_width("猫", 8) == pytest.approx(text_width("W", 8))
        sheet = Sheet()
        sheet.text(1, 1, ["猫", "cat"])
        page = sheet.figure(20, 10)
        page.savefig(tmp_path / "own.png")  # not by xattn, and without a warning
        save(page, tmp_path / "a.pdf")
    assert [text.get_fontfamily() for text in page.findobj(Text) if text.get_text()] == [[*OWN, cats], [*OWN]]
    assert not caplog.records


def test_a_letter_that_no_font_has_is_a_box_and_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name or "Last" in font.name]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", here)
    page = Figure(figsize=(1, 1))
    page.text(0.1, 0.5, "猫猫犬\U000e0100 שלום\x1b")
    with caplog.at_level(logging.WARNING, "xattn"):
        save(page, tmp_path / "a.svg")
        save(page, tmp_path / "a.png")
    assert [text.get_text() for text in page.findobj(Text) if text.get_text()] == ["□□□ שלום\\x1b"]
    assert len(caplog.records) == 1
    assert "no installed font has 2 characters of the names in the figure (drawn as □): 猫 犬" in caplog.text
