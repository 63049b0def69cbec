"""The command line: reads arguments, calls the API, writes."""

from xattn.cli.main import main

__all__ = ["main"]
