"""Weights files whose pickle would run code: cases as in `hostile.py`."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from hostile import RAN, Case

from xattn.models import load

END = b"."
CONTAINERS = ("plain", "zipped", "beside weights", "in a namespace", "as a legacy file", "as safetensors")


def text(value: str) -> bytes:
    """Encodes a text as opcodes."""
    coded = value.encode()
    return b"X" + struct.pack("<I", len(coded)) + coded


def named(module: str, name: str) -> bytes:
    """Encodes an object of a module as opcodes."""
    return f"c{module}\n{name}\n".encode()


def called(function: bytes, *arguments: bytes) -> bytes:
    """Encodes a call as opcodes."""
    return function + b"(" + b"".join(arguments) + b"tR"


def payloads(mark: str) -> dict[str, bytes]:
    """Returns opcodes that would make a file, each by a different mechanism of pickle.

    Args:
        mark: the file's path.
    """
    touch, code = text(f"touch {mark}"), text(f"__import__('pathlib').Path({mark!r}).touch()")
    command = b"(" + text("touch") + text(mark) + b"l"
    system = named("os", "system")
    inner = called(named("_codecs", "encode"), text((called(system, touch) + END).decode()), text("latin1"))
    imported, path = called(named("builtins", "__import__"), text("os")), called(named("pathlib", "PosixPath"), text(mark))
    dtype = called(named("numpy", "dtype"), text("O8"))
    return {
        "os.system": called(system, touch),
        "posix.system": called(named("posix", "system"), touch),
        "builtins.eval": called(named("builtins", "eval"), code),
        "builtins.exec": called(named("builtins", "exec"), code),
        "__builtin__.eval": called(named("__builtin__", "eval"), code),
        "builtins.getattr": called(called(named("builtins", "getattr"), imported, text("system")), touch),
        "subprocess.Popen": called(named("subprocess", "Popen"), command),
        "functools.partial": called(called(named("functools", "partial"), system), touch),
        "operator.methodcaller": called(called(named("operator", "methodcaller"), text("touch")), path),
        "runpy._run_code": called(named("runpy", "_run_code"), code, b"}"),
        "numpy runstring": called(named("numpy.testing._private.utils", "runstring"), code, b"}"),
        "torch execWrapper": called(named("torch.jit.unsupported_tensor_ops", "execWrapper"), code, b"}", b"}"),
        "pickle.loads": called(named("pickle", "loads"), inner),
        "builtins.open": called(named("builtins", "open"), text(mark), text("w")),
        "timeit.timeit": called(named("timeit", "timeit"), code, text("pass"), named("time", "time"), b"K\x01"),
        "cProfile.run": called(named("cProfile", "run"), code),
        "argparse.FileType": called(called(named("argparse", "FileType"), text("w")), text(mark)),
        "argparse._os.system": called(named("argparse", "_os.system"), touch),
        "argparse.Namespace of globals": called(named("argparse", "Namespace.__init__.__globals__"), touch),
        "numpy scalar of an object": called(named("numpy._core.multiarray", "scalar"), dtype, inner),
        "numpy scalar that is a function": called(named("numpy._core.multiarray", "scalar"), dtype, called(system, touch)),
        "numpy _reconstruct": called(named("numpy._core.multiarray", "_reconstruct"), system, b"(K\x00t", text("b")),
        "torch _rebuild_from_type_v2": called(named("torch._tensor", "_rebuild_from_type_v2"), system, system, b"(" + touch + b"t", b"}"),
        "INST": b"(" + touch + b"ios\nsystem\n",
        "OBJ": b"(" + system + touch + b"o",
        "NEWOBJ": named("subprocess", "Popen") + b"(" + command + b"t\x81",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93(" + touch + b"tR",
        "NEWOBJ_EX": named("subprocess", "Popen") + b"(" + command + b"t}\x92",
        "EXT1": called(named("copyreg", "add_extension"), text("os"), text("system"), b"K\x07") + b"0\x82\x07(" + touch + b"tR",
        "PERSID": b"P" + f"touch {mark}".encode() + b"\n",
        "BUILD": called(named("builtins", "object")) + b"}" + text("__setstate__") + system + b"s" + b"b",
    }


def contained(content: bytes, container: str) -> tuple[bytes, str]:
    """Returns a file that holds a payload, and its suffix."""
    pickled = b"\x80\x02" + content + END
    if container == "as safetensors":
        return pickled, ".safetensors"
    if container == "plain":
        return pickled, ".pth"
    if container == "as a legacy file":
        head = pickle.dumps(torch.serialization.MAGIC_NUMBER, 2) + pickle.dumps(torch.serialization.PROTOCOL_VERSION, 2)
        return head + pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2) + pickled, ".pt"
    if container == "beside weights":
        pickled = b"\x80\x02}" + text("state_dict") + b"}" + b"s" + text("args") + content + b"s" + END
    if container == "in a namespace":
        pickled = b"\x80\x02" + called(named("argparse", "Namespace")) + b"}" + text("x") + content + b"s" + b"b" + END
    honest, made = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": {"w": torch.ones(1)}}, honest)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return made.getvalue(), ".ckpt"


def pickles(count: int) -> Iterator[Case]:
    """Weights files that would run code: each payload in each container, containers first."""
    load("birds:gap", device="cpu")  # so that no case includes imports
    names = [(name, container) for container in CONTAINERS for name in payloads("")]
    for name, container in names[:count]:

        def read(folder: Path, name: str = name, container: str = container) -> None:
            content, suffix = contained(payloads(str(folder / RAN))[name], container)
            path = folder / f"weights{suffix}"
            path.write_bytes(content)
            load("birds:gap", weights=path, device="cpu")

        yield Case(f"{name}, {container}", read)


def ran(place: Path) -> set[str]:
    """Returns the payloads that do run when a pickle is trusted."""
    for name in payloads(""):
        for protocol in (b"\x80\x02", b"\x80\x04"):
            with contextlib.suppress(Exception), warnings.catch_warnings():  # executed code may return anything, such as an open file
                warnings.simplefilter("ignore", ResourceWarning)
                pickle.loads(protocol + payloads(str(place / name.replace(" ", "-")))[name] + END)
    return {name for name in payloads("") if (place / name.replace(" ", "-")).exists()}
