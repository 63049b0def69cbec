"""Writes the README's tables from the registries; with --check, says whether they are up to date."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from xattn.cli.listing import listing

README = Path(__file__).parents[1] / "README.md"


def table(kind: str) -> str:
    """A Markdown table of xattn's own components of a kind."""
    entries = [entry for entry in listing(kind) if ":" not in entry["name"]]
    columns = {
        "heads": {"name": "head", "summary": "what it does", "settings": "settings", "replaces": "replaces", "source": "source"},
        "methods": {"name": "method", "summary": "what it shows", "settings": "settings", "source": "source"},
        "metrics": {
            "name": "metric",
            "symbol": "symbol",
            "better": "better",
            "summary": "what it says",
            "settings": "settings",
            "kind": "of",
            "source": "source",
        },
        "protocols": {"name": "protocol", "summary": "how"},
        "figures": {"name": "kind", "summary": "what it shows", "settings": "settings"},
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


def main() -> None:
    before = after = README.read_text(encoding="utf-8")
    for kind in ("heads", "methods", "metrics", "protocols", "figures"):
        made = f"<!-- {kind} -->\n{table(kind)}\n<!-- /{kind} -->"
        after = re.sub(f"<!-- {kind} -->.*?<!-- /{kind} -->", lambda _, made=made: made, after, flags=re.DOTALL)
    if "--check" in sys.argv and before != after:
        sys.exit("README.md lists other components than the registries hold: run python .ci/readme.py")
    README.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
