"""Where version 0.2 had what is in `xattn.data.images` now."""

from xattn.data.images import ImageSource, read_picture

__all__ = ["ImageSource", "read_picture"]
