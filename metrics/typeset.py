"""Comparison tables as Markdown, LaTeX, HTML and Typst."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from itertools import groupby

from xattn.metrics.sheets import BETTER, WORSE, Cell, Sheet
from xattn.text import shown

COLUMN = 252.0  # pt: width of a column of a two-column page
LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "·": r"\textperiodcentered{}",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "×": r"$\times$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "✗": r"$\times$",
    BETTER: r"$\triangle$",
    WORSE: r"$\nabla$",
}
MARKDOWN = {"|": r"\|", "`": r"\`"}
TYPST = {character: f"\\{character}" for character in "\\#$*_`<>@~[]=/-+"}
TAG = re.compile(r"<(?=[A-Za-z/!?])")  # what Markdown reads as HTML


def latex_text(text: str) -> str:
    """A name or a note escaped for LaTeX, on one line."""
    return "".join(LATEX.get(character, character) for character in shown(text, keep=""))


def markdown_text(text: str) -> str:
    """A name or a note escaped for Markdown, on one line."""
    return "".join(MARKDOWN.get(character, character) for character in TAG.sub("&lt;", shown(text, keep="")))


def typst_text(text: str) -> str:
    """A name or a note escaped for Typst, on one line."""
    return "".join(TYPST.get(character, character) for character in shown(text, keep=""))


def html_text(text: str) -> str:
    """A name or a note escaped for HTML, on one line."""
    return html.escape(shown(text, keep=""))


def markdown(of: Sheet) -> str:
    """The table as Markdown: `mean [low, high]`, then the notes as a list."""
    lines = [[markdown_text(part) for part in row] for row in of.rows]
    headers = ["model", "head", "method"]
    for column in of.columns:
        headers.append(markdown_text(column.header))
        for line, cell in zip(lines, column.cells, strict=True):
            line.append(cell.plain)
    for header, texts in of.tail:
        headers.append(header)
        for line, text in zip(lines, texts, strict=True):
            line.append(text)
    from tabulate import tabulate

    aligned = ["left"] * 3 + ["right"] * (len(headers) - 3)
    body = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=aligned)
    return f"{body}\n\n" + "".join(f"- {markdown_text(note)}\n" for note in of.notes)


def groups(of: Sheet) -> list[tuple[str, list[int]]]:
    """The name and the rows of each classifier."""
    numbered = groupby(range(len(of.rows)), key=lambda number: of.rows[number][:2])
    return [(model if head == "gap" else f"{model} · {head}", list(numbers)) for (model, head), numbers in numbered]


def _notes_of_tail(of: Sheet) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """The last columns: those in which rows differ, and notes for those in which they agree."""
    shown_as = {"seeds": "Seeds of training: {}.", "n": "n = {}.", "degenerate": "Degenerate maps: {}."}
    columns = [(header, texts) for header, texts in of.tail if len(set(texts)) > 1]
    notes = [shown_as[header].format(texts[0]) for header, texts in of.tail if len(set(texts)) == 1]
    ranked = any(cell.rank for column in of.columns for cell in column.cells)
    return columns, [*notes, *(["Best of a network bold, second underlined."] if ranked else [])]


def latex(of: Sheet, width: float = COLUMN) -> str:
    """The table as LaTeX with booktabs, for one column: a network's name above its rows, best bold, second underlined, notes below.

    If intervals would make it wider than the column, they are left out of the cells, and the notes state the largest half-widths.

    Args:
        of: what is printed.
        width: of the column, in pt.
    """
    tail, notes = _notes_of_tail(of)
    with_intervals, notes = _with_intervals(of, tail, notes, width)
    marked = [any(cell.mark for cell in column.cells) for column in of.columns]
    headers = ["", *(latex_text(column.header) for column in of.columns), *(latex_text(header) for header, _ in tail)]
    lines = []
    for place, (name, numbers) in enumerate(groups(of)):
        lines += [r"\addlinespace"] * (place > 0) + [rf"\multicolumn{{{len(headers)}}}{{@{{}}l}}{{\textit{{{latex_text(name)}}}}} \\"]
        for number in numbers:
            cells = [latex_cell(column.cells[number], with_intervals, room) for column, room in zip(of.columns, marked, strict=True)]
            cells += [latex_text(texts[number]) for _, texts in tail]
            lines.append(" & ".join([latex_text(of.rows[number][2]), *cells]) + r" \\")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering",
            rf"\caption{{{latex_text(of.caption)}}}",
            rf"\label{{{of.label}}}",
            r"\scriptsize",
            r"\setlength{\tabcolsep}{2pt}",
            rf"\begin{{tabular}}{{@{{}}l{'r' * (len(headers) - 1)}@{{}}}}",
            r"\toprule",
            " & ".join(headers) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\par\smallskip",
            rf"\parbox{{\linewidth}}{{\scriptsize\raggedright {latex_text(' '.join(notes))}}}",
            r"\end{table}",
            "",
        ]
    )


def _with_intervals(of: Sheet, tail: Sequence[tuple[str, tuple[str, ...]]], notes: Sequence[str], width: float) -> tuple[bool, list[str]]:
    """Whether cells with intervals fit the width, and the notes, which state the largest half-widths if they do not."""
    if _estimated(of, tail, intervals=True) <= width:
        return True, [*notes, *of.notes]
    halves = "; ".join(f"{column.header.split(' ')[0]} {column.half}" for column in of.columns if column.half)
    first = [f"Half-widths of the 95 % confidence intervals, at most: {halves}."] if halves else []
    return False, [*first, *notes, *(note for note in of.notes if not note.startswith("Mean over images ["))]


def latex_cell(cell: Cell, interval: bool = True, room: bool = False) -> str:
    """A cell of a LaTeX table.

    Args:
        cell: the printed content.
        interval: whether to print the interval.
        room: leave room for a missing mark, so that digits are aligned.
    """
    mean = latex_text(cell.mean)
    mean = {1: rf"\textbf{{{mean}}}", 2: rf"\underline{{{mean}}}"}.get(cell.rank, mean).replace("-", "$-$")
    ends = ""
    if interval and cell.low:
        ends = rf"$\pm{cell.below}$" if cell.below == cell.above else rf"$^{{+{cell.above}}}_{{-{cell.below}}}$"
        ends = rf"{{\tiny {ends}}}" if cell.below == cell.above else ends
    return mean + ends + (latex_text(cell.mark) if cell.mark else rf"\phantom{{{latex_text(BETTER)}}}" if room else "")


def _estimated(of: Sheet, tail: Sequence[tuple[str, tuple[str, ...]]], *, intervals: bool) -> float:
    """Width in pt in \\scriptsize, from the widths of Computer Modern's digits and letters at 7 pt and 5 pt."""
    letter, digit, small, gap, sign = 4.1, 4.0, 3.5, 4.0, 6.0

    def cell(each: Cell) -> float:
        own = digit * len(each.mean)
        if intervals and each.low:
            own += small * max(len(each.below), len(each.above)) + sign
        return own + (sign if each.mark else 0)

    names = max(letter * len(method) for _, _, method in of.rows)
    widths = [max(letter * len(column.header), *map(cell, column.cells)) for column in of.columns]
    widths += [letter * max(len(header), *map(len, texts)) for header, texts in tail]
    return names + sum(width + gap for width in widths)


def html_table(of: Sheet) -> str:
    """The table as HTML with a caption; the notes are a list below."""
    tail, notes = _notes_of_tail(of)
    headers = ["method", *(column.header for column in of.columns), *(header for header, _ in tail)]
    lines = ["<table>", f"<caption>{html_text(of.caption)}</caption>", "<thead>"]
    lines += ["<tr>" + "".join(f'<th scope="col">{html_text(header)}</th>' for header in headers) + "</tr>", "</thead>"]
    for name, numbers in groups(of):
        lines += ["<tbody>", f'<tr><th scope="rowgroup" colspan="{len(headers)}">{html_text(name)}</th></tr>']
        for number in numbers:
            cells = [_html_cell(column.cells[number]) for column in of.columns] + [html_text(texts[number]) for _, texts in tail]
            values = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{html_text(of.rows[number][2])}</th>{values}</tr>')
        lines.append("</tbody>")
    lines += ["</table>", "<ul>", *(f"<li>{html_text(note)}</li>" for note in (*notes, *of.notes)), "</ul>", ""]
    return "\n".join(lines)


def _html_cell(cell: Cell) -> str:
    mean = {1: f"<b>{cell.mean}</b>", 2: f"<u>{cell.mean}</u>"}.get(cell.rank, cell.mean)
    return html_text(cell.plain).replace(cell.mean, mean, 1)


def typst(of: Sheet, width: float = COLUMN) -> str:
    """The table as a Typst figure for one column; the notes are below. Intervals are left out as in `latex`.

    Args:
        of: what is printed.
        width: of the column, in pt.
    """
    tail, notes = _notes_of_tail(of)
    with_intervals, notes = _with_intervals(of, tail, notes, width)
    held = "#box[{}]" if _estimated(of, tail, intervals=with_intervals) <= width else "{}"  # a box, so that lines are not broken
    marked = [any(cell.mark for cell in column.cells) for column in of.columns]
    headers = ["", *(column.header for column in of.columns), *(header for header, _ in tail)]
    lines = [
        "#figure(",
        "  block[",
        "    #set text(size: 7pt)",
        f"    #table(columns: {len(headers)}, stroke: none, inset: 2pt, align: (left, {', '.join(['right'] * (len(headers) - 1))}),",
        "      table.hline(),",
        "      " + ", ".join(f"[{held.format(typst_text(header))}]" for header in headers) + ",",
        "      table.hline(stroke: 0.5pt),",
    ]
    for name, numbers in groups(of):
        lines.append(f"      table.cell(colspan: {len(headers)})[_{typst_text(name)}_],")
        for number in numbers:
            cells = [_typst_cell(column.cells[number], with_intervals, room) for column, room in zip(of.columns, marked, strict=True)]
            cells += [typst_text(texts[number]) for _, texts in tail]
            lines.append("      " + ", ".join(f"[{held.format(cell)}]" for cell in (typst_text(of.rows[number][2]), *cells)) + ",")
    lines += ["      table.hline(),", "    )", f"    #align(left)[{typst_text(' '.join(notes))}]", "  ],"]
    return "\n".join([*lines, f"  caption: [{typst_text(of.caption)}],", f") <{of.label}>", ""])


def _typst_cell(cell: Cell, interval: bool, room: bool) -> str:
    """A cell of a Typst table; arguments as for `latex_cell`."""
    mean = typst_text(cell.mean.replace("-", "−"))
    mean = {1: f"*{mean}*", 2: f"#underline[{mean}]"}.get(cell.rank, mean)
    ends = ""
    if interval and cell.low and cell.below == cell.above:
        ends = f"#text(size: 5pt)[ ± {cell.below}]"
    elif interval and cell.low:
        ends = f'$""^(+{cell.above})_(-{cell.below})$'
    return mean + ends + (cell.mark or f"#hide[{BETTER}]" * room)
