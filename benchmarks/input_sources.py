"""Places and objects that hold pictures: which pictures a run must find there, or why it refuses."""

from __future__ import annotations

import contextlib
import functools
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

LEVELS = (0, 60, 120, 180)
"""Grey levels of the pictures, in their order."""
SERVED = "http://served"
"""Placeholder for the address of a server of the folder."""
LONG = "x" * 240 + ".png"


@dataclass(frozen=True)
class Source:
    """A source and its content.

    Attributes:
        name: name of the kind of source.
        make: creates it in a folder, and returns arguments of `ImageSource`: `images` and options.
        right: the grey levels of its pictures, in order.
        says: what a log line must contain about pictures that are left out or doubtful; empty if there are none.
    """

    name: str
    make: Callable[[Path], Any]
    right: Sequence[int] = LEVELS
    says: str = ""


def picture(level: int) -> Image.Image:
    """Makes a grey picture."""
    return Image.new("RGB", (8, 8), (level,) * 3)


def content(level: int) -> bytes:
    """Encodes a grey picture as PNG."""
    found = io.BytesIO()
    picture(level).save(found, "PNG")
    return found.getvalue()


def put(folder: Path, names: Sequence[str] = ("0.png", "1.png", "2.png", "3.png")) -> Path:
    """Writes pictures of the levels, under names in the order of the levels."""
    for name, level in zip(names, LEVELS, strict=False):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content(level))
    return folder


def tar(place: Path, mode: str = "w", extra: Mapping[str, bytes] | None = None) -> Path:
    """Writes a tar file of the pictures, with more files next to each."""
    with tarfile.open(place, mode) as file:  # type: ignore[call-overload]  # a mode by name
        for number, level in enumerate(LEVELS):
            for ending, data in {"png": content(level), **(extra or {})}.items():
                about = tarfile.TarInfo(f"{number:04d}.{ending}")
                about.size = len(data)
                file.addfile(about, io.BytesIO(data))
    return place


def archive(place: Path) -> Path:
    """Writes a zip file of the pictures, in a folder."""
    with zipfile.ZipFile(place, "w") as file:
        for number, level in enumerate(LEVELS):
            file.writestr(f"p/{number}.png", content(level))
    return place


def parquet(place: Path, *, is_struct: bool) -> Path:
    """Writes a Parquet file of the pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = [{"bytes": content(level), "path": None} if is_struct else content(level) for level in LEVELS]
    pq.write_table(pa.table({"image": data, "label": list(range(4))}), place)
    return place


def hugging_face(*, is_stream: bool = False) -> Any:
    """Makes a data set of Hugging Face."""
    import datasets

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"image": [picture(level) for level in LEVELS], "label": list(range(4))})
    return made.to_iterable_dataset() if is_stream else made


def saved(folder: Path) -> str:
    """Writes a data set of Hugging Face to a folder, and names it as a place."""
    hugging_face().save_to_disk(folder / "set")
    return f"datasets:{folder}/set"


class Items(Dataset[Any]):
    """A data set of given items."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Stream(IterableDataset[Any]):
    """A data set that can only be read sequentially."""

    def __iter__(self) -> Iterator[Any]:
        return iter([picture(level) for level in LEVELS])


class Failing(Items):
    """A data set with an item that cannot be read."""

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serves a folder at a URL."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def tensors(kind: str) -> torch.Tensor:
    """Returns the pictures as a tensor."""
    found = torch.tensor(LEVELS, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return {
        "uint8": found,
        "float": found / 255,
        "255": found.float(),
        "normalised": (found / 255 - 0.45) / 0.225,
        "int64": found.long(),
        "nan": torch.full((4, 3, 8, 8), float("nan")),
    }[kind]


def pil() -> list[Image.Image]:
    """Returns the pictures as Pillow pictures."""
    return [picture(level) for level in LEVELS]


def text_list(folder: Path, label: str = "", more: str = "") -> Path:
    """Writes a text file of paths, one per line."""
    put(folder / "in")
    (folder / "list.txt").write_text("".join(f"in/{n}.png{label}\n" for n in range(4)) + more)
    return folder / "list.txt"


def csv_list(folder: Path, rows: Sequence[str]) -> Path:
    """Writes a CSV next to the pictures."""
    (put(folder / "in") / "list.csv").write_text("\n".join(["image,label", *rows]) + "\n")
    return folder / "in" / "list.csv"


def with_loop(folder: Path) -> Path:
    """Makes a folder with links to itself, to its parent and to one of its pictures."""
    put(folder / "in")
    (folder / "in" / "self").symlink_to(".")
    (folder / "in" / "above").symlink_to("..")
    (folder / "in" / "4.png").symlink_to("0.png")
    return folder / "in"


def bytes_name(folder: Path) -> Path:
    """Writes a file whose name is not UTF-8."""
    put(folder / "in", ["0.png", "1.png", "2.png", "a.png"])
    os.rename(folder / "in" / "a.png", os.fsencode(folder / "in") + b"/caf\xe9.png")
    return folder / "in"


def mixed(folder: Path) -> Path:
    """Writes pictures among other files."""
    put(folder / "in")
    for name in ("notes.txt", "a.psd", "IMG_1.heic", ".hidden.png"):
        (folder / "in" / name).write_bytes(b"x")
    os.mkfifo(folder / "in" / "pipe")
    return folder / "in"


def unreadable(folder: Path) -> Path:
    """Makes a folder with a truncated picture."""
    put(folder / "in")
    (folder / "in" / "2.png").write_bytes(content(120)[:40])
    return folder / "in"


def sources() -> list[Source]:
    """Lists all sources."""
    four = ["0.png,0", "1.png,1", "2.png,2", "3.png,3"]
    nested = ["a/0.png", "a/b/1.png", "c/2.png", "d.png"]
    return [
        Source("a file", lambda folder: put(folder) / "1.png", [60]),
        Source("a folder", put),
        Source("a folder with .. in its path", lambda folder: f"{put(folder / 'in')}/../in"),
        Source("a folder of folders", lambda folder: put(folder / "in", nested)),
        Source("a glob", lambda folder: f"{put(folder)}/[0-2].png", LEVELS[:3]),
        Source("a glob into folders", lambda folder: f"{put(folder / 'in', nested)}/**/*.png"),
        Source("a glob without a match", lambda folder: f"{put(folder)}/*.jpg"),
        Source(
            "a list of files and folders",
            lambda folder: [put(folder / "a", ["0.png", "1.png"]), put(folder / "b") / "2.png", put(folder / "c") / "3.png"],
        ),
        Source("a file twice", lambda folder: [put(folder), folder / "0.png", folder / "." / "0.png"]),
        Source("file://", lambda folder: f"file://{put(folder)}"),
        Source("a CSV", lambda folder: csv_list(folder, four)),
        Source("a CSV with semicolons", lambda folder: semicolons(folder)),
        Source("a CSV that names a missing file", lambda folder: csv_list(folder, [*four, "9.png,4"])),
        Source("a CSV without the column image", lambda folder: (put(folder) / "x.csv").write_text("a,b\n0.png,1\n") and folder / "x.csv"),
        Source("a text file of paths", text_list),
        Source("a text file of paths and labels", lambda folder: text_list(folder, " 1")),
        Source("a text file that names a missing file", lambda folder: text_list(folder, more="in/9.png\n")),
        Source("a text file of something else", lambda folder: (folder / "a.txt").write_text("To be, or not to be\n") and folder / "a.txt"),
        Source("a zip file", lambda folder: archive(folder / "a.zip")),
        Source("zip://", lambda folder: f"zip://p/*.png::{archive(folder / 'a.zip')}"),
        Source("a damaged zip file", lambda folder: (folder / "a.zip").write_bytes(b"PK\3\4 no") and folder / "a.zip"),
        Source("a tar file", lambda folder: tar(folder / "a.tar")),
        Source("tar://", lambda folder: f"tar://*.png::{tar(folder / 'a.tar')}"),
        Source("a tar.gz", lambda folder: tar(folder / "a.tar.gz", "w:gz")),
        Source("a tar cut off inside a file", lambda folder: cut(tar(folder / "a.tar"), 600)),
        Source("a tar cut off inside the head of a file", lambda folder: cut(tar(folder / "a.tar"), 1200)),
        Source("a tar cut off between two files", lambda folder: cut(tar(folder / "a.tar"), 2048), LEVELS[:2], "cut off"),
        Source("a tar.gz cut off", lambda folder: cut(tar(folder / "a.tar.gz", "w:gz"), 150)),
        Source(
            "a shard of webdataset",
            lambda folder: tar(folder / "a.tar", extra={"cls": b"1", "json": b"{}", "mask.png": content(9)}),
            says="left out",
        ),
        Source(
            "shards of webdataset",
            lambda folder: (tar(folder / "a.tar", extra={"cls": b"1"}), tar(folder / "b.tar", extra={"cls": b"1"})) and f"{folder}/*.tar",
            LEVELS * 2,
        ),
        Source("a Parquet file of bytes", lambda folder: parquet(folder / "a.parquet", is_struct=False)),
        Source("a Parquet file as Hugging Face writes", lambda folder: parquet(folder / "a.parquet", is_struct=True)),
        Source("a damaged Parquet file", lambda folder: (folder / "a.parquet").write_bytes(b"PAR1") and folder / "a.parquet"),
        Source("datasets:FOLDER", saved),
        Source("datasets: of nothing", lambda folder: f"datasets:{folder}/none"),
        Source("a data set of Hugging Face", lambda folder: hugging_face()),
        Source("a stream of Hugging Face", lambda folder: hugging_face(is_stream=True)),
        Source("a torch data set of pictures", lambda folder: Items(pil())),
        Source("of pairs", lambda folder: Items([(each, n) for n, each in enumerate(pil())])),
        Source("of dicts", lambda folder: Items([{"image": each, "label": n} for n, each in enumerate(pil())])),
        Source("of dicts without a picture", lambda folder: Items([{"text": "x"}] * 4)),
        Source("of tensors in [0, 1]", lambda folder: TensorDataset(tensors("float"), torch.arange(4))),
        Source("of tensors of uint8", lambda folder: TensorDataset(tensors("uint8"), torch.arange(4))),
        Source("of tensors from 0 to 255", lambda folder: TensorDataset(tensors("255"), torch.arange(4))),
        Source("of normalised tensors", lambda folder: TensorDataset(tensors("normalised"), torch.arange(4))),
        Source("of integers of 64 bits", lambda folder: TensorDataset(tensors("int64"), torch.arange(4))),
        Source("of NaN", lambda folder: TensorDataset(tensors("nan"), torch.arange(4))),
        Source("of tensors with the channels last", lambda folder: TensorDataset(tensors("float").permute(0, 2, 3, 1), torch.arange(4))),
        Source("of tensors of another size", lambda folder: TensorDataset(tensors("float")[..., :6], torch.arange(4))),
        Source("of arrays of uint8", lambda folder: Items([np.full((8, 8, 3), level, np.uint8) for level in LEVELS])),
        Source("of arrays of floats", lambda folder: Items([np.full((8, 8, 3), level / 255) for level in LEVELS])),
        Source("of arrays of uint16", lambda folder: Items([np.full((8, 8), 257 * level, np.uint16) for level in LEVELS])),
        Source(
            "of pictures of 16 bits", lambda folder: Items([Image.fromarray(np.full((8, 8), 257 * level, np.uint16)) for level in LEVELS])
        ),
        Source("of bytes", lambda folder: Items([content(level) for level in LEVELS])),
        Source("of paths", lambda folder: Items([str(put(folder) / f"{n}.png") for n in range(4)])),
        Source("one item of which fails", lambda folder: Failing(pil())),
        Source("without items", lambda folder: Items([])),
        Source("an iterable data set", lambda folder: Stream()),
        Source("a generator", lambda folder: (each for each in pil())),
        Source("a DataLoader", lambda folder: DataLoader(Items(pil()), batch_size=2)),
        Source("a list of pictures", lambda folder: pil()),
        Source("a list of tensors", lambda folder: list(tensors("float"))),
        Source("a list of arrays", lambda folder: [np.full((8, 8, 3), level, np.uint8) for level in LEVELS]),
        Source("a tuple of pictures", lambda folder: tuple(pil())),
        Source("a tensor", lambda folder: tensors("float")),
        Source("an array", lambda folder: tensors("float").numpy()),
        Source("http:// of files", lambda folder: (put(folder), [f"{SERVED}/{n}.png" for n in range(4)])[1]),
        Source("http:// of a folder", lambda folder: (put(folder), f"{SERVED}/")[1]),
        Source("http:// of a zip file", lambda folder: (archive(folder / "a.zip"), f"zip://p::{SERVED}/a.zip")[1]),
        Source("http:// of nothing", lambda folder: f"{SERVED}/none.png"),
        Source("http:// of a server that is not there", lambda folder: "http://127.0.0.1:9/a.png"),
        Source("links to its own folder and above", with_loop),
        Source("a name that is no UTF-8", bytes_name),
        Source("a name of 244 bytes", lambda folder: put(folder / "in", ["0.png", "1.png", "2.png", LONG])),
        Source(
            "names with line feeds and control characters",
            lambda folder: put(folder / "in", ["0.png", "1\n.png", "2\x1b[31m.png", "3 ü.png"]),
        ),
        Source("other files among pictures", mixed, says="left out"),
        Source("a picture that is torn", unreadable),
        Source("an empty folder", lambda folder: folder),
        Source("an empty text", lambda folder: ""),
        Source("a missing folder", lambda folder: folder / "none"),
        Source("a FIFO", lambda folder: os.mkfifo(folder / "a.png") or folder / "a.png"),  # type: ignore[func-returns-value]
        Source("/dev/zero", lambda folder: "/dev/zero"),
        Source("None", lambda folder: None),
        Source("a number", lambda folder: 5),
        Source("a dict of data sets", lambda folder: {"train": Items(pil())}),
        Source("s3:// without s3fs", lambda folder: "s3://bucket/pictures"),
        Source("an unknown scheme", lambda folder: "nowhere://pictures"),
    ]


def semicolons(folder: Path) -> Path:
    """Writes a CSV in the format of spreadsheets in many countries."""
    (put(folder / "in") / "list.csv").write_text("image;label\n" + "".join(f"{n}.png;{n}\n" for n in range(4)))
    return folder / "in" / "list.csv"


def cut(place: Path, size: int) -> Path:
    """Returns the first part of a file."""
    place.write_bytes(place.read_bytes()[:size])
    return place
