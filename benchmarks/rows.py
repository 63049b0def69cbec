"""Makes a run with any number of rows, and measures the seconds and memory of the commands that read it.

The parts are copies of those of a study of a few pictures, with other names and values: layout, types, curves and maps are a study's, and
so is the time to write them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

import xattn
from xattn.study.schema import SCHEMA
from xattn.study.store import Store

METHODS = (
    *("random", "centre", "activation-map", "grad-cam", "grad-cam++", "hires-cam", "layer-cam", "xgrad-cam", "eigen-cam", "finer-cam"),
    *("grad-cam:signed=true", "hires-cam:signed=true", "xgrad-cam:signed=true", "eigen-cam:centred=true"),
    *(f"finer-cam:alpha={alpha}" for alpha in (0.1, 0.3, 0.5, 0.7, 0.9)),
    "guided-backprop",
)
METRICS = (
    *("average-drop", "average-gain", "average-increase", "average-drop-deletion", "complexity"),
    *("insertion", "deletion", "sparsity", "coherency", "adcc"),
)
PART = 8  # pictures
CLOCKED = """
import sys, time
from pathlib import Path
start = time.perf_counter()
{work}
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(time.perf_counter() - start, time.process_time(), int(status["VmHWM"].split()[0]) / 2**10, file=sys.stderr)
"""
"""Runs code in a separate process: prints wall-clock seconds, CPU seconds and its peak in MiB as the last line (Linux)."""
OWN = CLOCKED.format(work="from xattn.cli.main import main\nmain(sys.argv[1:], standalone_mode=False)")
FINISH = CLOCKED.format(
    work="from xattn.study.store import Store\nstore = Store(sys.argv[1])\nstore.finish(store.read_run()['settings']['metrics'])"
)


def make_run(folder: Path, count: int, methods: int = len(METHODS), metrics: int = len(METRICS)) -> Path:
    """Makes a finished run of a given number of pictures, methods and metrics, as a study of them would write it; made once.

    Args:
        folder: where the run is made.
        count: number of pictures, a multiple of 8.
        methods: number of methods; beyond those of the list, copies with other names and values.
        metrics: number of metrics, from the list.
    """
    out = folder / f"rows-{count}-{methods}-{metrics}"
    if out.exists():
        return out
    template = _template(folder, METHODS[:methods], METRICS[:metrics])
    unfinished = folder / f"{out.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    store, run = Store(unfinished), template.read_run()
    specs = [*METHODS, *(f"smooth-grad:samples={number}" for number in range(1, max(1, methods - len(METHODS)) + 1))][:methods]
    run["settings"]["methods"] = specs
    run["settings"]["images"]["count"] = count
    store.begin(run.pop("settings"), run)
    part, draw = _of_methods(_only_part(template), specs), np.random.default_rng(0)
    names = [f"{number:08d}.jpg" for number in range(count)]
    store.write_text("images.json", json.dumps({name: f"{number:032x}" for number, name in enumerate(names)}))
    for number in range(count // PART):
        store.write_part(f"0-{number:06d}", _other(part, names[number * PART : (number + 1) * PART], draw))
    unfinished.rename(out)
    return out


def _template(folder: Path, methods: tuple[str, ...], metrics: tuple[str, ...]) -> Store:
    """Runs a study of as many pictures as a part holds; run once."""
    pictures, out = folder / "template-pictures", folder / f"template-{len(methods)}-{len(metrics)}"
    if (store := Store(out)).finished:
        return store
    if not pictures.exists():
        pictures.mkdir(parents=True)
        for number in range(PART):
            noise = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(pictures / f"{number:08d}.jpg")
    classifier = xattn.load("birds:gap", device="cpu")
    study = xattn.Study([classifier], methods, metrics, pictures, out, workers=0, batch_size=PART, progress=False, tune="off")
    study.run()
    return store


def _only_part(store: Store) -> pa.Table:
    (name,) = store.done()
    part = store.part(name)
    assert part is not None
    return part


def _of_methods(part: pa.Table, specs: list[str]) -> pa.Table:
    """Returns the rows of a given number of methods: those of the part, and copies of the first under each further name."""
    tables = [part.filter(pa.compute.is_null(part["method"]))]
    for number, spec in enumerate(specs):
        own = part.filter(pa.compute.equal(part["method"], METHODS[number % len(METHODS)]))
        tables.append(own.set_column(own.column_names.index("method"), "method", pa.array([spec] * len(own), pa.string())))
    return pa.concat_tables(tables).combine_chunks()


def _other(part: pa.Table, names: list[str], draw: np.random.Generator) -> pa.Table:
    """Returns the part of other pictures: values and curves are drawn around those of the same row."""
    known = part["image"].unique().to_pylist()
    renamed = pa.array(names, pa.string()).take(pa.compute.index_in(part["image"], pa.array(known, pa.string())))
    noise = pa.array(draw.uniform(0.8, 1.0, len(part)))
    flat = part["curve"].combine_chunks()
    values = pa.array(
        flat.values.to_numpy(zero_copy_only=False) * draw.uniform(0.8, 1.0, len(flat.values)).astype(np.float32), pa.float32()
    )
    binary = pa.compute.is_in(part["metric"], value_set=pa.array(["average-increase"]))
    yes = pa.array(np.where(draw.random(len(part)) < 0.4, 100.0, 0.0))
    columns = {name: part[name] for name in SCHEMA.names}
    columns["image"] = renamed
    columns["value"] = pa.compute.if_else(binary, yes, pa.compute.multiply(part["value"], noise))
    columns["curve"] = pa.ListArray.from_arrays(flat.offsets, values, mask=flat.is_null())
    return pa.table(columns, schema=SCHEMA)


def _in_own_process(script: str, *words: str) -> dict[str, Any]:
    """Measures seconds and peak MiB of a script, in a separate process on one thread."""
    ran = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    if ran.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {ran.stderr[-1500:]}")
    seconds, cpu, peak = ran.stderr.split()[-3:]
    return {"seconds": float(seconds), "cpu": float(cpu), "whole": float(peak)}


READS: dict[str, tuple[str, ...]] = {
    "compare": ("compare", "RUN"),
    "compare --against random": ("compare", "RUN", "--against", "random"),
    "compare --tests --against random": ("compare", "RUN", "--tests", "--against", "random"),
    "compare --tests": ("compare", "RUN", "--tests"),
    "figure --kind heat": ("figure", "RUN", "--kind", "heat", "--out", "OUT.png"),
    "figure --kind ranks": ("figure", "RUN", "--kind", "ranks", "--out", "OUT.png"),
    "show": ("show", "RUN"),
    "report": ("report", "RUN", "--out", "OUT.html"),
}
OF_FEW = ("report", "compare --tests")  # a file of so many pictures, and minutes for the tests of every two methods
FEW = 1000  # pictures
TABLES = "the tables that end a run"


def read(folder: Path, count: int, methods: int, metrics: int, what: str) -> dict[str, Any]:
    """Measures seconds and peak MiB of one command on a run of a given number of pictures, methods and metrics.

    Args:
        folder: where the run is made.
        count: number of pictures.
        methods: number of methods.
        metrics: number of metrics.
        what: one of `READS` or `TABLES`.
    """
    run = make_run(folder, count, methods, metrics)
    if what == TABLES:
        found = _in_own_process(FINISH, str(run))
    else:
        places = {"RUN": str(run), "OUT.png": str(folder / "figure.png"), "OUT.html": str(folder / "report.html")}
        found = _in_own_process(OWN, *(places.get(word, word) for word in READS[what]))
    return found | {"images": count, "rows": count * methods * metrics}
