"""Two-stream network: a global stream of the whole picture, and a local stream that processes each of its patches in repeated steps."""

from xattn.focus.local_stream import LocalStream, Looked
from xattn.focus.network import GLOBAL, LOCAL, Streams, TwoStreams
from xattn.focus.settings import PREFIX, TwoStreamSettings, parsed

__all__ = ["GLOBAL", "LOCAL", "PREFIX", "LocalStream", "Looked", "Streams", "TwoStreamSettings", "TwoStreams", "parsed"]
