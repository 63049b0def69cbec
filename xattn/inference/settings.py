"""Execution settings of forwards."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from xattn.errors import NameUnknownError, SettingError
from xattn.registry import coerce, split_spec

MemoryFormat = Literal["channels-last", "contiguous"]
Precision = Literal["own", "bfloat16", "float16"]
Backend = Literal["torch", "openvino", "tensorrt"]
Level = Literal["exact", "fast"]


@dataclass(frozen=True)
class Tuning:
    """Execution settings for forwards of perturbed images.

    Attributes:
        chunk: images per forward; OpenVINO divides them among its streams, one for each of torch's threads.
        memory_format: memory format of images, features and weights.
        folded: fold batch norms into the preceding convolutions.
        compiled: use torch.compile with frozen weights.
        precision: precision of the network; "own" is that of its weights. Others are only for level "fast", which also lets a GPU use TF32.
        backend: "torch"; or "openvino", on CPUs, or "tensorrt", on NVIDIA GPUs, which choose their own memory formats.
    """

    chunk: int = 8
    memory_format: MemoryFormat = "channels-last"
    folded: bool = False
    compiled: bool = False
    precision: Precision = "own"
    backend: Backend = "torch"

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise SettingError(f"a forward takes at least one image; got chunk={self.chunk}.")
        if self.backend not in get_args(Backend):
            raise NameUnknownError("backend", str(self.backend), get_args(Backend))
        if self.compiled and self.backend != "torch":
            raise SettingError(f"compiled=true is for torch, not for backend={self.backend}: leave one out.")

    def __str__(self) -> str:
        words = [f"chunks of {self.chunk}", self.memory_format if self.backend == "torch" else self.backend]
        words += ["batch norms folded"] if self.folded else []
        words += ["compiled"] if self.compiled else []
        return ", ".join(words + ([self.precision] if self.precision != "own" else []))

    @classmethod
    def read(cls, text: str) -> Tuning:
        """Parses a tuning from text such as `chunk=16,folded=true`; missing settings get their defaults.

        Raises:
            SettingError: a value is not valid.
            NameUnknownError: a setting does not exist.
        """
        hints = get_type_hints(cls)
        given: dict[str, Any] = {}
        for key, value in split_spec(f"tune:{text}")[1].items():
            if key not in hints:
                raise NameUnknownError("setting of tune", key, [field.name for field in fields(cls)])
            try:
                given[key] = coerce(value, hints[key])
            except ValueError as error:
                raise SettingError(f"tune cannot take {key}={value}.") from error
        return cls(**given)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def refuse_unknown_level(level: str) -> None:
    """Raises if a level does not exist.

    Args:
        level: "exact" or "fast".

    Raises:
        NameUnknownError: it is neither.
    """
    if level not in get_args(Level):
        raise NameUnknownError("level", str(level), get_args(Level))
