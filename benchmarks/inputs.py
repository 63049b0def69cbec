"""Picture encodings, label formats and sources with known content: each is read correctly, refused, or doubted; never silently wrong.

    python benchmarks/inputs.py             # writes results/inputs.md
    python benchmarks/inputs.py --no-page JPEG

The cases are in `input_pictures.py` (with `input_tiffs.py`, `input_jpegs.py`), `input_labels.py` and `input_sources.py`. The packages that
write them are installed by `pip install -e '.[bench]'`.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from input_labels import Form, forms, network
from input_pictures import encodings
from input_ramps import HEIGHT, WIDTH, Encoding
from input_sources import SERVED, Source, served, sources

import xattn
from xattn.data.batches import Batch
from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.errors import XattnError

RESULT = Path(__file__).parent / "results" / "inputs.md"
OUTCOMES = ("right", "said", "refused", "left out", "SILENT", "hang", "error")
WRONG = OUTCOMES[4:]
LIMIT_S = 60
LONGEST = 240  # characters of a line in the page
MADE_WITH = ("pillow", "pillow-heif", "tifffile", "imagecodecs", "pydicom", "fsspec", "datasets")
TITLES = {
    "encodings": ("Encodings of pictures", "encoding", "largest difference in levels of 255, what is said or why it is refused"),
    "labels": ("Forms of labels", "form", "classes taken, what is said or why they are refused"),
    "sources": ("Sources", "source", "pictures found, what is said or why it is refused"),
}


@dataclass(frozen=True)
class Result:
    """Outcome of a case.

    Attributes:
        name: name of the case.
        outcome: one of `OUTCOMES`.
        about: what was read, and the log line or the error.
    """

    name: str
    outcome: str
    about: str = ""


class Lines(logging.Handler):
    """Collects what xattn logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a line."""
        if "not measured" not in record.getMessage():  # about the execution of forwards
            self.lines.append(record.getMessage())


class Hang(Exception):
    """A case took too long."""


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Returns the lines that xattn logs inside the context."""
    logger, handler = logging.getLogger("xattn"), Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `Hang` inside the context after some seconds."""

    def over(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(case: Encoding | Form | Source) -> Result:
    """Runs one case in a temporary folder, and returns its outcome."""
    read: Callable[[Any, Path, list[str]], tuple[str, str]]
    read = read_picture if isinstance(case, Encoding) else take_labels if isinstance(case, Form) else find_pictures
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place, logged() as lines:
        try:
            with limited(LIMIT_S):
                outcome, about = read(case, Path(place), lines)
        except Hang:
            outcome, about = "hang", f"over {LIMIT_S} s"
        except XattnError as error:
            outcome, about = "refused", str(error)
        except Exception as error:
            outcome, about = "error", f"{type(error).__name__}: {error}"
        return Result(case.name, outcome, about.replace(place, "…"))


def verdict(is_right: bool, says: str, lines: Sequence[str]) -> str:
    """Judges what was read: right, reported as doubtful, or silently wrong; a missing report also counts as silently wrong."""
    is_said = bool(says) and any(says in line for line in lines)
    if is_right:
        return "right" if is_said or not says else "SILENT"
    return "said" if is_said else "SILENT"


def with_lines(text: str, lines: Sequence[str]) -> str:
    """Returns what was read, and the lines that were logged."""
    return ". ".join([text, *dict.fromkeys(lines)])


def read_picture(case: Encoding, folder: Path, lines: list[str]) -> tuple[str, str]:
    """Reads a picture as one of a folder."""
    (folder / case.file).write_bytes(bytes(case.make()))
    try:
        source = ImageSource(folder, **case.given)
    except XattnError:
        if any("left out" in line or "next to the pictures" in line for line in lines):
            return "left out", lines[-1]
        raise
    batch = next(iter(source.batches(Preprocessing((HEIGHT, WIDTH), (HEIGHT, WIDTH)), 1)))
    if batch.failed:
        return "refused", batch.failed[0][1]
    lines += [str(scaling) for scaling in batch.scalings if scaling is not None]  # as a run prints it
    off = float(np.abs(batch.crops[0].permute(1, 2, 0).numpy() - case.right()).max())
    return verdict(off <= case.tolerance + 1e-6, case.says, lines), with_lines(f"{off:.3g}", lines)


def take_labels(case: Form, folder: Path, lines: list[str]) -> tuple[str, str]:
    """Compares the labels that a run stores with the network's predictions, which are the pictures' classes."""
    given = {"out": folder / "run", "tune": "off", "workers": 0, "progress": False, **case.make(folder)}
    study = xattn.Study([network(case.names, case.classes)], ["random"], ["complexity"], **given)
    outcome = study.run()
    if outcome.failed:
        return "refused", f"{len(outcome.failed)} of {outcome.images} pictures: {outcome.failed[0][1]}"
    rows = study.scores()
    labels = None if rows["label"].isna().all() else [int(label) for label in rows["label"]]
    is_right = labels is None if case.right is None else labels == list(case.right) == [int(each) for each in rows["predicted"]]
    shown = "none" if labels is None else " ".join(map(str, labels))
    return verdict(is_right, case.says, lines), with_lines(shown, lines)


def find_pictures(case: Source, folder: Path, lines: list[str]) -> tuple[str, str]:
    """Decodes the pictures of a source."""
    with served(folder) as address:
        images = case.make(folder)
        if isinstance(images, list) and images and isinstance(images[0], str):
            images = [place.replace(SERVED, address) for place in images]
        images = images.replace(SERVED, address) if isinstance(images, str) else images
        try:
            source = ImageSource(images)
            source.refuse_wrong_values(8)
            batches: list[Batch] = list(source.batches(Preprocessing((8, 8), 8), 3))
        except XattnError as error:
            return "refused", str(error).replace(address, "http://…")
    levels = [int(crop[0, 0, 0]) for batch in batches for crop in batch.crops]
    failed = [f"{image.name[:40]}: {reason}" for batch in batches for image, reason in batch.failed]
    lines += sorted({str(scaling) for batch in batches for scaling in batch.scalings if scaling is not None})
    shown = f"{len(levels)} picture{'s' * (len(levels) != 1)}"
    if failed:
        return "refused", f"{shown}; {len(failed)} refused, as {failed[0]}"
    return verdict(levels == list(case.right), case.says, lines), with_lines(shown, lines)


def cases() -> dict[str, list[Any]]:
    """Returns all cases by kind."""
    return {"encodings": encodings(), "labels": forms(), "sources": sources()}


def page(results: dict[str, list[Result]]) -> str:
    """Writes the three tables as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in MADE_WITH)
    lines = [
        "# Pictures, labels and sources",
        "",
        "Made by `python benchmarks/inputs.py`: each case is made with known content, and read as a run reads it. *right*: as it was made; "
        "*said*: otherwise, and a line says so; *refused*: with the reason; *left out*: counted and named in a line. Wanted: 0 in the last "
        f"three columns. With {versions}.",
        "",
        "| cases | number | " + " | ".join(OUTCOMES) + " |",
        "|---|" + "---:|" * (len(OUTCOMES) + 1),
    ]
    for kind, found in results.items():
        counts = Counter(result.outcome for result in found)
        lines.append(f"| {TITLES[kind][0].lower()} | {len(found)} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
    for kind, found in results.items():
        title, first, last = TITLES[kind]
        lines += ["", f"## {title}", "", f"| {first} | outcome | {last} |", "|---|---|---|"]
        lines += [f"| {cell(result.name)} | {result.outcome} | {cell(result.about)} |" for result in found]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Escapes text for a table of Markdown."""
    text = " ".join(text.split())
    text = text if len(text) <= LONGEST else text[:LONGEST] + " …"
    return "".join(f"\\{character}" if character in "|<*_`~[" else character for character in text if character.isprintable())


def outcomes_of(text: str) -> dict[str, str]:
    """Reads the outcome of each case from a page, by its name there."""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0].removeprefix("| "): row[1] for row in rows if len(row) == 3}


@click.command()
@click.argument("part", default="")
@click.option("--page/--no-page", "writes", default=True, help="Write results/inputs.md.")
def main(part: str, writes: bool) -> None:
    """Read every encoding, label format and source, or those with PART in their names, and count the outcomes."""
    if part and writes:
        raise click.UsageError("the page is of all cases: add --no-page")
    torch.set_num_threads(1)
    begin = time.monotonic()
    results = {kind: [attempt(case) for case in found if part in case.name] for kind, found in cases().items()}
    text = page(results)
    if writes:
        RESULT.write_text(text, encoding="utf-8")
    click.echo(text)
    click.echo(f"{time.monotonic() - begin:.0f} s", err=True)
    wrong = [result for found in results.values() for result in found if result.outcome in WRONG]
    for result in wrong:
        click.echo(f"{result.outcome}: {result.name}: {result.about}", err=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
