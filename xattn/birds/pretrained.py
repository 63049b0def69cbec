"""The shipped classifiers: small networks trained on SketchBirds, one file each."""

from __future__ import annotations

from pathlib import Path

from xattn.errors import NameUnknownError

PREFIX = "birds:"
NETWORKS = {  # networks that heads are attached to → the function that builds them with random weights
    f"{PREFIX}gap": "xattn.birds:small_resnet",
    f"{PREFIX}vit": "xattn.birds:small_vit",
}
FOLDER = Path(__file__).parent / "weights"


def pretrained_names() -> list[str]:
    """Returns the names that `xattn.load` accepts."""
    return sorted((f"{PREFIX}{path.stem}" for path in FOLDER.glob("*.safetensors")), key=lambda name: (name not in NETWORKS, name))


def file_of(name: str) -> Path:
    """Returns the file of a shipped classifier.

    Raises:
        NameUnknownError: no classifier has that name.
    """
    if name not in pretrained_names():
        raise NameUnknownError("shipped classifier", name, pretrained_names())
    return FOLDER / f"{name.removeprefix(PREFIX)}.safetensors"
