"""Choices and notes of the page: lists of methods, metrics, colour maps and classes."""

from __future__ import annotations

import html
from collections.abc import Sequence

from xattn.app.results import OfferedMethod, Results
from xattn.metrics.base import metrics as metric_registry
from xattn.overlays import CMAP, SIGNED_CMAP
from xattn.text import shown

METHODS = ("grad-cam", "grad-cam++", "layer-cam", "legrad", "rollout")
AT_FIRST = 3  # number of these methods that are chosen at first
METRICS = ("average-drop", "average-gain", "average-increase", "sparsity")
ARROWS = {"lower": "↓", "higher": "↑"}
DIGITS = {"%": 1, "1": 3}

Choices = list[tuple[str, str]]


def method_choices(offered: Sequence[OfferedMethod]) -> Choices:
    """Returns the methods that a network supports, with their cost."""
    return [(_described(method), method.spec) for method in offered if method.lacks is None]


def _described(method: OfferedMethod) -> str:
    if method.forwards:
        return f"{method.spec} · {method.forwards:,} forwards"
    return f"{method.spec} · control" if method.control else method.spec


def chosen_methods(offered: Sequence[OfferedMethod], before: Sequence[str], given: Sequence[str]) -> list[str]:
    """Returns the methods to preselect for a network: those chosen before, if it supports any, else a few defaults.

    Args:
        offered: methods offered for the network.
        before: methods that are chosen now.
        given: methods given on the command line.
    """
    supported = [method.spec for method in offered if method.lacks is None]
    known = {method.spec for method in offered}
    if kept := [spec for spec in before if spec in supported or spec not in known]:
        return kept
    return [spec for spec in given if spec in supported] or [spec for spec in METHODS if spec in supported][:AT_FIRST]


def left_out(offered: Sequence[OfferedMethod]) -> list[str]:
    """Returns sentences on the methods that a network does not support, grouped by what it lacks."""
    found: dict[str, list[str]] = {}
    for method in offered:
        if method.lacks is not None:
            found.setdefault(method.lacks, []).append(method.spec)
    return [f"Without {', '.join(specs)}: {lacks}." for lacks, specs in found.items()]


def metric_choices() -> Choices:
    """Returns every metric that needs neither object regions nor known parts, with its symbol and its better direction."""
    entries = [(name, entry) for name, entry in sorted(metric_registry.entries.items()) if entry.metadata.kind not in ("region", "parts")]
    return [(f"{name} ({entry.metadata.symbol} {ARROWS[entry.metadata.better]})", name) for name, entry in entries]


def cmap_choices() -> Choices:
    """Returns matplotlib's colour maps."""
    from matplotlib import colormaps

    return [(f"{CMAP}; {SIGNED_CMAP} for signed maps", ""), *((name, name) for name in sorted(colormaps, key=str.lower))]


def about(results: Results, file: str, network: str) -> list[str]:
    """Returns lines that describe a network and a picture."""
    classifier = results.classifier(network)
    opened = results.picture(file, classifier.preprocessing)
    stage = classifier.stage_or_default(None)
    where = "no default stage" if stage is None else f"maps of {stage}"
    lines = [f"Network: {classifier.class_count:,} classes, {where}, {classifier.preprocessing}, on {classifier.device}."]
    lines.append(f"Picture: {opened.size[0]} × {opened.size[1]} pixels.{'' if opened.scaling is None else f' {opened.scaling}'}")
    return lines


def score_table(scores: dict[str, dict[str, float]]) -> tuple[list[str], list[list[str]]]:
    """Returns headers and rows of the table of scores: one row per method, one column per metric with its unit and better direction."""
    specs = list(dict.fromkeys(spec for found in scores.values() for spec in found))
    about = {spec: metric_registry.create(spec).metadata for spec in specs}
    headers = ["method"]
    for spec in specs:
        settings = spec.partition(":")[2]
        unit = " %" if about[spec].unit == "%" else ""
        headers.append(f"{about[spec].symbol}{unit} {ARROWS[about[spec].better]}{f' ({settings})' if settings else ''}")
    rows = [
        [method, *(f"{found[spec]:.{DIGITS[about[spec].unit]}f}" if spec in found else "–" for spec in specs)]
        for method, found in scores.items()
    ]
    return headers, rows


def paragraphs(lines: Sequence[str]) -> str:
    """Formats lines as HTML paragraphs; all other markup is escaped."""
    return "".join(f"<p>{html.escape(shown(line))}</p>" for line in lines)
