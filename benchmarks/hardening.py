"""Hostile input, odd networks, kills, threads and several processes in bulk: no wrong value, traceback, code run or hang, nothing lost.

    python benchmarks/hardening.py                               # writes results/hardening.md
    python benchmarks/hardening.py --only networks --only threads --no-page

Each kind is swept in a separate process with a bound on its memory; a case that takes too long ends the process, and the sweep continues
after it. Cases are generated from a seed (`hostile.py` and the files next to it).
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
ROOM = 8 * 2**30  # bytes in addition to what the process holds at the start
START_S = 300  # imports, and the preparation of a sweep


@dataclass(frozen=True)
class Kind:
    """A kind of case.

    Attributes:
        title: title of its row.
        count: default number of cases.
        section: section that describes the cases and the right outcome.
        slow: a case may take minutes.
    """

    title: str
    count: int
    section: str
    slow: bool = False


KINDS = {
    "kills": Kind(
        "kills -9",
        100,
        "Runs killed at a file event (a third of the cases), runs killed at random moments up to three times, and trainings likewise, then "
        "finished. *Done*: `scores.csv` and `table.csv`, or the weights, are those of an undisturbed run byte for byte.",
        slow=True,
    ),
    "processes": Kind(
        "several processes in one folder",
        16,
        "Two or three processes that run, or train, into one folder, one of them killed in some cases. *Done*: each ends or is refused "
        "with the holder's name, and the result is that of an undisturbed run.",
        slow=True,
    ),
    "threads": Kind(
        "calls from eight threads",
        1000,
        "Eight threads with one classifier begin the same call at once, three times. *Done*: each has the values that it has alone.",
        slow=True,
    ),
    "networks": Kind(
        "odd networks",
        1000,
        "Networks built oddly (half precision, weight norm, shared modules, hooks, wrappers, …), behaving oddly (dropout left on, in-place "
        "operations on the input, weights that change, …), returning something odd or raising. *Done*: output, Grad-CAM and average drop "
        "are those of a plain network in plain torch, alone and in a batch, and the network is as it was; or the log says that it is "
        "unstable; or each row has an error in the place of a value.",
    ),
    "pickles": Kind(
        "weights files that would run code",
        1000,
        "29 or more ways in which a pickle runs code (24 were seen to run where the pickle is trusted), each as a plain pickle, in a zip "
        "archive, beside weights, in an `argparse.Namespace`, as a legacy file and as `.safetensors`. All are refused, none runs.",
    ),
    "calls": Kind("bad calls of the Python API", 1000, "Calls with one argument that cannot be used."),
    "headers": Kind("damaged or hostile headers of heads", 80, "Heads whose header was damaged, lies about its tensors or names code."),
    "lines": Kind("bad command lines", 500, "Command lines with one argument that cannot be used."),
    "runs": Kind(
        "damaged or hostile run folders", 120, "Run folders whose `run.json` or parts were damaged, read by every reader of them."
    ),
    "pictures": Kind("mutated pictures", 1000, "Pictures of six formats with bytes changed, cut, repeated or inserted."),
}
SLOW_S = 120.0


@dataclass(frozen=True)
class Result:
    """Outcome of a case.

    Attributes:
        name: name of the case.
        outcome: one of `OUTCOMES`.
        about: the error message.
    """

    name: str
    outcome: str
    about: str = ""


def sweep(kind: str, seed: int, count: int, base: Path, limit_s: float) -> Iterator[Result]:
    """Returns the results of a kind's cases, in order.

    Args:
        kind: one of `KINDS`.
        seed: seed of the cases.
        count: number of cases.
        base: a folder for what the cases share.
        limit_s: seconds after which a case counts as hanging.
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
    """Runs the cases from `start` on, and reports each twice: its name before, its result after."""
    import torch

    torch.set_num_threads(1)
    made = _cases(kind, seed, count, base)
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


def _cases(kind: str, seed: int, count: int, base: Path) -> Iterator[object]:
    """Returns the cases of a kind from the module that generates them."""
    if kind in ("pictures", "headers", "runs"):
        import hostile

        return (
            {"pictures": hostile.pictures, "headers": hostile.headers}[kind](seed, count)
            if kind != "runs"
            else hostile.run_folders(seed, count, base)
        )
    if kind == "pickles":
        from hostile_pickles import pickles

        return pickles(count)
    if kind == "lines":
        from hostile_lines import command_lines

        return command_lines(seed, count, base)
    if kind == "calls":
        from hostile_calls import calls

        return calls(seed, count)
    if kind == "networks":
        from hostile_networks import networks

        return islice(networks(), count)
    if kind == "threads":
        from hostile_threads import threads

        return islice(threads(), count)
    import hostile_processes

    return (hostile_processes.kills if kind == "kills" else hostile_processes.processes)(seed, count, base)


def attempt(case: object) -> Result:
    """Runs one case in a temporary folder, and returns its outcome."""
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
    """Writes the counts as Markdown, the description of each kind, and each case that ended wrongly."""
    lines = [
        "# Hostile input, odd networks, kills, threads and processes",
        "",
        f"`{' '.join(['python benchmarks/hardening.py', *sys.argv[1:]])}`, {seconds:.0f} s. Wanted: 0 in the last four columns. *Done*: "
        "the input was taken, as a picture with one changed pixel is, and what is said below of its kind holds; *refused*: one sentence "
        "and, on the command line, an exit code that is not 0.",
        "",
        "| input | cases | " + " | ".join(OUTCOMES) + " |",
        "|---|" + "---:|" * (len(OUTCOMES) + 1),
    ]
    for kind, found in results.items():
        counts = Counter(result.outcome for result in found)
        lines.append(f"| {KINDS[kind].title} | {len(found)} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
    for kind in results:
        lines += ["", f"## {KINDS[kind].title.capitalize()}", "", KINDS[kind].section]
    wrong = [(kind, result) for kind, found in results.items() for result in found if result.outcome in WRONG]
    lines += [""] + [f"- {kind}: {result.outcome}: `{result.name!r}` {result.about}" for kind, result in wrong]
    return "\n".join(lines).rstrip() + "\n"


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*KINDS]), help="A kind to sweep. Repeatable; all if none.")
@click.option("--count", type=click.IntRange(1), help="Cases of each kind, at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--limit", "limit_s", type=float, default=60.0, show_default=True, help="Seconds after which a case hangs; of slow kinds, 120."
)
@click.option("--page/--no-page", "writes", default=True, help="Write results/hardening.md.")
def main(only: tuple[str, ...], count: int | None, seed: int, limit_s: float, writes: bool) -> None:
    """Try what users and hostile files do, in ten kinds, and count how it ends."""
    counts = {kind: min(about.count, count or about.count) for kind, about in KINDS.items() if kind in (only or KINDS)}
    base = Path(tempfile.mkdtemp(prefix="hardening-"))
    begin = time.monotonic()
    results: dict[str, list[Result]] = {}
    try:
        for kind, wanted in counts.items():
            results[kind] = []
            patience = max(limit_s, SLOW_S) if KINDS[kind].slow else limit_s
            for result in sweep(kind, seed, wanted, base, patience):
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
