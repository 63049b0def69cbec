"""A page in the browser: a picture, a network and methods give maps and scores at once. Needs gradio."""

from xattn.app.serving import served

__all__ = ["served"]
