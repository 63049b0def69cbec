"""Runs and trainings that are killed, and several processes in one folder: cases as in `hostile.py`.

Each run is a fork of one process that has imported everything, so that a kill costs no import. In every case, the final `scores.csv` and
`table.csv`, or the weights, must equal those of an undisturbed run, byte for byte.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hostile import Case, Wrong
from odd_plain import SIDE, plain
from PIL import Image

import xattn
from xattn.errors import XattnError
from xattn.study import Study
from xattn.training import fit
from xattn.training.recipe import Recipe

PICTURES, BATCH = 8, 2
REFUSED = 7  # exit code of a fork that ended with an error of xattn
PATIENCE_S = 60
EVENTS = {"open": 0, "os.rename": 0, "os.remove": 0, "os.mkdir": 0}  # and which argument is the path
RUN, TRAIN = ("scores.csv", "table.csv"), ("weights.pt",)

Work = Callable[[Path], object]


def pictures(folder: Path) -> Path:
    """Writes pictures of noise in two folders, and a file that is not a picture."""
    place = folder / "pictures"
    if not place.exists():
        generator = torch.Generator().manual_seed(0)
        for number in range(PICTURES):
            noise = (torch.rand(SIDE, SIDE, 3, generator=generator) * (120 + 100 * (number % 2))).to(torch.uint8)
            (place / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.numpy()).save(place / "ab"[number % 2] / f"{number:02d}.png")
        (place / "bad.png").write_bytes(b"")
    return place


def running(images: Path) -> Work:
    """Runs a study over pictures, into a folder `run`."""
    classifier = xattn.attach(plain(), input_size=SIDE, resize=SIDE, name="plain")

    def work(folder: Path) -> None:
        options: dict[str, Any] = {"batch_size": BATCH, "workers": 0, "tune": "off", "progress": False, "save_maps": True}
        metrics = ["average-drop", "insertion", "deletion-correlation", "sparsity"]
        Study([classifier], ["grad-cam", "random"], metrics, images, folder / "run", target="predicted", **options).run()

    return work


def training(images: Path) -> Work:
    """Trains on pictures; the weights are written next to its folder when it is finished."""

    def work(folder: Path) -> None:
        torch.manual_seed(0)
        classifier = xattn.attach(plain(), head="br-npa:n=2", classes=2, input_size=SIDE, resize=SIDE, name="plain")
        recipe = Recipe(backbone=True, epochs=6, batch_size=4, lr=0.01, optimiser="sgd")
        (folder / "run").mkdir(exist_ok=True)
        fit(classifier, images, folder / "run" / "out.safetensors", recipe=recipe, workers=0, progress=False)
        torch.save(classifier.state_dict(), folder / "run" / "weights.part")
        (folder / "run" / "weights.part").replace(folder / "run" / "weights.pt")

    return work


# --- forks ------------------------------------------------------------------------------------------------------------------------------


def forked(work: Work, folder: Path, before: Callable[[], object] = lambda: None) -> int:
    """Starts a function in a fork, and returns its process.

    Args:
        work: function of the folder.
        folder: its folder; the text of an error is written to `said.<process>` in it.
        before: function that is called first, in the fork.
    """
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        before()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work(folder)
        code = 0
    except XattnError as error:
        (folder / f"said.{os.getpid()}").write_text(str(error))
        code = REFUSED
    except BaseException as error:
        (folder / f"said.{os.getpid()}").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def waited(process: int, seconds: float = PATIENCE_S) -> int:
    """Returns the exit code of a fork, or minus the signal that ended it.

    Raises:
        Wrong: it does not end.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise Wrong("it hangs")


def finished(work: Work, folder: Path) -> None:
    """Runs a function to its end.

    Raises:
        Wrong: it ends otherwise.
    """
    process = forked(work, folder)
    if (code := waited(process)) != 0:
        raise Wrong(f"it ended with {code}: {said(folder, process)}")


def said(folder: Path, process: int) -> str:
    """Returns the error text of a fork."""
    place = folder / f"said.{process}"
    return place.read_text() if place.exists() else ""


def ending_at(number: int, folder: Path) -> Callable[[], None]:
    """Kills the process with kill -9 at a file event in a folder, counted from 1; 0: counts the events and writes down their number."""

    def begin() -> None:
        count = 0

        def event(name: str, arguments: tuple[Any, ...]) -> None:
            nonlocal count
            if name not in EVENTS or not isinstance(arguments[0], (str, os.PathLike)):
                return
            if not str(arguments[0]).startswith(f"{folder}/") or (name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            if not number:
                with open(folder.with_suffix(".events"), "w") as file:
                    file.write(str(count))

        sys.addaudithook(event)

    return begin


def same(folder: Path, whole: Path, names: tuple[str, ...]) -> None:
    """Raises if results differ from those of the undisturbed work, or something unfinished was left."""
    for name in names:
        if not (folder / "run" / name).exists():
            raise Wrong(f"{name} is lost")
        if (folder / "run" / name).read_bytes() != (whole / "run" / name).read_bytes():
            raise Wrong(f"{name} differs")
    if left := [path.name for path in (folder / "run").rglob("*.unfinished")]:
        raise Wrong(f"left: {left}")


# --- cases ------------------------------------------------------------------------------------------------------------------------------


def undisturbed(name: str, base: Path, make: Callable[[Path], Work]) -> tuple[Work, Path, float, int]:
    """Undisturbed reference work: its function, its folder, its duration, and the number of its file events."""
    work, whole = make(pictures(base)), base / name
    if not whole.exists():
        (whole / "once").mkdir(parents=True)
        finished(work, whole / "once")  # so that everything is warm
        begin = time.monotonic()
        finished(work, whole)
        (whole / "seconds").write_text(str(time.monotonic() - begin))
        (whole / "counted").mkdir()
        if code := waited(forked(work, whole / "counted", ending_at(0, whole / "counted" / "run"))):
            raise RuntimeError(f"the run ended with {code}")
    return work, whole, float((whole / "seconds").read_text()), int((whole / "counted" / "run.events").read_text())


def kills(seed: int, count: int, base: Path) -> Iterator[Case]:
    """Generates runs killed at each of their file events, and runs and trainings killed at random moments, once or several times."""
    run, whole, seconds, events = undisturbed("whole-run", base, running)
    every = [*range(1, events + 1)]
    chance = random.Random(seed)
    chosen = sorted(chance.sample(every, min(len(every), count // 3)))
    for number in chosen:

        def at_event(folder: Path, number: int = number) -> None:
            if (code := waited(forked(run, folder, ending_at(number, folder / "run")))) != -signal.SIGKILL:
                raise Wrong(f"it ended with {code}")
            finished(run, folder)
            same(folder, whole, RUN)

        yield Case(f"run killed at file event {number} of {events}", at_event)
    trainings = max(1, count // 12)
    for number in range(count - len(chosen) - trainings):
        moments = [chance.uniform(0, seconds) for _ in range(chance.choice([1, 1, 2, 3]))]
        yield Case(f"run {number} killed after {', '.join(f'{moment:.2f}' for moment in moments)} s", killed(run, whole, moments, RUN))
    if trainings:
        train, trained, seconds, _ = undisturbed("whole-training", base, training)
    for number in range(trainings):
        moments = [chance.uniform(0, seconds) for _ in range(chance.choice([1, 2]))]
        yield Case(
            f"training {number} killed after {', '.join(f'{moment:.2f}' for moment in moments)} s", killed(train, trained, moments, TRAIN)
        )


def killed(work: Work, whole: Path, moments: list[float], names: tuple[str, ...]) -> Callable[[Path], None]:
    """Runs work that is killed after some seconds, again and again, and compares the final result."""

    def attempt(folder: Path) -> None:
        for moment in moments:
            process = forked(work, folder)
            time.sleep(moment)
            os.kill(process, signal.SIGKILL)
            waited(process)
        finished(work, folder)
        same(folder, whole, names)

    return attempt


def processes(seed: int, count: int, base: Path) -> Iterator[Case]:
    """Generates two or three processes that run, or train, into one folder."""
    chance = random.Random(seed)
    run, whole, seconds, _ = undisturbed("whole-run", base, running)
    trainings = max(1, count // 4)
    train, trained, longer, _ = undisturbed("whole-training", base, training)
    for number in range(count):
        is_run = number >= trainings
        work, at_rest, names, long = (run, whole, RUN, seconds) if is_run else (train, trained, TRAIN, longer)
        pauses = [chance.choice([0.0, chance.uniform(0, long)]) for _ in range(chance.choice([1, 2]))]
        ends = chance.random() < 0.3

        def attempt(
            folder: Path,
            work: Work = work,
            at_rest: Path = at_rest,
            names: tuple[str, ...] = names,
            pauses: list[float] = pauses,
            ends: bool = ends,
        ) -> None:
            begun = [forked(work, folder)]
            for pause in pauses:
                time.sleep(pause)
                begun.append(forked(work, folder))
            if ends:
                time.sleep(0.05)
                os.kill(begun[0], signal.SIGKILL)
            codes = {process: waited(process) for process in begun}
            for process, code in codes.items():
                if code not in (0, REFUSED, -signal.SIGKILL) or (code == REFUSED and "in use: " not in said(folder, process)):
                    raise Wrong(f"it ended with {code}: {said(folder, process)}")
            if not ends and 0 not in codes.values():
                raise Wrong(f"none was done: {codes}")
            if 0 not in codes.values():
                finished(work, folder)
            same(folder, at_rest, names)

        what = "runs" if is_run else "trainings"
        yield Case(
            f"{1 + len(pauses)} {what} {number}, {', '.join(f'{pause:.2f}' for pause in pauses)} s apart{', one killed' if ends else ''}",
            attempt,
        )
