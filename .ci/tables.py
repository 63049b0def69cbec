"""Writes the documentation's tables and `xattn/catalogue.json` from the registries; with --check, says whether they are up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from xattn import catalogue, errors
from xattn.cli.listing import listing
from xattn.explainers.reasons import ADVICE

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {
    "heads": "heads",
    "alignments": "heads",
    "distributions": "heads",
    "methods": "methods",
    "metrics": "metrics",
    "protocols": "metrics",
    "figures": "figures",
    "patches": "patches",
    "tasks": "tasks",
    "reasons": "messages",
    "errors": "messages",
}
"""The page of each table."""


def table(kind: str) -> str:
    """A Markdown table of xattn's own components of a kind."""
    entries = [entry for entry in listing(kind) if ":" not in entry["name"]]
    columns = {
        "heads": {"name": "head", "summary": "what it does", "settings": "settings", "replaces": "replaces", "source": "source"},
        "alignments": {"name": "alignment", "formula": "a(q, kᵢ)", "summary": "what it is", "settings": "settings", "source": "source"},
        "distributions": {"name": "distribution", "formula": "weight of key i", "summary": "what it is", "source": "source"},
        "methods": {"name": "method", "summary": "what it shows", "settings": "settings", "source": "source"},
        "metrics": {
            "name": "metric",
            "symbol": "symbol",
            "better": "better",
            "summary": "what it says",
            "settings": "settings",
            "kind": "of",
            "cost": "forwards",
            "source": "source",
        },
        "protocols": {"name": "protocol", "summary": "how"},
        "figures": {"name": "kind", "summary": "what it shows", "settings": "settings"},
        "patches": {"name": "finder", "summary": "what it finds", "settings": "settings", "source": "source"},
        "tasks": {"name": "task", "summary": "what it is", "score": "score", "best": "epoch kept by", "source": "source"},
    }[kind]
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for entry in entries:
        cells = []
        for key in columns:
            value = entry[key]
            if key == "name":
                value = f"`{value}`"
            elif key == "settings":
                value = ", ".join(
                    f"`{k}={'none' if v is None else str(v).lower() if isinstance(v, bool) else v}`" for k, v in value.items()
                )
            elif key == "summary" and entry.get("caution"):
                value = f"{value} It {entry['caution']}."
            elif key == "better":
                value = {"lower": "↓", "higher": "↑"}[value]
            cells.append(value.replace("|", r"\|"))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def reasons() -> str:
    """Why a map shows nothing, and what to try."""
    return "\n".join(["| reason | what to try |", "|---|---|", *(f"| {reason} | {advice}. |" for reason, advice in ADVICE.items())])


def raised() -> str:
    """Every error with what it means, from the tree in `xattn.errors`."""
    found = re.findall(r"[├└]── (\w+) +(.+?) +\(([^,)]+)(?:, exit (\d))?\)", str(errors.__doc__))
    rows = [f"| `{name}` | {meaning} | `{kind}` | {code or 1} |" for name, meaning, kind, code in found]
    return "\n".join(["| error | meaning | is also a | exit code |", "|---|---|---|---|", *rows])


def main() -> None:
    made = catalogue.written()
    if not catalogue.FILE.is_file() or catalogue.FILE.read_text(encoding="utf-8") != made:
        if "--check" in sys.argv:
            sys.exit(f"xattn/{catalogue.FILE.name} is of other sources: run python .ci/tables.py")
        catalogue.FILE.write_text(made, encoding="utf-8")
    for kind, page in PAGES.items():
        file = DOCS / f"{page}.md"
        before = file.read_text(encoding="utf-8")
        made = {"reasons": reasons, "errors": raised}.get(kind, lambda kind=kind: table(kind))()
        block = f"<!-- {kind} -->\n{made}\n<!-- /{kind} -->"
        after, count = re.subn(f"<!-- {kind} -->.*?<!-- /{kind} -->", lambda _, block=block: block, before, flags=re.DOTALL)
        if count != 1:
            sys.exit(f"{file.name} has no place for the table of {kind}: <!-- {kind} --><!-- /{kind} -->")
        if "--check" in sys.argv and before != after:
            sys.exit(f"docs/{file.name} lists other {kind} than the code holds: run python .ci/tables.py")
        file.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
