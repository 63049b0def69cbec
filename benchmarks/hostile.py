"""Hostile and damaged input, generated from a seed: each case is a name and a function that runs it in its own folder."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from xattn.birds import SketchBirds
from xattn.birds.pretrained import file_of
from xattn.data.images import ImageSource
from xattn.data.preprocessing import Preprocessing
from xattn.errors import XattnError
from xattn.figures import figure
from xattn.models import load
from xattn.study import Study
from xattn.study.compare import compare_runs
from xattn.study.store import Store

CODE = "import pathlib; pathlib.Path({place!r}).touch()\n"
RAN = "code-ran"  # a file that hostile code would make
ODD = (None, True, -1, 0, 1.5, 10**12, 10**30, 1e308, "", "x" * 10_000, "\x1b[31m\x00", "../../etc/passwd", [], {}, [[]], {"a": {"b": {}}})
NESTED = 100_000


class Wrong(Exception):
    """A case returned a wrong value, or lost something."""


class Case(NamedTuple):
    """One test case.

    Attributes:
        name: what is tested.
        run: runs it in a folder; a command line returns its exit code.
    """

    name: str
    run: Callable[[Path], object]


def drawn(folder: Path, count: int = 4) -> Path:
    """Draws some pictures."""
    place = folder / "birds"
    if not place.exists():
        SketchBirds("test", count).export(place)
    return place


# --- pictures ---------------------------------------------------------------------------------------------------------------------------


def pictures(seed: int, count: int) -> Iterator[Case]:
    """Generates pictures of six formats with bytes changed, cut, repeated or inserted."""
    chance = random.Random(seed)
    torch.manual_seed(seed)
    noise = Image.fromarray((torch.rand(48, 64, 3) * 255).to(torch.uint8).numpy())
    files = {}
    for form, suffix in (("PNG", ".png"), ("JPEG", ".jpg"), ("GIF", ".gif"), ("TIFF", ".tif"), ("BMP", ".bmp"), ("WEBP", ".webp")):
        buffer = io.BytesIO()
        noise.save(buffer, form)
        files[suffix] = buffer.getvalue()
    for number in range(count):
        suffix = chance.choice(sorted(files))
        content = _mutated(bytearray(files[suffix]), chance)

        def decode(folder: Path, content: bytes = bytes(content), suffix: str = suffix) -> None:
            path = folder / f"picture{suffix}"
            path.write_bytes(content)
            source = ImageSource(path)
            source.decode(source.images[0], Preprocessing((32, 32), 32))

        yield Case(f"picture {number}{suffix}", decode)


def _mutated(content: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.randint(1, 6)):
        place = chance.randrange(len(content)) if content else 0
        way = chance.randrange(5)
        if way == 0 and content:
            content[place] = chance.randrange(256)
        elif way == 1:
            del content[place:]
        elif way == 2:
            content[place:place] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 64)))
        elif way == 3:
            content[place : place + 4] = struct.pack(">I", chance.choice([0, 2**31 - 1, 2**32 - 1, 65536]))
        else:
            del content[place : place + chance.randint(1, 64)]
    return content


# --- JSON -------------------------------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def _spoiled(content: Any, chance: random.Random) -> tuple[str, str]:
    """Generates JSON with one entry removed or of another type, or malformed text; returns the change and the text."""
    text = json.dumps(content)
    whole = {
        "nested": "[" * NESTED,
        "nested, closed": "[" * NESTED + "]" * NESTED,
        "cut": text[: len(text) // 2],
        "empty": "",
        "NaN": text.replace("0", "NaN", 1),
        "5,000 digits": text.replace(": 1", ": " + "9" * 5000, 1),
        "1e999": text.replace(": 1", ": 1e999", 1),
        "no object": "[1, 2]",
        "bytes": text[:20] + "\udcff" + text[20:],
    }
    if chance.random() < 0.2:
        name = chance.choice(sorted(whole))
        return name, whole[name]
    content = copy.deepcopy(content)
    place = chance.choice(list(_places(content)))
    holder = content
    for key in place[:-1]:
        holder = holder[key]
    shown = ".".join(map(str, place))
    if chance.random() < 0.3:
        del holder[place[-1]]
        return f"{shown} missing", json.dumps(content)
    odd = chance.choice(ODD)
    holder[place[-1]] = odd
    return f"{shown} = {str(odd)[:20]!r}", json.dumps(content)


# --- headers ----------------------------------------------------------------------------------------------------------------------------


def headers(seed: int, count: int) -> Iterator[Case]:
    """Generates heads with a damaged or hostile header: of the JSON, of the tensors, or naming code."""
    chance = random.Random(seed)
    content = Path(file_of("birds:gap")).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = json.loads(header["__metadata__"]["xattn"])
    for number in range(count):
        tensors = copy.deepcopy(header)
        way = number % 10
        if way == 0:
            done = "names code"
            tensors["__metadata__"]["xattn"] = json.dumps(
                about | {"source": about["source"] | {"model": chance.choice(["{folder}/evil.py:build", "evil:build", "os:system"])}}
            )
        elif way == 1:
            key = chance.choice([key for key in tensors if key != "__metadata__"])
            done = f"tensor {key}"
            tensors[key] |= chance.choice(
                [{"shape": [10**12]}, {"data_offsets": [0, 2**60]}, {"dtype": "F99"}, {"shape": [-1]}, {"dtype": "I8"}]
            )
        else:
            done, text = _spoiled(about, chance)
            tensors["__metadata__"]["xattn"] = text

        def read(folder: Path, tensors: dict[str, Any] = tensors) -> None:
            (folder / "evil.py").write_text(CODE.format(place=str(folder / RAN)))
            packed = json.dumps(tensors).replace("{folder}", str(folder)).encode()
            path = folder / "head.safetensors"
            path.write_bytes(len(packed).to_bytes(8, "little") + packed + body)
            load(str(path), device="cpu")

        yield Case(f"header {number}: {done}", read)


# --- run folders ------------------------------------------------------------------------------------------------------------------------


def run_folders(seed: int, count: int, base: Path) -> Iterator[Case]:
    """Generates run folders with a damaged run.json, images.json or part.

    Args:
        seed: seed of the damage.
        count: number of cases.
        base: a folder for the run that is damaged.
    """
    chance = random.Random(seed)
    run = base / "run"
    if not run.exists():
        Study([load("birds:gap", device="cpu")], ["grad-cam", "random"], ["average-drop"], drawn(base), run, progress=False).run()
    about = json.loads((run / "run.json").read_text())
    part = next((run / "parts").iterdir())
    rows, whole = pq.read_table(part), part.read_bytes()
    for number in range(count):
        way, write = number % 4, None
        if way in (0, 1):
            done, text = _spoiled(about, chance)
            write = ("run.json", text.encode(errors="surrogateescape"))
        elif way == 2:
            done, write = "part's bytes", (f"parts/{part.name}", bytes(_mutated(bytearray(whole), chance)))
        else:
            done, table = _spoiled_part(rows, chance)
            buffer = io.BytesIO()
            pq.write_table(table, buffer, compression="zstd")
            write = (f"parts/{part.name}", buffer.getvalue())

        def read(folder: Path, write: tuple[str, bytes] = write) -> None:
            place = folder / "run"
            shutil.copytree(run, place)
            (place / write[0]).write_bytes(write[1])
            steps = (
                lambda: compare_runs([place]).text("markdown"),
                lambda: figure([place], folder / "grid.png"),
                lambda: Store(place).finish(["average-drop"]),
                lambda: Store(place).curves(),
                lambda: Store(place).table(),
            )
            refused = [_refused(step) for step in steps]
            if any(refused):
                raise next(error for error in refused if error)

        yield Case(f"run folder {number}: {done}", read)


def _refused(step: Callable[[], object]) -> XattnError | None:
    try:
        step()
    except XattnError as error:
        return error
    return None


def _spoiled_part(rows: pa.Table, chance: random.Random) -> tuple[str, pa.Table]:
    name = chance.choice(rows.column_names)
    place = rows.column_names.index(name)
    count = len(rows)
    ways: dict[str, Callable[[], pa.Table]] = {
        "lost": lambda: rows.drop_columns([name]),
        "null": lambda: rows.set_column(place, name, pa.nulls(count, rows.schema.field(name).type)),
        "texts": lambda: rows.set_column(place, name, pa.array(["\x1b[2J"] * count)),
        "numbers": lambda: rows.set_column(place, name, pa.array([-(2**62)] * count)),
        "infinite": lambda: rows.set_column(place, name, pa.array([float("inf")] * count)),
        "structs": lambda: rows.set_column(place, name, pa.array([{"a": [{"b": 1}]}] * count)),
        "twice": lambda: rows.append_column(name, rows[name]),
        "long": lambda: pa.table({"image": pa.array(["x" * 10_000_000]).take(pa.array([0] * 100))}),
        "a billion": lambda: pa.table({"image": pa.DictionaryArray.from_arrays(pa.array([0] * 20_000_000, pa.int32()), ["a"])}),
    }
    way = chance.choice(sorted(ways))
    return f"column {name} {way}", ways[way]()
