"""Several heads on one frozen backbone: the logits of all from one pass of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from xattn.classifiers.checkpoints import digest_of
from xattn.classifiers.classifier import Classifier
from xattn.classifiers.wiring import attend_together
from xattn.heads import BRNPAHead, CAStreamHead


class Together(Classifier):
    """Classifiers of one network that differ in their heads alone, as one: the logits `(B, K₁ + K₂ + …)` side by side.

    Args:
        classifiers: two or more, of one of `families`.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        nn.Module.__init__(self)
        first = classifiers[0]
        self.network, self.preprocessing, self.multi_label = first.network, first.preprocessing, first.multi_label
        self.name = " + ".join(f"{classifier.name} · {classifier.head_name}" for classifier in classifiers)
        self.head_name = "together"
        self.register_buffer("mean", first.mean, persistent=False)
        self.register_buffer("std", first.std, persistent=False)
        self.heads = nn.ModuleList(classifier.head for classifier in classifiers)
        self.wirings = [classifier.wiring for classifier in classifiers]
        self.counts = [classifier.class_count for classifier in classifiers]
        self.class_count = sum(self.counts)

    def logits(self, normalised: Tensor) -> Tensor:
        """Logits of all heads `(B, K₁ + K₂ + …)` of normalised images."""
        heads = list(self.heads)
        return torch.cat(attend_together(self.network, normalised, heads, self.wirings, self._logits), dim=1)  # type: ignore[arg-type]

    def forward(self, images: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.logits(self.normalise(images))

    def split(self, logits: Tensor) -> list[Tensor]:
        """The logits of each head."""
        return list(logits.split(self.counts, dim=1))


def families(classifiers: Sequence[Classifier]) -> list[list[Classifier]]:
    """Classifiers in groups that one pass of a network can serve, in their order; most stand alone."""
    if len(classifiers) == 1:
        return [list(classifiers)]  # the digest of its weights would tell nothing
    found: dict[object, list[Classifier]] = {}
    for number, classifier in enumerate(classifiers):
        found.setdefault(_backbone(classifier) or number, []).append(classifier)
    return list(found.values())


def _backbone(classifier: Classifier) -> object:
    """What classifiers of one pass have in common; None for a head that needs a forward of its own."""
    head = classifier.head
    if isinstance(head, CAStreamHead) and head.settings.per_class:
        return None
    if isinstance(head, BRNPAHead) and head.settings.selection == "random":
        return None
    network = classifier.network
    # What the weights do not say, strides and the like, a network's own words do.
    kind = (type(network).__module__, type(network).__qualname__, repr(network), getattr(network, "transform_input", None))
    return (
        *kind,
        digest_of(dict(network.state_dict())),
        classifier.preprocessing,
        classifier.multi_label,
        classifier.device,
        classifier.mean.dtype,
    )
