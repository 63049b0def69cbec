"""Networks for few shots, by name: `few-shot:resnet12[:width=80,hidden=0]`."""

from __future__ import annotations

from xattn.data.preprocessing import Preprocessing
from xattn.models.building import Built, Request, fit_with_classes
from xattn.resnet12 import BASE_CLASSES, ResNet12, parsed

MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


def from_few_shot(request: Request) -> Built:
    """Builds the named network, with random weights unless some are given, and the published transform of its pictures.

    Raises:
        NameUnknownError: there is no such network.
        WeightsError: the weights do not fit.

    Source: Sun et al. 2019 as released: resize 92, crop 80.
    """
    settings = parsed(request.model)
    classes = BASE_CLASSES if request.classes is None else request.classes
    network = ResNet12(classes, settings.width, settings.hidden).eval()
    if request.weights is not None:
        fit_with_classes(network, request)
    return Built(network, Preprocessing((80, 80), 92, MEAN, STD), None, trained=request.weights is not None)
