"""`xattn app`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

import click

from xattn.cli.terminal import say


@click.command()
@click.option(
    "--model",
    "models",
    multiple=True,
    help="Network to offer, as in `xattn explain`. Repeatable. Default: the shipped ones, and those of torchvision whose weights "
    "are on the disk.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    help="Method that is selected at the start, name[:key=value,…]. Repeatable. The page offers all methods that the network supports.",
)
@click.option("--device", help="cpu, cuda, cuda:1, mps; default: a GPU if there is one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve at; 0.0.0.0 gives other machines access.")
@click.option("--port", type=click.IntRange(1, 65535), default=7860, show_default=True, help="Port to serve at.")
def app(models: Sequence[str], methods: Sequence[str], device: str | None, host: str, port: int) -> None:
    """Serve a page that shows maps and scores of a picture. Needs gradio: pip install 'xattn[app]'.

    Everyone who can reach the page can explain pictures with it, and make it download weights of networks by name. Ctrl+C ends it.
    """
    from xattn.app import served

    sys.path.append(os.getcwd())  # where package.module:factory is looked up
    try:
        with served(models, methods, device=device, host=host, port=port) as address:
            say(f"{address} (Ctrl+C ends it)", err=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        say("stopped.", err=True)
