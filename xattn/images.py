"""The former location, in version 0.2, of the names that are now in `xattn.data.images`."""

from xattn.data.images import ImageSource, read_picture

__all__ = ["ImageSource", "read_picture"]
