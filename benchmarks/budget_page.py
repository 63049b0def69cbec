"""Makes the page of `budget.py` from its stored samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from xattn.explainers.reasons import DOUBTFUL
from xattn.metrics.statistics import mean_interval

HEADER = [
    "network",
    "setting",
    "n",
    "passes",
    "r, mean",
    "r, least",
    "r < 0.95",
    "said",
    "covered",
    "least of a picture",
    "error",
    "predicted",
]
COSTS = {
    "insertion": "insertion",
    "deletion": "deletion",
    "× faster: map": "seconds",
    "× faster: table job": "table",
    "× faster: table job, adaptive curves": "adaptive_table",
    "its insertion": "adaptive_insertion",
    "its deletion": "adaptive_deletion",
}
EXACT = {"seconds": "exact_seconds", "table": "exact_table", "adaptive_table": "exact_table"}
POINTS = (-100.0, 100.0)

Sample = Mapping[str, Any]


def write(samples: Mapping[str, Any], out: Path) -> None:
    """Writes the page: one table per method, one row per network and setting."""
    rows = samples["samples"]
    lines = ["# Maps from a share of their passes, beside those of all passes", "", *ABOUT, ""]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        costs = list(COSTS) if any("insertion" in row for row in own) else ["× faster: map"]
        lines += [f"## `{method}`", "", f"| {' | '.join([*HEADER, *costs])} |", f"|---|---|{'---:|' * (len(HEADER) + len(costs) - 2)}"]
        networks = list(dict.fromkeys(row["network"] for row in rows))
        pairs = {(row["network"], row["setting"]) for row in own}
        for network, setting in sorted(pairs, key=lambda pair: (pair[1], networks.index(pair[0]))):
            found = [row for row in own if (row["network"], row["setting"]) == (network, setting)]
            lines.append(f"| {network} | `{setting}` | {' | '.join([*_quality(found), *(_cost(found, name) for name in costs)])} |")
        lines.append("")
    lines += ["## Measured", "", *_measured(samples["conditions"]), ""]
    out.write_text("\n".join(lines), encoding="utf-8")


ABOUT = [
    "`method:SETTING` beside `method`, for the predicted class, four pictures at a time, both by the classifier's tuned predictor at level",
    "exact. The pictures are the first of `photos`, others than those that the regression's constants were chosen on; those of `birds:gap`",
    "are drawn test birds.",
    "",
    "- passes: images that went through the network for the estimate, those that fill up a round's last forward among them, as a share of",
    "  the exact method's, the mean over pictures.",
    "- r: correlation of the raw maps; r < 0.95: pictures below it; said: how many of them the log called doubtful, and how many others.",
    "- covered: cells whose exact value lies within 1.96 predicted standard errors, the mean over pictures; beside it the least of one.",
    "- error: root mean square over the cells, in per cent of the exact map's range, the median over pictures; predicted: what the method",
    "  said of it. For `tolerance=`: the share of pictures whose error is at most the tolerance.",
    "- insertion, deletion: mean difference from the exact map's, in points [95 %], on the first pictures.",
    "- × faster: seconds of the exact method over those of the estimate, regression included, the median over the pictures of which both",
    "  were clocked in one turn. Table job: Grad-CAM, Grad-CAM++ and Score-CAM with average drop, gain and increase, insertion and",
    "  deletion. Adaptive curves: the estimate's table job with `insertion:tolerance=4` and `deletion:tolerance=3`, beside the exact one",
    "  with full curves; its insertion, its deletion: mean difference from the exact map's full curves, in points [95 %].",
]


def _quality(rows: list[Sample]) -> list[str]:
    scored = [row for row in rows if "r" in row]  # in other rows every mask was run
    r, covered = ([row[what] for row in scored] for what in ("r", "covered"))
    share = sum(row["passes"] / row["of"] for row in rows) / len(rows)
    if not scored:
        return [str(len(rows)), f"{100 * share:.0f} %", *["–"] * (len(HEADER) - 4)]
    setting = rows[0]["setting"]
    limit = next((float(part.partition("=")[2]) for part in setting.split(",") if part.startswith("tolerance=")), None)
    error = f"{100 * median(row['error'] for row in scored):.1f} %"
    if limit is not None:
        held = sum(row["error"] <= limit for row in scored) + len(rows) - len(scored)
        error += f"; held {100 * held / len(rows):.0f} %"
    return [
        str(len(rows)),
        f"{100 * share:.0f} %",
        f"{sum(r) / len(r):.3f}",
        f"{min(r):.3f}",
        str(sum(value < 0.95 for value in r)),
        _said([row for row in scored if "expected" in row]),
        f"{100 * sum(covered) / len(covered):.0f} %",
        f"{100 * min(covered):.0f} %",
        error,
        f"{100 * median(row['predicted'] for row in scored):.1f} %",
    ]


def _said(rows: list[Sample]) -> str:
    said = [row["r"] < 0.95 for row in rows if row["expected"] < DOUBTFUL]
    return f"{sum(said)}; {len(said) - sum(said)}" if rows else "–"


def _cost(rows: list[Sample], name: str) -> str:
    what = COSTS[name]
    if what not in EXACT:
        found = mean_interval([row[what] for row in rows if what in row], POINTS)
        interval = f" [{found.low:+.2f}, {found.high:+.2f}]" if found.n > 1 else ""
        return f"{found.mean:+.2f}{interval}" if found.n else "–"
    ratios = [row[EXACT[what]] / row[what] for row in rows if what in row and EXACT[what] in row]
    return f"{median(ratios):.1f}" if ratios else "–"


def _measured(conditions: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for network, commands in conditions.items():
        for about in commands.values():
            where = (
                about["gpu"] or f"{about['processor']}, {about['threads']} thread{'s' * (about['threads'] > 1)} of {about['cores']} cores"
            )
            lines.append(
                f"- {network}: `{about['command']}` on {about['date']}; {about['tuning']}; {where}, load {about['load']:.1f}; "
                f"xattn {about['versions']['xattn']}, torch {about['versions']['torch']}."
            )
    return lines
