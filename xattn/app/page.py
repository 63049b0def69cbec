"""Layout of the page, and its reactions to choices."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from xattn.app.choices import (
    METRICS,
    about,
    chosen_methods,
    cmap_choices,
    left_out,
    method_choices,
    metric_choices,
    paragraphs,
    score_table,
)
from xattn.app.results import Results
from xattn.app.session import Request, Session, sentence
from xattn.errors import XattnError
from xattn.overlays import OverlayStyle
from xattn.text import shown as printable

AT_ONCE = 4  # requests that are computed concurrently
KEPT_S = 3600  # how long users' pictures stay on the disk
LOOKED_S = 60  # how often expired pictures are searched for
NO_PICTURE = "Choose a picture: drop a file above, or take one of the examples."
NO_METHOD = "Choose a method."
ERRORS = (XattnError, RuntimeError, MemoryError)
CSS = """
.notes p { margin: 0 0 0.4em; font-size: var(--text-sm); }
.notes p:last-child { margin: 0; }
.about p { color: var(--block-info-text-color); }
.example { flex-direction: column; }
.example img { width: 100%; height: 56px; object-fit: cover; margin: 0; }
.messages p { border-left: 3px solid var(--color-accent); padding-left: 0.6em; }
"""


class Reactions:
    """What the page does when a choice changes.

    Args:
        gradio: the module.
        results: source of the maps and scores.
    """

    def __init__(self, gradio: Any, results: Results) -> None:
        self.gradio = gradio
        self.results = results

    def said(self, lines: Sequence[str]) -> Any:
        """Returns a block of lines; hidden if there are none."""
        return self.gradio.HTML(paragraphs(lines), visible=bool(lines))

    def opened(self, file: str | None, name: str, before: list[str]) -> tuple[Any, ...]:
        """Returns classes, an empty other class, notes, methods, and the methods left out, for a picture and a network.

        Args:
            file: the picture.
            name: the network's.
            before: methods chosen so far.
        """
        nothing = self.gradio.Radio(choices=[], value=None, visible=False)
        if file is None:
            return nothing, "", self.said(()), self.gradio.skip(), self.said(())
        try:
            classes, offered, lines = self.results.classes(file, name), self.results.offered(name), about(self.results, file, name)
        except ERRORS as error:
            sentence(error)  # raises errors that are not the user's; `explained`, which follows, reports the others
            return nothing, "", self.said(()), self.gradio.skip(), self.said(())
        choices = [(printable(text), index) for index, text in classes]
        return (
            self.gradio.Radio(choices=choices, value=choices[0][1], visible=True) if choices else nothing,
            "",
            self.said(lines),
            self.gradio.Dropdown(choices=method_choices(offered), value=chosen_methods(offered, before, self.results.methods)),
            self.said(left_out(offered)),
        )

    def explained(
        self,
        session: Session,
        alpha: float,
        cmap: str,
        file: str | None,
        name: str,
        first: int | None,
        other: str,
        methods: list[str],
        metrics: list[str],
    ) -> Iterator[tuple[Any, ...]]:
        """Yields messages, maps and scores, as they are computed.

        Args:
            session: of the user.
            alpha: opacity of the maps.
            cmap: their colours; empty for the default.
            file: the picture.
            name: the network's.
            first: index of the class chosen from the list.
            other: another class; empty for the one of the list.
            methods: names of methods.
            metrics: names of metrics.
        """
        nothing = self.gradio.Gallery(value=[], label="Maps"), self.gradio.Dataframe(value={"headers": ["method"], "data": []})
        if file is None or not methods:
            session.request = None
            yield self.said([NO_PICTURE if file is None else NO_METHOD]), *nothing
            return
        target = first if first is not None and other.strip() in ("", "predicted") else other.strip() or "predicted"
        request = Request(file, name, target, tuple(methods), tuple(metrics))
        session.style = OverlayStyle(cmap or None, alpha)
        try:
            heading = f"Maps for {printable(self.results.described(file, name, target))}"
        except ERRORS as error:
            session.request = None
            yield self.said([sentence(error)]), *nothing
            return
        for shown in session.explain(self.results, request):
            headers, rows = score_table(shown.scores)
            yield (
                self.said(shown.messages),
                self.gradio.Gallery(value=_tiles(self.results, request, shown.overlays), label=heading),
                self.gradio.Dataframe(value={"headers": headers, "data": rows}),
            )

    def redrawn(self, session: Session, alpha: float, cmap: str) -> Any:
        """Returns the session's maps in another opacity or other colours."""
        overlays = session.redraw(self.results, OverlayStyle(cmap or None, alpha))
        return _tiles(self.results, session.request, overlays) if session.request is not None and overlays else self.gradio.skip()


def build(gradio: Any, results: Results, networks: Sequence[str], examples: Sequence[Path]) -> Any:
    """Builds the page as a `gradio.Blocks`.

    Args:
        gradio: the module.
        results: source of the maps and scores.
        networks: names that are offered; users can type others.
        examples: picture files that are offered. The first is shown at the start.
    """
    private = {"api_visibility": "private"}
    reactions = Reactions(gradio, results)
    with gradio.Blocks(title="xattn", analytics_enabled=False, delete_cache=(LOOKED_S, KEPT_S)) as page:
        user = gradio.State(Session())
        gradio.Markdown("# xattn\nWhere does an image classifier look? Choose a picture, a network and methods.")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=320):
                file = gradio.File(str(examples[0]), label="Picture", height=120, elem_id="picture")
                with gradio.Row():
                    pictures = [
                        gradio.Button(path.stem, icon=str(path), size="sm", min_width=70, elem_classes=["example"]) for path in examples
                    ]
                network = gradio.Dropdown(
                    list(networks),
                    value=networks[0],
                    label="Network",
                    info="One of the list, or a name: torchvision:NAME, timm:NAME, hf:NAME, open_clip:NAME",
                    allow_custom_value=True,
                    elem_id="network",
                )
                first = gradio.Radio([], label="Class to explain", elem_id="classes")
                other = gradio.Textbox(
                    label="Another class",
                    info="A name or an index, or a contrast such as 'predicted - second'; then Enter",
                    max_lines=1,
                    elem_id="other",
                )
                notes = gradio.HTML(visible=False, elem_classes=["notes", "about"], elem_id="about")
            with gradio.Column(scale=2, min_width=480):
                methods = gradio.Dropdown([], label="Methods", multiselect=True, allow_custom_value=True, elem_id="methods")
                without = gradio.HTML(visible=False, elem_classes=["notes", "about"], elem_id="without")
                messages = gradio.HTML(visible=False, elem_classes=["notes", "messages"], elem_id="messages")
                overlays = gradio.Gallery(
                    label="Maps", format="jpeg", columns=3, height="auto", object_fit="contain", interactive=False, elem_id="maps"
                )
                with gradio.Row():
                    alpha = gradio.Slider(0, 1, OverlayStyle.alpha, step=0.05, label="Opacity", elem_id="opacity")
                    cmap = gradio.Dropdown(cmap_choices(), value="", label="Colours", elem_id="colours")
                metrics = gradio.Dropdown(
                    metric_choices(), value=list(METRICS), label="Scores", multiselect=True, allow_custom_value=True, elem_id="metrics"
                )
                scores = gradio.Dataframe(label="Scores of this picture", interactive=False, elem_id="scores")

        chosen = [user, alpha, cmap, file, network, first, other, methods, metrics]
        explaining: dict[str, Any] = {
            "fn": reactions.explained,
            "inputs": chosen,
            "outputs": [messages, overlays, scores],
            "trigger_mode": "multiple",
            "show_progress_on": [overlays],
            "concurrency_limit": AT_ONCE,
            "concurrency_id": "explained",
            **private,
        }
        for button, path in zip(pictures, examples, strict=True):
            button.click(functools.partial(str, path), None, file, **private)
        gradio.on(
            [page.load, file.change, network.change],
            reactions.opened,
            [file, network, methods],
            [first, other, notes, methods, without],
            concurrency_limit=AT_ONCE,
            **private,
        ).then(**explaining)
        first.input(lambda: "", None, other, **private).then(**explaining)
        gradio.on([other.submit, methods.input, metrics.input], **explaining)
        gradio.on(
            [alpha.change, cmap.change],
            reactions.redrawn,
            [user, alpha, cmap],
            overlays,
            trigger_mode="always_last",
            show_progress="hidden",
            **private,
        )
    return page


def _tiles(results: Results, request: Request, overlays: dict[str, Image.Image]) -> list[tuple[Image.Image, str]]:
    """Returns the picture and its overlays, each with a caption."""
    opened = results.picture(request.file, results.classifier(request.network).preprocessing)
    return [(opened.shown, "picture"), *((overlay, method) for method, overlay in overlays.items())]
