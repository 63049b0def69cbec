"""The shipped classifiers: small networks trained on SketchBirds, one file each."""

from __future__ import annotations

from pathlib import Path

from xattn.errors import NameUnknownError

PREFIX = "birds:"
NETWORK = f"{PREFIX}gap"  # whose network the other heads are put on
FRESH = "xattn.birds:small_resnet"  # the same network before training
FOLDER = Path(__file__).parent / "weights"


def pretrained_names() -> list[str]:
    """Names that `xattn.load` takes."""
    return sorted((f"{PREFIX}{path.stem}" for path in FOLDER.glob("*.safetensors")), key=lambda name: (name != NETWORK, name))


def file_of(name: str) -> Path:
    """The file of a shipped classifier.

    Raises:
        NameUnknownError: there is no classifier of that name.
    """
    if name not in pretrained_names():
        raise NameUnknownError("shipped classifier", name, pretrained_names())
    return FOLDER / f"{name.removeprefix(PREFIX)}.safetensors"
