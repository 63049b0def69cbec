"""The shipped classifiers: small networks trained on SketchBirds, one file each."""

from __future__ import annotations

from pathlib import Path

from xattn.errors import NameUnknownError

PREFIX = "birds:"
NETWORKS = {  # those on which heads are put → what builds them, with random weights
    f"{PREFIX}gap": "xattn.birds:small_resnet",
    f"{PREFIX}vit": "xattn.birds:small_vit",
}
FOLDER = Path(__file__).parent / "weights"


def pretrained_names() -> list[str]:
    """Names that `xattn.load` takes."""
    return sorted((f"{PREFIX}{path.stem}" for path in FOLDER.glob("*.safetensors")), key=lambda name: (name not in NETWORKS, name))


def file_of(name: str) -> Path:
    """The file of a shipped classifier.

    Raises:
        NameUnknownError: there is no classifier of that name.
    """
    if name not in pretrained_names():
        raise NameUnknownError("shipped classifier", name, pretrained_names())
    return FOLDER / f"{name.removeprefix(PREFIX)}.safetensors"
