"""The two-stream network: a stream of the whole picture, and one of its patches that looks at each of them repeatedly."""

from xattn.focus.local_stream import LocalStream, Looked
from xattn.focus.network import GLOBAL, LOCAL, Streams, TwoStreams
from xattn.focus.settings import PREFIX, TwoStreamSettings, parsed

__all__ = ["GLOBAL", "LOCAL", "PREFIX", "LocalStream", "Looked", "Streams", "TwoStreamSettings", "TwoStreams", "parsed"]
