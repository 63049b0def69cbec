"""What one user has asked for last, and what the page shows of it while it is computed."""

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
    """What a user has chosen.

    Attributes:
        file: of the picture.
        network: its name.
        target: a class index, or a text as `explain` takes it.
        methods: their names with settings.
        metrics: likewise.
    """

    file: str
    network: str
    target: int | str
    methods: tuple[str, ...]
    metrics: tuple[str, ...] = ()

    def question(self, method: str) -> Question:
        """The map of a method."""
        return Question(self.file, self.network, self.target, method)


@dataclass(frozen=True)
class Shown:
    """What the page shows.

    Attributes:
        overlays: by method, the map over the picture.
        scores: by method and metric.
        messages: sentences for the user.
    """

    overlays: dict[str, Image.Image] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    messages: tuple[str, ...] = ()


class Session:
    """A user's last request and the style of the overlays.

    A request that comes while another is computed takes its place: of the first, only maps that the second asks for too are finished.

    Attributes:
        request: the last; None: nothing was asked.
        style: of the overlays.
    """

    def __init__(self) -> None:
        self.request: Request | None = None
        self.style = OverlayStyle()

    def wants(self, question: Question) -> bool:
        """Whether the last request asks for a map."""
        request = self.request
        return request is not None and any(request.question(method) == question for method in request.methods)

    def explain(self, results: Results, request: Request) -> Iterator[Shown]:
        """Computes what is asked for, map by map and then score by score, until another request takes its place.

        An error of one method is a message, and the others go on.

        Args:
            results: where maps and scores are kept.
            request: what is asked for.
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
        """The overlays that are there already in another style; those that are still computed follow in it.

        Args:
            results: where maps are kept.
            style: of the overlays.
        """
        self.style = style
        if (request := self.request) is None:
            return {}
        kept = (results.kept_maps(request.question(method)) for method in request.methods)
        return drawn({method: maps for maps in kept if maps is not None for method in maps}, style)


def notes_on(method: str, maps: Maps) -> list[str]:
    """What a reader of a map should know: why it shows nothing, and what its method is known for."""
    notes = []
    if (reason := maps.reasons[method][0]) is not None:
        notes.append(f"{method} shows nothing: {reason}. {ADVICE[reason.removesuffix(SIGNED)]}.")
    if caution := method_registry.create(method).metadata.caution:
        notes.append(f"{method} {caution}.")
    return notes


def drawn(maps: dict[str, Maps], style: OverlayStyle) -> dict[str, Image.Image]:
    """The overlays of some methods, each of whose maps are of one picture."""
    return {method: found.overlay(method, cmap=style.cmap, alpha=style.alpha)[0] for method, found in maps.items()}


def sentence(error: Exception) -> str:
    """What an error says to a user.

    Raises:
        Exception: the error, if it is none of xattn's and memory has not run out.
    """
    if isinstance(error, XattnError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and is_out_of_memory(error)):
        return "memory ran out. Choose a smaller network, or a method or metric that needs fewer forwards."
    raise error
