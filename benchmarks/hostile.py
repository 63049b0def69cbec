"""Hostile and damaged input, generated from a seed: each case is a name and a function that tries it in a folder of its own."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from click.testing import CliRunner
from PIL import Image

import xattn
import xattn.training
from xattn.birds import SketchBirds
from xattn.birds.pretrained import file_of
from xattn.cli import main
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


class Case(NamedTuple):
    """One attempt.

    Attributes:
        name: what is tried.
        run: tries it in a folder; a command line gives its exit code.
    """

    name: str
    run: Callable[[Path], object]


def drawn(folder: Path, count: int = 4) -> Path:
    """Some pictures, drawn."""
    place = folder / "birds"
    if not place.exists():
        SketchBirds("test", count).export(place)
    return place


# --- pictures ---------------------------------------------------------------------------------------------------------------------------


def pictures(seed: int, count: int) -> Iterator[Case]:
    """Pictures of six formats with bytes changed, cut, repeated or inserted."""
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
    """JSON with one entry lost or of another kind, or text that is hardly JSON; what was done, and the text."""
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
    """Heads with a damaged or hostile header: of the JSON, of the tensors, and such as name code."""
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
    """Run folders with a damaged run.json, images.json or part.

    Args:
        seed: of the damage.
        count: of cases.
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


# --- command lines ----------------------------------------------------------------------------------------------------------------------

NUMBERS = ("-1", "0", "nan", "inf", "-inf", "²", "١", "9" * 5000, "1e400", "1_0", "x", "", " ", "\x00", "1.5", "999999999999")
EXPLAIN = (
    "--batch-size",
    "--workers",
    "--depth",
    "--window",
    "--max-pixels",
    "--seed",
    "--threshold",
    "--input-size",
    "--resize",
    "--mean",
    "--std",
    "--memory",
    "--shard",
    "--actors",
    "--target",
    "--device",
    "--tune",
    "--level",
    "--engine",
    "--stage",
    "--output",
)
TRAIN = (
    "--epochs",
    "--batch-size",
    "--lr",
    "--momentum",
    "--weight-decay",
    "--step",
    "--smallest-crop",
    "--dropout",
    "--patience",
    "--validation",
    "--alpha",
    "--temperature",
    "--devices",
    "--nodes",
    "--precision",
    "--accelerator",
    "--search",
    "--preset",
    "--schedule",
    "--optimiser",
    "--high-res",
    "--head",
    "--classes",
)
SPECS = (
    "insertion:blur=999999",
    "insertion:tolerance=inf",
    "insertion:step=0",
    "deletion:step=²",
    "insertion:protocol=",
    "a:b:c=d",
    ":",
    "=",
    ",,,",
    "average-drop:,,,",
    "sparsity:x=1",
    "insertion:blur=" + "9" * 5000,
    "insertion:blur=1,blur=3",
    "\x00",
    "",
)
METHODS = (
    "score-cam:,,,",
    "score-cam:top=-1",
    "smooth-grad:samples=0",
    "smooth-grad:sigma=nan",
    "occlusion:window=99999",
    "grad-cam:x",
    "captum:",
    "captum:Nothing",
    "grad-cam:ScoreCAM:x=1",
    "finer-cam:alpha=inf",
    "random:",
    "opti-cam:steps=0",
    "..",
    "\x00",
)
MODELS = (
    "..",
    "..:..",
    "/proc:x",
    "os:system",
    "os.path:join",
    "birds:",
    "birds:\x00",
    "torchvision:../x",
    "timm:\x00",
    "hf:",
    "hf:/proc",
    "x.py:f",
    "/dev/null.py:f",
    ".py:f",
    ":",
    "::",
    "a..b:c",
    "x.safetensors",
    "\x00.safetensors",
    "",
)
HEADS = (
    "br-npa:n=1000000000000",
    "br-npa:n=-1",
    "ca-stream:start=99",
    "b-cnn:n=²",
    "ep:d_out=2000000000",
    "gap:x=1",
    "map:mlp_ratio=inf",
    "",
)
OUTS = ("/proc", "/proc/x", "/dev/null", "/dev/full/x", "", "\x00", "x" * 300)
TARGETS = (
    "--1",
    "²",
    "1000000000",
    "-1",
    "predicted - ",
    "nan*predicted",
    "9" * 400 + "*predicted",
    "second",
    "label",
    "- -",
    "*",
    "0*0",
    "\x00",
)
IMAGES = ("", " ", "\x00", "..\x00", "/proc/self/mem", "/dev/null", "/dev/zero", "[", "**[", "nowhere", "nowhere://x", "file://", "zip://x")


def command_lines(seed: int, count: int, base: Path) -> Iterator[Case]:
    """Command lines with one argument that cannot be used.

    Args:
        seed: of the choice, where fewer are wanted than there are.
        count: of cases.
        base: a folder for the pictures.
    """
    birds = str(drawn(base))
    explain = ["explain", birds, "--model", "birds:gap", "--device", "cpu", "--out", "{folder}/run", "--workers", "0", "--tune", "off"]
    explain += ["--metric", "sparsity"]
    train = [
        "train",
        "--data",
        "{folder}/nowhere",
        "--model",
        "birds:gap",
        "--out",
        "{folder}/x.safetensors",
        "--accelerator",
        "cpu",
        "--workers",
        "0",
    ]
    lines = [[*explain, f"{option}={value}"] for option in EXPLAIN for value in NUMBERS]
    lines += [[*train, f"{option}={value}"] for option in TRAIN for value in NUMBERS]
    lines += [[*explain, f"--metric={spec}"] for spec in SPECS] + [[*explain, f"--method={spec}"] for spec in METHODS]
    lines += [[*explain, f"--target={target}"] for target in TARGETS] + [[*explain, f"--head={head}"] for head in HEADS]
    lines += [["explain", birds, f"--model={model}", "--out", "{folder}/run", "--device", "cpu"] for model in MODELS]
    lines += [["explain", birds, "--model", "birds:gap", f"--out={out}", "--device", "cpu", "--metric=sparsity"] for out in OUTS]
    lines += [["explain", image, "--model", "birds:gap", "--out", "{folder}/run", "--device", "cpu"] for image in IMAGES]
    lines += [["explain", "{folder}/pipe.png", *explain[2:]], [*explain, f"--labels-csv={birds}/../billion.csv"]]
    lines += [[command, value] for command in ("compare", "figure", "list", "demo", "train", "nothing") for value in (*OUTS, "--x", "..")]
    (base / "billion.csv").write_text("image,label\n" + "".join(f"{path.name},1000000000\n" for path in Path(birds).glob("*.png")))
    random.Random(seed).shuffle(lines)
    for line in lines[:count]:

        def invoke(folder: Path, line: list[str] = line) -> int:
            os.mkfifo(folder / "pipe.png")
            with inside(folder):
                result = CliRunner().invoke(main, [part.replace("{folder}", str(folder)) for part in line], prog_name="xattn")
            if result.exception is not None and not isinstance(result.exception, SystemExit):
                raise result.exception
            return result.exit_code

        yield Case(" ".join(part[:40] for part in (line[0], *line[1:2], line[-1])), invoke)


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The working folder of a case, so that relative paths write there."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# --- calls ------------------------------------------------------------------------------------------------------------------------------


def calls(seed: int, count: int) -> Iterator[Case]:
    """Calls of the Python API with one argument that cannot be used."""
    classifier = load("birds:gap", device="cpu")
    images = torch.rand(2, 3, 64, 64)
    bad_images = (
        torch.rand(0, 3, 64, 64),
        torch.rand(3, 64, 64),
        torch.rand(2, 64, 64, 3),
        torch.full((2, 3, 64, 64), float("nan")),
        images * 255,
        (images * 255).to(torch.uint8),
        torch.rand(2, 3, 1, 1),
        torch.rand(2, 1, 64, 64),
        [],
        "",
        ["nowhere.png"],
        "\x00",
    )
    bad_targets = (
        99,
        -1,
        "nothing",
        [0],
        [0, 1, 2],
        torch.tensor([0.5, 1.0]),
        torch.zeros(2, 2),
        "second - ",
        [None, 0],
        10**30,
        True,
        "²",
    )
    tries: list[tuple[str, Callable[[], object]]] = []
    tries += [
        (f"explain(images {number})", lambda given=given: xattn.explain(classifier, given)) for number, given in enumerate(bad_images)
    ]
    tries += [
        (f"explain(target {given!r:.30})", lambda given=given: xattn.explain(classifier, images, target=given)) for given in bad_targets
    ]
    tries += [(f"explain(method {given!r:.30})", lambda given=given: xattn.explain(classifier, images, [given])) for given in METHODS]
    tries += [(f"load({given!r:.30})", lambda given=given: xattn.load(given, device="cpu")) for given in MODELS]
    tries += [(f"load(head {given!r:.30})", lambda given=given: xattn.load("birds:gap", head=given, device="cpu")) for given in HEADS]
    tries += [
        (f"load(input_size {given!r:.30})", lambda given=given: xattn.load("birds:gap", input_size=given, device="cpu"))
        for given in (0, -1, 10**7, 10**30, (1, 2, 3), (10**6, 10**6), 3)
    ]
    tries += [
        (f"Study({key} {given!r:.30})", lambda key=key, given=given: Study([classifier], images=drawn(Path.cwd()), **{key: given}))
        for key, values in {
            "batch_size": (0, -1),
            "shard": ((0, 1), (2, 1), (1, 10**12)),
            "memory": ("x", "-1GB", 0),
            "methods": ("grad-cam", [], ["x"]),
            "metrics": ("x", ["insertion:blur=2"]),
            "tune": ("x", "chunk=0", "chunk=²"),
            "engine": ("x",),
            "threshold": (2.0,),
            "depth": (99,),
        }.items()
        for given in values
    ]
    random.Random(seed).shuffle(tries)
    for name, call in tries[:count]:

        def attempt(folder: Path, call: Callable[[], object] = call) -> None:
            with inside(folder):
                call()

        yield Case(name, attempt)
