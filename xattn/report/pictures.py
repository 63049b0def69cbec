"""Pictures of a report: the networks' input crops, decoded again from where the runs found the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from xattn.data.images import ImageSource
from xattn.data.listing import NamedImage
from xattn.data.preprocessing import Preprocessing
from xattn.errors import ImageError, InputError
from xattn.report.contents import Contents, Item
from xattn.report.encoding import encoded_picture
from xattn.study.moved import run_pictures

READERS = 4


class Pictures:
    """Crops of a report's items, as data URIs.

    Args:
        contents: contents of the runs.
        side: largest length of the longer side, in pixels.

    Attributes:
        crops: the different ways in which classifiers crop.
        missing: number of pictures that are not shown, by reason.
    """

    def __init__(self, contents: Contents, side: int) -> None:
        self.contents, self.side = contents, side
        self.crops: list[Preprocessing] = list(dict.fromkeys(about.preprocessing for about in contents.classifiers.values()))
        self.missing: Counter[str] = Counter()
        self._sources: dict[int, tuple[ImageSource, dict[str, NamedImage]] | str] = {}
        self._needed = [sorted({self._crop_of(key) for key in item.answers}) for item in contents.items]

    def _crop_of(self, classifier: tuple[str, str]) -> int:
        return self.crops.index(self.contents.classifiers[classifier].preprocessing)

    def of(self, start: int, items: Sequence[Item]) -> Iterator[list[str | None]]:
        """Returns for each item one data URI per way of cropping; None if no classifier needs it or the picture cannot be read.

        Args:
            start: index of the first item.
            items: some of the contents' items, in order.
        """
        for item in items:
            self._source(item.run)
        with ThreadPoolExecutor(READERS) as pool:
            for uris, reason in pool.map(self._encoded, items, self._needed[start : start + len(items)]):
                if reason is not None:
                    self.missing[reason] += 1
                yield uris

    def _encoded(self, item: Item, needed: Sequence[int]) -> tuple[list[str | None], str | None]:
        found = self._sources[item.run]
        uris: list[str | None] = [None] * len(self.crops)
        if isinstance(found, str):
            return uris, found
        source, images = found
        if item.own_name not in images:
            return uris, "no longer where the run found them"
        try:
            for number in needed:
                uris[number] = encoded_picture(source.decode(images[item.own_name], self.crops[number])[1], self.side)
        except ImageError as error:
            return uris, f"cannot be read ({error})"
        return uris, None

    def _source(self, run: int) -> None:
        """Finds the pictures of a run, once."""
        if run in self._sources:
            return
        settings: dict[str, Any] = self.contents.settings[run]["settings"]["images"]
        if not settings["origin"]:
            self._sources[run] = "from a data set in memory, whose pictures a run does not keep"
            return
        try:
            source = run_pictures(settings)
        except InputError as error:
            self._sources[run] = f"no longer where the run found them ({error})"
            return
        self._sources[run] = source, {image.name: image for image in source.images}
