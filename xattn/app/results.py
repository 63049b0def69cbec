"""Networks, pictures, maps and scores for the page. The most recently used ones are cached and shared by all users."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from torch import Tensor

from xattn.app.recent import Recent
from xattn.data.depth import Reading, Scaling
from xattn.data.images import ImageSource
from xattn.data.photographs import Photographs
from xattn.data.pictures import read_scaled
from xattn.data.preprocessing import Preprocessing, pixels
from xattn.errors import InputError, UnsupportedError
from xattn.explainers.api import explain
from xattn.explainers.base import MethodComponent, RunsNetworkAgain
from xattn.explainers.base import methods as method_registry
from xattn.explainers.maps import Maps
from xattn.focus import PREFIX as FOCUS
from xattn.inference.predictor import Predictor
from xattn.metrics.base import metrics as metric_registry
from xattn.models import sources
from xattn.models.asked_targets import target_rule
from xattn.models.classifier import Classifier
from xattn.models.loading import load
from xattn.study.evaluation import evaluate
from xattn.study.scoring import most_probable
from xattn.study.support import lacking

SIDE = 640  # pixels of the longer side of a displayed picture
NETWORKS = 3
PICTURES = 32
MAPS = 64
LOCAL = "local-dir:"  # timm's folders

Wanted = Callable[[], bool]
"""Returns whether a running computation is still wanted."""


class NoLongerWanted(Exception):
    """The user has made another request in the meantime."""


@dataclass(frozen=True)
class Question:
    """A user's request for one map.

    Attributes:
        file: the picture's file.
        network: name of the network.
        target: a class index, or a text in the form that `explain` accepts.
        method: name of the method with settings.
    """

    file: str
    network: str
    target: int | str
    method: str


@dataclass(frozen=True)
class Opened:
    """A picture as displayed, and as the network's input.

    Attributes:
        shown: in RGB, `SIDE` pixels on the longer side.
        crop: uint8 `(C, H, W)`.
        size: width and height of the picture in the file.
        scaling: how more than 8 bits were reduced to 8; None for 8 bits.
    """

    shown: Image.Image
    crop: Tensor
    size: tuple[int, int]
    scaling: Scaling | None


@dataclass(frozen=True)
class OfferedMethod:
    """A method in the list of methods.

    Attributes:
        spec: name of the method with settings.
        lacks: what it needs and the network does not have; None if it can run.
        forwards: largest number of forwards of perturbed images that it uses; 0: none.
        control: it does not use the network.
    """

    spec: str
    lacks: str | None
    forwards: int
    control: bool


class _WhileWanted(Predictor):
    """Stops between two forwards when the result is no longer wanted."""

    def __init__(self, classifier: Classifier, wanted: Wanted) -> None:
        super().__init__(classifier)
        self.wanted = wanted

    def __call__(self, images: Tensor) -> Tensor:
        if not self.wanted():
            raise NoLongerWanted
        return super().__call__(images)


class Results:
    """Computes networks, pictures, maps and scores on request.

    Args:
        models: names of networks given on the command line; these may be code and files of this machine.
        methods: methods to offer in addition to those of the registry, with settings.
        device: as for `load`.
    """

    def __init__(self, models: Sequence[str] = (), methods: Sequence[str] = (), device: str | None = None) -> None:
        self.models = tuple(models)
        self.methods = tuple(component.spec for component in method_registry.create_all(methods, allow_none=True))
        self.device = device
        self._classifiers: Recent[Classifier] = Recent(NETWORKS)
        self._pictures: Recent[Opened] = Recent(PICTURES)
        self._maps: Recent[Maps] = Recent(MAPS)
        self._scores: Recent[float] = Recent(MAPS * 12)

    def classifier(self, network: str) -> Classifier:
        """Returns the network with a given name.

        Raises:
            InputError: the name refers to code or a file, and was not given on the command line.
            XattnError: as raised by `load`.
        """
        if network not in self.models:
            refuse_local(network)
        return self._classifiers.get_or_make(network, lambda: load(network, device=self.device))

    def picture(self, file: str, preprocessing: Preprocessing) -> Opened:
        """Returns a picture as displayed, and as the network's input.

        Raises:
            ImageError: the picture cannot be read, or the network cannot use it.
        """
        return self._pictures.get_or_make((file, preprocessing), lambda: _opened(file, preprocessing))

    def classes(self, file: str, network: str) -> list[tuple[int, str]]:
        """Returns the most probable classes of a picture, each with its name and probability; for a regression, the first values.

        Empty for a network whose output is not one row.
        """
        classifier = self.classifier(network)
        output = classifier.predict(self._images(file, classifier))
        if output.dim() != 2:
            return []
        if classifier.regression:
            return [(index, f"{classifier.label(index)}: {value:.3g}") for index, value in enumerate(output[0, :5].tolist())]
        first = most_probable(classifier, output)
        pairs = zip(first.indices[0].tolist(), first.values[0].tolist(), strict=True)
        return [(index, f"{classifier.label(index)}, {p:.1%}") for index, p in pairs]

    def offered(self, network: str) -> list[OfferedMethod]:
        """Returns the methods of the command line, followed by xattn's own."""
        classifier = self.classifier(network)
        names = [*self.methods, *(name for name in sorted(method_registry.entries) if name not in self.methods)]
        return [_offered(classifier, component) for component in method_registry.create_all(names)]

    def described(self, file: str, network: str, target: int | str) -> str:
        """Returns the explained target of a picture, with the class's name.

        Raises:
            XattnError: the network, the picture or the target cannot be used.
        """
        classifier = self.classifier(network)
        self.picture(file, classifier.preprocessing)
        target_rule(classifier, target)
        return classifier.label(target) if isinstance(target, int) else target

    def maps(self, question: Question, wanted: Wanted = lambda: True) -> Maps:
        """Computes the requested map and overlays it on the displayed picture.

        Args:
            question: the request.
            wanted: whether the request is still wanted; called between forwards.

        Raises:
            NoLongerWanted: the request is no longer wanted.
            XattnError: as raised by `load` and `explain`.
        """
        return self._maps.get_or_make(question, lambda: self._explained(question, wanted))

    def kept_maps(self, question: Question) -> Maps | None:
        """Returns the requested map if it was computed before."""
        return self._maps.get(question)

    def scores(self, question: Question, metrics: Sequence[str], wanted: Wanted = lambda: True) -> dict[str, float]:
        """Returns the scores of a map by metric.

        Raises:
            NoLongerWanted: the scores are no longer wanted.
            UnsupportedError: the network's output is not finite.
            XattnError: as raised by `evaluate`.
        """
        specs = [component.spec for component in metric_registry.create_all(metrics, allow_none=True)]
        found = {spec: self._scores.get((question, spec)) for spec in specs}
        if left := [spec for spec, value in found.items() if value is None]:
            classifier, maps = self.classifier(question.network), self.maps(question, wanted)
            runs = _WhileWanted(classifier, wanted)
            rows = evaluate(classifier, maps.images, maps, left, predictor=runs, progress=False)
            if rows["error"].notna().any():
                raise UnsupportedError(f"{question.network} cannot be scored on this picture: {rows['error'].iloc[0]}.")
            for spec, value in zip(rows["metric"], rows["value"].astype(float), strict=True):
                found[spec] = value
                self._scores.keep((question, spec), value)
        return {spec: value for spec, value in found.items() if value is not None}

    def _images(self, file: str, classifier: Classifier) -> Tensor:
        return pixels(self.picture(file, classifier.preprocessing).crop[None], classifier.device)

    def _explained(self, question: Question, wanted: Wanted) -> Maps:
        classifier = self.classifier(question.network)
        lacks = lacking(classifier, method_registry.create(question.method), classifier.stage_or_default(None))
        if lacks is not None:
            raise UnsupportedError(f"{question.method} does not run on {question.network}: {lacks}.")
        opened = self.picture(question.file, classifier.preprocessing)
        maps = explain(
            classifier,
            self._images(question.file, classifier),
            [question.method],
            target=question.target,
            predictor=_WhileWanted(classifier, wanted),
            progress=False,
        )
        shown: Any = [opened.shown]  # a list of pictures would be a data set
        return replace(maps, photographs=Photographs(ImageSource(shown), classifier.preprocessing))


def refuse_local(network: str) -> None:
    """Raises if loading a name would run code of this machine, or read files that the name selects.

    Args:
        network: the name, as typed in a browser.

    Raises:
        InputError: loading it would do so.
    """
    place = network.partition(":")[2]
    if sources.is_code(network) or network.startswith(FOCUS) or place.startswith(LOCAL) or os.path.exists(place):
        raise InputError(
            f"'{network}' is code or a file on the machine that serves this page, or unknown to xattn. On this page, networks are named "
            "birds:NAME, torchvision:NAME, timm:NAME, hf:NAME or open_clip:NAME; give others when you start the page: xattn app "
            "--model NAME."
        )


def _opened(file: str, preprocessing: Preprocessing) -> Opened:
    picture, scaling = read_scaled(file, preprocessing.channels, Reading())
    crop, size = preprocessing.crop(picture), picture.size
    share = SIDE / max(size)
    shown = picture.convert("RGB").resize((max(1, round(size[0] * share)), max(1, round(size[1] * share))), Image.Resampling.LANCZOS)
    return Opened(shown, crop, size, scaling)


def _offered(classifier: Classifier, component: MethodComponent) -> OfferedMethod:
    stage = classifier.stage_or_default(None)
    channels = 0 if stage is None else stage.channels
    again = component.instance
    forwards = again.forwards(channels, classifier.input_size) if isinstance(again, RunsNetworkAgain) else 0
    return OfferedMethod(component.spec, lacking(classifier, component, stage), forwards, component.metadata.control)
