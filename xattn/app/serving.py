"""Server of the page."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xattn.app.page import CSS, build
from xattn.app.results import Results
from xattn.birds import SketchBirds, render
from xattn.birds.pretrained import PREFIX, pretrained_names
from xattn.errors import InputError, MissingPackageError
from xattn.models.sources import torchvision_names_on_disk

PHOTOGRAPHS = ("chelsea.png", "astronaut.png", "coffee.png")  # in scikit-image's wheel
LARGEST_FILE = "100mb"
READABLE = {"block_info_text_color": "*neutral_600", "block_info_text_color_dark": "*neutral_300"}
SESSIONS = 200  # number of users whose last request is kept


@contextmanager
def served(
    models: Sequence[str] = (),
    methods: Sequence[str] = (),
    *,
    device: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> Iterator[str]:
    """Serves the page inside the context. It contacts no other machine, except to load the weights of networks that a user names.

    Args:
        models: names of networks to offer; none: the shipped classifiers, and torchvision's networks whose weights are on the disk.
        methods: methods to choose at first, with settings; those of the registry are also offered.
        device: as for `xattn.load`.
        host: address to serve at; "0.0.0.0" means all addresses of the machine.
        port: the port.

    Returns:
        The page's address.

    Raises:
        MissingPackageError: gradio is not installed.
        NameUnknownError: a method does not exist.
        InputError: host or port cannot be used.
    """
    if importlib.util.find_spec("gradio") is None:
        raise MissingPackageError("gradio", "app", "xattn app")
    results = Results(models, methods, device)  # a wrong name is reported before gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    gradio: Any = importlib.import_module("gradio")
    networks = [*models] or [*pretrained_names(), *torchvision_names_on_disk()]
    with tempfile.TemporaryDirectory() as folder:
        page = build(gradio, results, networks, _examples(Path(folder), birds_first=networks[0].startswith(PREFIX)))
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                theme=gradio.themes.Default(font="system-ui", font_mono="monospace").set(**READABLE),
                css=CSS,
                quiet=True,
                prevent_thread_lock=True,
                share=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                inbrowser=False,
                max_file_size=LARGEST_FILE,
                state_session_capacity=SESSIONS,
            )
        except OSError as error:
            raise InputError(f"the page cannot be served at {host}, port {port} ({error}). Give another: --host, --port.") from error
        try:
            yield address
        finally:
            page.close(verbose=False)


def _examples(folder: Path, *, birds_first: bool) -> list[Path]:
    """Returns example pictures: a drawn bird, for the shipped networks, and photographs."""
    bird = folder / "bird.png"
    render(SketchBirds("test", 1).scene(0)).save(bird)
    skimage = importlib.util.find_spec("skimage")
    home = Path(str(skimage.origin)).parent / "data" if skimage is not None else folder
    photographs = [Path(shutil.copy(home / name, folder)) for name in PHOTOGRAPHS if (home / name).is_file()]
    return [bird, *photographs] if birds_first else [*photographs, bird]
