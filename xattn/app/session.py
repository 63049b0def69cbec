"""A user's last request, and what the page shows while it is computed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from xattn.app.results import NoLongerWanted, Question, Results
from xattn.errors import XattnError
from xattn.explainers.base import methods as method_registry
from xattn.explainers.maps import Maps
from xattn.explainers.reasons import ADVICE, SIGNED
from xattn.inference.memory import is_out_of_memory
from xattn.overlays import OverlayStyle


@dataclass(frozen=True)
class Request:
    """A user's choices.

    Attributes:
        file: the picture's file.
        network: name of the network.
        target: a class index, or a text in the form that `explain` accepts.
        methods: names of the methods with settings.
        metrics: names of the metrics with settings.
    """

    file: str
    network: str
    target: int | str
    methods: tuple[str, ...]
    metrics: tuple[str, ...] = ()

    def question(self, method: str) -> Question:
        """Returns the request for the map of one method."""
        return Question(self.file, self.network, self.target, method)


@dataclass(frozen=True)
class Shown:
    """The page's content.

    Attributes:
        overlays: the map over the picture, by method.
        scores: by method and metric.
        messages: sentences for the user.
    """

    overlays: dict[str, Image.Image] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    messages: tuple[str, ...] = ()


class Session:
    """A user's last request and the style of the overlays.

    A new request replaces one that is being computed: of the old one, only maps that the new one also needs are finished.

    Attributes:
        request: the last request; None: there was none.
        style: style of the overlays.
    """

    def __init__(self) -> None:
        self.request: Request | None = None
        self.style = OverlayStyle()

    def wants(self, question: Question) -> bool:
        """Checks whether the last request includes a map."""
        request = self.request
        return request is not None and any(request.question(method) == question for method in request.methods)

    def explain(self, results: Results, request: Request) -> Iterator[Shown]:
        """Computes a request, first the maps and then the scores, until another request replaces it.

        An error of one method becomes a message, and the other methods continue.

        Args:
            results: cache of maps and scores.
            request: the request.
        """
        self.request = request
        maps: dict[str, Maps] = {}
        scores: dict[str, dict[str, float]] = {}
        messages: list[str] = []
        for scoring in (False, True) if request.metrics else (False,):
            for method in request.methods:
                question = request.question(method)
                wanted = functools.partial(self.wants, question)
                try:
                    spec = method_registry.create(method).spec
                    if not scoring:
                        maps[spec] = results.maps(question, wanted)
                        messages += notes_on(spec, maps[spec])
                    elif spec in maps:
                        scores[spec] = results.scores(question, request.metrics, wanted)
                except NoLongerWanted:
                    return
                except (XattnError, RuntimeError, MemoryError) as error:
                    messages.append(f"{method}: {sentence(error)}")
                if self.request is not request:
                    return
                yield Shown(drawn(maps, self.style), dict(scores), tuple(dict.fromkeys(messages)))

    def redraw(self, results: Results, style: OverlayStyle) -> dict[str, Image.Image]:
        """Redraws the existing overlays in another style; overlays that are still being computed will use it.

        Args:
            results: cache of maps.
            style: style of the overlays.
        """
        self.style = style
        if (request := self.request) is None:
            return {}
        kept = (results.kept_maps(request.question(method)) for method in request.methods)
        return drawn({method: maps for maps in kept if maps is not None for method in maps}, style)


def notes_on(method: str, maps: Maps) -> list[str]:
    """Returns what a reader of a map should know: why it shows nothing, and known weaknesses of its method."""
    notes = []
    if (reason := maps.reasons[method][0]) is not None:
        notes.append(f"{method} shows nothing: {reason}. {ADVICE[reason.removesuffix(SIGNED)]}.")
    if caution := method_registry.create(method).metadata.caution:
        notes.append(f"{method} {caution}.")
    return notes


def drawn(maps: dict[str, Maps], style: OverlayStyle) -> dict[str, Image.Image]:
    """Returns the overlays of some methods, whose maps are all of one picture."""
    return {method: found.overlay(method, cmap=style.cmap, alpha=style.alpha)[0] for method, found in maps.items()}


def sentence(error: Exception) -> str:
    """Returns the message of an error for the user.

    Raises:
        Exception: the error itself, if it is not one of xattn's and not caused by lack of memory.
    """
    if isinstance(error, XattnError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        return "memory ran out. Choose a smaller network, or a method or metric that needs fewer forwards."
    raise error
