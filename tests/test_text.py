"""Text of others is shown, not obeyed."""

from __future__ import annotations

import pandas as pd
import pytest

from xattn.metrics.tables import Table
from xattn.text import neutral_cell, shown


@pytest.mark.parametrize(
    ("text", "as_shown"),
    [
        ("\x1b[2Jcat", r"\x1b[2Jcat"),
        ("a\u202egpj.exe", r"a\u202egpj.exe"),
        ("a\x9b31m", r"a\x9b31m"),
        ("a\udcff", r"a\udcff"),
        ("Grüße 猫 👩\u200d🔬\n", "Grüße 猫 👩\u200d🔬\n"),
    ],
)
def test_control_characters_are_escaped_and_letters_stay(text: str, as_shown: str) -> None:
    assert shown(text) == as_shown


def table(name: str) -> Table:
    row = {"model": name, "head": "gap", "method": "random", "sparsity": 1.5, "sparsity low": 1.0, "sparsity high": 2.0}
    return Table(pd.DataFrame([row | {"n": 4, "degenerate_share": 0.0}]), ("sparsity",), None, ("a <note> of\x1b[1m a name",))


def test_a_name_is_one_harmless_cell_of_each_format() -> None:
    hostile = "=a|b<script>\x1b[1m\n\\input{x}~^_"
    markdown = table(hostile).text("markdown").splitlines()
    assert len(markdown) == 3 + 2
    assert markdown[-1] == r"- a &lt;note> of\x1b[1m a name"
    assert r"=a\|b&lt;script>\x1b[1m\n" in markdown[2]
    assert "\x1b" not in markdown[2]
    latex = table(hostile).text("latex")
    for part in (
        r"\textbar{}b\textless{}script\textgreater{}",
        r"\textbackslash{}x1b[1m",
        r"\textbackslash{}input\{x\}",
        r"\textasciitilde{}\textasciicircum{}\_",
    ):
        assert part in latex


def test_formulas_are_neutral_where_asked_and_numbers_stay() -> None:
    plain, asked = table("=cmd()").text("csv"), table("=cmd()").text("csv", spreadsheet=True)
    assert plain.splitlines()[1].startswith("=cmd(),")
    assert asked.splitlines()[1].startswith("'=cmd(),gap,random,1.5,")
    assert [neutral_cell(text) for text in ("@x", "-x", "x")] == ["'@x", "'-x", "x"]
