"""Hostile and damaged input in bulk: no traceback, no code run, no hang.

    python benchmarks/hardening.py                               # writes results/hardening.md
    python benchmarks/hardening.py --pictures 50 --lines 40 --calls 20 --headers 10 --runs 12 --no-page

Each kind is swept in a process of its own with a bound on its memory; a case that takes too long ends the process, and the sweep goes on
behind it. Cases come from a seed (`hostile.py`).
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import click

RESULT = Path(__file__).parent / "results" / "hardening.md"
OUTCOMES = ("done", "refused", "wrong or lost", "traceback", "code run", "hang")
WRONG = OUTCOMES[2:]
ROOM = 8 * 2**30  # bytes beyond what the process holds when it begins
START_S = 300  # imports, and what a sweep prepares


@dataclass(frozen=True)
class Result:
    """How a case ended.

    Attributes:
        name: of the case.
        outcome: one of `OUTCOMES`.
        about: the error.
    """

    name: str
    outcome: str
    about: str = ""


def sweep(kind: str, seed: int, count: int, base: Path, limit_s: float) -> Iterator[Result]:
    """The results of a kind's cases, in order.

    Args:
        kind: pictures, headers, runs, lines or calls.
        seed: of the cases.
        count: of cases.
        base: a folder for what the cases share.
        limit_s: seconds after which a case hangs.
    """
    done = 0
    while done < count:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=work, args=(theirs, kind, seed, count, base, done))
        process.start()
        theirs.close()
        name, patience = "", float(START_S)
        try:
            while ours.poll(patience):
                message = ours.recv()
                if message is None:
                    return
                if isinstance(message, str):
                    name, patience = message, limit_s
                    continue
                done += 1
                yield message
                name, patience = "", float(START_S)
            if not name:
                raise RuntimeError(f"the sweep of {kind} did not begin within {START_S} s")
            done += 1
            yield Result(name, "hang", f"over {limit_s:g} s")
        except EOFError:
            if not name:
                raise RuntimeError(f"the sweep of {kind} ended before its first case") from None
            done += 1
            yield Result(name, "traceback", "the process died")
        finally:
            process.kill()
            process.join()


def work(connection: Connection, kind: str, seed: int, count: int, base: Path, start: int) -> None:
    """Tries the cases from `start` on, and reports each twice: its name before, its result after."""
    import hostile
    import hostile_calls
    import torch

    torch.set_num_threads(1)
    made = {
        "pictures": lambda: hostile.pictures(seed, count),
        "headers": lambda: hostile.headers(seed, count),
        "runs": lambda: hostile.run_folders(seed, count, base),
        "lines": lambda: hostile_calls.command_lines(seed, count, base),
        "calls": lambda: hostile_calls.calls(seed, count),
    }[kind]()
    begun = False
    for case in islice(made, start, None):
        if not begun:
            held = (
                int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if os.path.exists("/proc/self/statm") else 0
            )
            resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
            begun = True
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
        connection.send(case.name)
        connection.send(attempt(case))
    connection.send(None)


def attempt(case: object) -> Result:
    """How one case ends, in a folder that is removed."""
    import hostile
    from click import ClickException

    from xattn.errors import XattnError

    name, run = case  # type: ignore[misc]  # a hostile.Case
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        try:
            code = run(folder)
            found = Result(name, "refused" if code else "done")
        except (XattnError, ClickException) as error:
            found = Result(name, "refused", str(error)[:200])
        except hostile.Wrong as error:
            found = Result(name, "wrong or lost", str(error))
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            found = Result(name, "traceback", f"{type(error).__name__}: {str(error)[:120]!r} ({Path(frame.filename).name}:{frame.lineno})")
        return Result(name, "code run") if (folder / hostile.RAN).exists() else found


def page(results: dict[str, list[Result]], seconds: float) -> str:
    """The counts as Markdown, and each case that ended wrongly."""
    lines = [
        "# Hostile and damaged input",
        "",
        f"`{' '.join(['python benchmarks/hardening.py', *sys.argv[1:]])}`, {seconds:.0f} s. Wanted: 0 in the last four columns. *done*: "
        "the input was taken, as a picture with one changed pixel is; *refused*: one sentence and, on the command line, an exit code "
        "that is not 0.",
        "",
        "| input | cases | " + " | ".join(OUTCOMES) + " |",
        "|---|" + "---:|" * (len(OUTCOMES) + 1),
    ]
    titles = {
        "pictures": "mutated pictures",
        "headers": "damaged or hostile headers of heads",
        "runs": "damaged or hostile run folders",
        "lines": "bad command lines",
        "calls": "bad calls of the Python API",
    }
    for kind, found in results.items():
        counts = Counter(result.outcome for result in found)
        lines.append(f"| {titles[kind]} | {len(found)} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
    wrong = [(kind, result) for kind, found in results.items() for result in found if result.outcome in WRONG]
    lines += [""] + [f"- {kind}: {result.outcome}: `{result.name!r}` {result.about}" for kind, result in wrong]
    return "\n".join(lines).rstrip() + "\n"


@click.command()
@click.option("--pictures", type=click.IntRange(0), default=1000, show_default=True)
@click.option("--headers", type=click.IntRange(0), default=80, show_default=True)
@click.option("--runs", type=click.IntRange(0), default=120, show_default=True)
@click.option("--lines", type=click.IntRange(0), default=500, show_default=True)
@click.option("--calls", type=click.IntRange(0), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--limit", "limit_s", type=float, default=30.0, show_default=True, help="Seconds after which a case hangs.")
@click.option("--page/--no-page", "writes", default=True, help="Write results/hardening.md.")
def main(pictures: int, headers: int, runs: int, lines: int, calls: int, seed: int, limit_s: float, writes: bool) -> None:
    """Try hostile input of five kinds and count how it ends."""
    counts = {"pictures": pictures, "headers": headers, "runs": runs, "lines": lines, "calls": calls}
    base = Path(tempfile.mkdtemp(prefix="hardening-"))
    begin = time.monotonic()
    results: dict[str, list[Result]] = {}
    try:
        for kind, count in counts.items():
            results[kind] = []
            for result in sweep(kind, seed, count, base, limit_s) if count else ():
                results[kind].append(result)
                if result.outcome in WRONG:
                    click.echo(f"{kind}: {result.outcome}: {result.name!r} {result.about}", err=True)
            text = page(results, time.monotonic() - begin)
            if writes:
                RESULT.write_text(text, encoding="utf-8")
    finally:
        shutil.rmtree(base, ignore_errors=True)
    click.echo(text)
    sys.exit(any(result.outcome in WRONG for found in results.values() for result in found))


if __name__ == "__main__":
    main()
