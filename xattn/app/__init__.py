"""Browser page: choose a picture, a network and methods, and see maps and scores. Needs gradio."""

from xattn.app.serving import served

__all__ = ["served"]
